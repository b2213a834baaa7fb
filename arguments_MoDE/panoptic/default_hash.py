"""PanopticSports with HexPlane and hash grid: `default.py`, the grids as for Neural 3D Video."""

_base_ = "default.py"

ModelHiddenParams = dict(experts=["hexplane", "hash"])

ModelHashParams = dict(
    grid_args={"deform_desired_resolution": [128, 128, 75]},  # half of the frames
)
