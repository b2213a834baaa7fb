"""HyperNeRF, broom2, with HexPlane and hash grid: Grid4D's values for it."""

_base_ = ["default_hash.py", "broom2.py"]

ModelHashParams = dict(
    grid_args={
        "deform_base_resolution": [16, 16, 16],
        "deform_desired_resolution": [256, 256, 64],
    },
    # Grid4D compares the grid in space over 1e-3 and a tenth of the points, the other three over
    # 1e-2 and all points. Here one distance and one share serve both; squared changes over a tenth
    # of the distance are a hundredth, if the grid is smooth there.
    hash_space_smooth_weight=0.01,
    hash_space_perturb=1e-2 / 1.6,  # 1e-2 in a box of +-0.8
)
