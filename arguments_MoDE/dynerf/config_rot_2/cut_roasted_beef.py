"""Neural 3D Video, cut_roasted_beef: router with 5 knots."""

_base_ = "default.py"

OptimizationParams = dict(batch_size=2)
