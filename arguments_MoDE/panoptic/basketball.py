"""PanopticSports, basketball: the default recipe."""

_base_ = "default.py"
