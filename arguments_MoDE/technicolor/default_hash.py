"""Technicolor with HexPlane and hash grid: `default.py`, the grids as for Neural 3D Video.

Grid4D has no recipe for it either. Not trained yet.
"""

_base_ = "default.py"

OptimizationParams = dict(
    hash_lr_max_steps=30000,  # ours: the decay ends with the run
)

ModelHiddenParams = dict(experts=["hexplane", "hash"])

ModelHashParams = dict(
    # In time half of the frames; Neural 3D Video: 16 to 128 for 300 frames.
    grid_args={
        "deform_base_resolution": [16, 16, 8],
        "deform_desired_resolution": [512, 512, 25],
    },
)
