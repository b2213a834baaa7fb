"""HyperNeRF's scenes without a GPU: an hour or so of one core. Not trained yet.

Gives up, against `default.py`: half of the width and height, two thirds of the
iterations, the finer levels of planes, Gaussians beyond 30,000, view-dependent colours above degree
1, and one of the embedding expert's two networks. As for the D-NeRF scenes on a CPU, rates of the
networks are higher and heads start at zero.
"""

_base_ = "default.py"

ModelParams = dict(
    resolution=2,  # full: 1
    sh_degree=1,  # full: 3
    max_points=20000,  # full: all
)

OptimizationParams = dict(
    iterations=5000,  # full: 14000
    coarse_iterations=800,  # full: 3000
    position_lr_max_steps=0,  # all decays end with the run
    weight_lr_max_steps=0,
    embnet_lr_max_steps=0,
    deformation_lr_init=8e-4,  # full: 1.6e-4, for a run three times as long
    deformation_lr_final=8e-5,
    grid_lr_init=8e-3,  # full: 1.6e-3
    grid_lr_final=8e-4,
    embnet_lr_init=8e-4,  # full: 1.6e-4
    embnet_lr_final=8e-5,
    densify_from_iter=200,  # full: 500
    densify_until_iter=3500,  # full: 10000, as here two thirds
    pruning_from_iter=200,  # full: 500
    gaiting_from_iter=500,  # the first tenth
    warmup_gate="uniform",
    max_gaussians=30000,  # full: 360000
    prune_min_gaussians=0,  # full: 200000, which this run never reaches
)

ModelHiddenParams = dict(
    kplanes_config={"resolution": [64, 64, 64, 75]},  # full: 80 to 250
    multires=[1],  # full: [1, 2, 4]
    net_width=64,  # full: 128
    zero_init_heads=True,
    MoE_scale=True,  # published: positions and rotations only
)

ModelEmbParams = dict(
    emb_no_coarse_deform=True,  # one network
    emb_min_embeddings=15,  # full: 16 to 50
    emb_max_embeddings=75,  # full: 80 to 250
    emb_c2f_temporal_iter=1700,  # a third of the run, as in most of E-D3DGS's
)
