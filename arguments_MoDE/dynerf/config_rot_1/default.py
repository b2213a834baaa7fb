"""Neural 3D Video without a warm-up: the router decides from the first fine iteration."""

_base_ = "../config_rot_0/default.py"

OptimizationParams = dict(gaiting_from_iter=0)
