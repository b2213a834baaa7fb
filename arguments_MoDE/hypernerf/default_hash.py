"""HyperNeRF with HexPlane and hash grid: `default.py`, the hash grid with Grid4D's common values.

Grid4D's runs are 30000 to 40000 iterations long; its box is that of its own scene normalisation,
here it is that of the points. Not trained yet.
"""

_base_ = "default.py"

OptimizationParams = dict(
    hash_lr_max_steps=14000,  # ours: the decay ends with the run
    hash_net_lr_init=1.6e-4,
)

ModelHiddenParams = dict(experts=["hexplane", "hash"])

ModelHashParams = dict(
    grid_args={
        "deform_base_resolution": [16, 16, 8],
        "deform_desired_resolution": [256, 256, 64],  # the middle of Grid4D's four
    },
    network_args={"depth": 1},
    hash_space_smooth_weight=1.0,
    hash_time_smooth_weight=1.0,
    hash_smooth_ratio=1.0,
    hash_space_perturb=1e-2 / 2,  # 1e-2 in a box of +-1
    hash_time_perturb=0.0,
)
