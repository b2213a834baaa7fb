"""Neural 3D Video, cook_spinach: router without a warm-up."""

_base_ = "default.py"

OptimizationParams = dict(batch_size=2)
