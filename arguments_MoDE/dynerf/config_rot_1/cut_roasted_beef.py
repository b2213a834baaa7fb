"""Neural 3D Video, cut_roasted_beef: router without a warm-up."""

_base_ = "default.py"

OptimizationParams = dict(batch_size=2)
