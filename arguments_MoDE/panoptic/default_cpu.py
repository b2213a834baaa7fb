"""PanopticSports without a GPU: 60 frames at 320x180, about half an hour on two cores.

Gives up, against `default.py`: half of the width and height, 90 of 150 frames, four fifths of the
iterations, colours and opacities that change in time, the finer level of planes, and Gaussians
beyond 60,000.
"""

_base_ = "default.py"

ModelParams = dict(
    resolution=2,  # full: 640x360
    duration=60,  # full: 150
    sh_degree=1,  # full: 3
    max_points=30000,  # full: all
)

OptimizationParams = dict(
    iterations=6000,  # full: 30000
    coarse_iterations=1000,  # full: 3000
    batch_size=2,  # full: 4
    batch_same_time=True,  # one deformation serves the whole batch
    position_lr_max_steps=6000,  # the decays end with the run
    weight_lr_max_steps=6000,
    embnet_lr_max_steps=6000,
    densify_until_iter=3000,  # full: 10000
    gaiting_from_iter=600,  # full: 3000, the first tenth, as here
    max_gaussians=60000,  # full: 360000
    prune_min_gaussians=10000,  # full: 200000, which this run never reaches
)

ModelHiddenParams = dict(
    kplanes_config={"resolution": [64, 64, 64, 30]},  # half of the frames
    multires=[1],  # full: [1, 2]
    net_width=64,  # full: 128
    no_do=True,  # full: False
    no_dshs=True,  # full: False
)

ModelEmbParams = dict(
    emb_min_embeddings=15,  # full: 30 for 300 frames
    emb_max_embeddings=30,  # full: 150; half of the frames
    emb_c2f_temporal_iter=4000,  # full: 20000, two thirds of the run, as here
)
