"""D-NeRF and other Blender scenes: one moving camera, a view per time step.

MoDE publishes no recipe for them; the values are 4DGaussians' for D-NeRF, the router's are those of
MoDE for Neural 3D Video scaled to the shorter run.
"""

ModelParams = dict(
    white_background=True,
    # The files give times; for a whole clip they are divided by the largest, as published. This is
    # for the camera path, which then runs over the same times.
    time_convention="full",
)

OptimizationParams = dict(
    iterations=20000,
    coarse_iterations=3000,
    batch_size=1,
    deformation_lr_init=1.6e-4,
    deformation_lr_final=1.6e-6,
    grid_lr_init=1.6e-3,
    grid_lr_final=1.6e-5,
    embnet_lr_max_steps=20000,  # ours: the decay ends with the run
    densify_until_iter=15000,
    opacity_reset_interval=3000,
    pruning_interval=8000,  # only above 200,000 Gaussians, which few scenes reach
    gaiting_from_iter=2000,  # ours: the first tenth, as for Neural 3D Video
)

ModelHiddenParams = dict(
    # Rows of time: published 25 to 100 by scene; about half of the frames.
    kplanes_config={
        "grid_dimensions": 2,
        "input_coordinate_dim": 4,
        "output_coordinate_dim": 32,
        "resolution": [64, 64, 64, 75],
    },
    multires=[1, 2],
    defor_depth=0,
    net_width=64,
    plane_tv_weight=1e-4,
    time_smoothness_weight=0.01,
    l1_time_planes=1e-4,
    no_do=True,
    no_dshs=True,
    control_num=3,
)

ModelEmbParams = dict(
    # ours: E-D3DGS has no D-NeRF recipe; as many rows as the planes, a fifth of them at the start,
    # which is what it has elsewhere
    emb_min_embeddings=15,
    emb_max_embeddings=75,
    emb_c2f_temporal_iter=13000,  # ours: two thirds of the run, as for Neural 3D Video
)
