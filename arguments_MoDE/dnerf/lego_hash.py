"""D-NeRF, lego, with HexPlane and hash grid: Grid4D's own values for it."""

_base_ = ["default_hash.py", "lego.py"]

OptimizationParams = dict(
    hash_grid_lr_init=4e-2,  # the other scenes: 8e-3 to 8e-5
    hash_grid_lr_final=4e-4,
)

ModelHashParams = dict(
    hash_space_smooth_weight=1.0,  # the other scenes: 0.5
    hash_time_smooth_weight=1.0,
    hash_time_perturb=0.0,
)
