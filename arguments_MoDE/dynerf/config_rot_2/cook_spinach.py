"""Neural 3D Video, cook_spinach: router with 5 knots."""

_base_ = "default.py"

OptimizationParams = dict(batch_size=2)
