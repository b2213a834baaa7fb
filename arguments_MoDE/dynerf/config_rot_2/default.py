"""Neural 3D Video with 5 knots for the router instead of 3."""

_base_ = "../config_rot_0/default.py"

ModelHiddenParams = dict(control_num=5)
