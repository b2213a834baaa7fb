"""The demo scene: two minutes of training on two cores.

Sized for small frames and a short clip. Against the recipe for Neural 3D Video it gives up most of
the iterations, colours that change in time, and Gaussians beyond 20,000.
"""

ModelParams = dict(
    duration=0,  # the whole clip
    sh_degree=1,  # its surfaces hardly shine
    max_points=6000,
)

OptimizationParams = dict(
    iterations=2000,
    coarse_iterations=300,
    batch_size=2,
    batch_same_time=True,  # one deformation serves the whole batch
    position_lr_max_steps=2000,  # the decays end with the run
    weight_lr_max_steps=2000,
    embnet_lr_max_steps=2000,
    densify_from_iter=100,
    densify_until_iter=1200,
    pruning_from_iter=100,
    opacity_reset_interval=10000,  # never: a run this short does not recover from a reset
    max_gaussians=20000,
    prune_min_gaussians=2000,
    gaiting_from_iter=200,  # the first tenth, as published
)

ModelHiddenParams = dict(
    kplanes_config={"output_coordinate_dim": 16, "resolution": [48, 48, 48, 20]},
    multires=[1, 2],
    defor_depth=0,
    net_width=64,
    plane_tv_weight=2e-4,
    time_smoothness_weight=1e-3,
    l1_time_planes=1e-4,
    no_do=False,  # something flickers
    no_dshs=True,
    control_num=3,
)

ModelEmbParams = dict(
    emb_temporal_embedding_dim=64,
    emb_gaussian_embedding_dim=16,
    emb_min_embeddings=8,
    emb_max_embeddings=30,
    emb_c2f_temporal_iter=1300,
)
