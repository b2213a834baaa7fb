"""Neural 3D Video, sear_steak: router without a warm-up."""

_base_ = "default.py"

OptimizationParams = dict(batch_size=2)
