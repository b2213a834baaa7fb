"""HyperNeRF, vrig-peel-banana, with HexPlane and hash grid: Grid4D's values for it."""

_base_ = ["default_hash.py", "banana.py"]

OptimizationParams = dict(
    hash_grid_lr_init=1.6e-3,  # the other scenes: 8e-3 to 8e-5
    hash_grid_lr_final=1.6e-5,
)

ModelHashParams = dict(
    grid_args={
        "deform_base_resolution": [16, 16, 16],
        "deform_desired_resolution": [256, 256, 256],
    },
)
