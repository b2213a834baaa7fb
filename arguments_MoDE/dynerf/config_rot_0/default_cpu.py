"""Neural 3D Video on a machine without a GPU: hours instead of days.

Gives up, against `default.py`: half of the width and height (676x507 of 2704x2028), four fifths of
the iterations, colours and opacities that change in time, the finer level of planes, and Gaussians
beyond 100,000. Fine texture and thin structures suffer most. A run trained with it is rendered with
`--configs .../coffee_martini_cpu.py`, or with none.
"""

_base_ = "default.py"

ModelParams = dict(
    resolution=4,  # published: 1352x1014; the rasteriser's time goes with the pixels
    max_points=40000,  # published: all; the deformation's time goes with the Gaussians
)

OptimizationParams = dict(
    iterations=6000,  # published: 30000
    coarse_iterations=1000,  # published: 3000
    batch_size=2,  # published: 4 or 2
    batch_same_time=True,  # published: any times; here one deformation serves the whole batch
    position_lr_max_steps=6000,  # the decays end with the run
    weight_lr_max_steps=6000,
    embnet_lr_max_steps=6000,  # published: 60000, twice the run; a short run needs the decay
    densify_until_iter=3000,  # published: 10000, the first third; half of a short run
    gaiting_from_iter=600,  # published: 3000, the first tenth, as here
    max_gaussians=100000,  # published: 360000
    prune_min_gaussians=20000,  # published: 200000, which this run never reaches
    hash_lr_max_steps=6000,  # published: 45000
    hash_net_lr_init=8e-4,  # Grid4D: 1.6e-4, for runs many times as long
    hash_net_lr_final=8e-5,
)

ModelHiddenParams = dict(
    multires=[1],  # published: [1, 2]
    net_width=64,  # published: 128
    no_do=True,  # published: False
    no_dshs=True,  # published: False; 48 of the decoder's 59 outputs
)

ModelEmbParams = dict(
    emb_c2f_temporal_iter=4000,  # published: 20000, two thirds of the run, as here
)

ModelHashParams = dict(
    grid_args={
        "canonical_desired_resolution": 512,  # Grid4D: 2048
        "canonical_log2_hashmap_size": 16,  # Grid4D: 19
        "deform_num_levels": 12,  # Grid4D: 32
        "deform_desired_resolution": [64, 64, 64],  # Grid4D: [512, 512, 128]
        "deform_log2_hashmap_size": 16,
    },
    network_args={"width": 64},  # Grid4D: 256
    hash_smooth_ratio=0.1,  # Grid4D: all
)
