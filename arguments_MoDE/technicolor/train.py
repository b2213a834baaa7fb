"""Technicolor, Train: the default recipe with E-D3DGS's rates for this scene."""

_base_ = "default.py"

OptimizationParams = dict(
    embnet_lr_init=5e-3,  # the other scenes: 1.6e-3 to 1.6e-4
    embnet_lr_final=5e-5,
)
