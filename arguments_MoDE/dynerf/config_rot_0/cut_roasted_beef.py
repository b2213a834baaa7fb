"""Neural 3D Video, cut_roasted_beef: the default recipe, batches of 2 as published."""

_base_ = "default.py"

OptimizationParams = dict(batch_size=2)
