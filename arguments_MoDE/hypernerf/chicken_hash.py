"""HyperNeRF, vrig-chicken, with HexPlane and hash grid: Grid4D's values for it."""

_base_ = ["default_hash.py", "chicken.py"]

ModelHashParams = dict(
    grid_args={"deform_desired_resolution": [512, 512, 32]},
    # Grid4D compares the grid in space over 1e-3, the other three over 1e-2. Here one distance
    # serves both; squared changes over a tenth of it are a hundredth, if the grid is smooth there.
    hash_space_smooth_weight=0.01,
    hash_space_perturb=1e-2 / 3.2,  # 1e-2 in a box of +-1.6
)
