"""HyperNeRF's four vrig scenes: a pair of cameras that is carried around.

MoDE publishes no recipe for them: 4DGaussians' values for HyperNeRF, E-D3DGS's for the embedding
expert, and the router's of MoDE for Neural 3D Video scaled to the shorter run. Not trained yet.
"""

ModelParams = dict(
    resolution=1,  # `rgb/2x` as it is: half of the photographs' size
    duration=0,  # the whole clip, 164 to 513 moments
    time_convention="full",  # warp_id by the largest, as 4DGaussians has it
)

OptimizationParams = dict(
    iterations=14000,
    coarse_iterations=3000,
    batch_size=2,
    densify_until_iter=10000,
    opacity_reset_interval=300000,  # beyond both stages: never
    embnet_lr_max_steps=14000,  # ours: the decay ends with the run
    weight_lr_max_steps=14000,  # ours, likewise
    offsets_lr=0.0,  # E-D3DGS: no time offsets per camera
    gaiting_from_iter=1400,  # ours: the first tenth, as for Neural 3D Video
)

ModelHiddenParams = dict(
    kplanes_config={
        "grid_dimensions": 2,
        "input_coordinate_dim": 4,
        "output_coordinate_dim": 16,
        "resolution": [64, 64, 64, 150],
    },
    multires=[1, 2, 4],
    defor_depth=1,
    net_width=128,
    plane_tv_weight=2e-4,
    time_smoothness_weight=1e-3,
    l1_time_planes=1e-4,
    no_do=True,
    no_dshs=True,
    control_num=3,
)

# The size of its networks stays MoDE's. E-D3DGS also holds neighbours' embeddings together (weight
# 1) and the temporal table smooth; MoDE does neither.
ModelEmbParams = dict(
    emb_min_embeddings=30,  # as 4DGaussians' rows of time; a fifth of them, as in E-D3DGS
    emb_max_embeddings=150,
    emb_c2f_temporal_iter=5000,  # E-D3DGS: by scene, 20000 of 60000 in most
    emb_use_coarse_temporal_embedding=True,
    emb_zero_temporal=True,
    emb_use_anneal=False,
    emb_no_do=True,
    emb_no_dc=True,
)
