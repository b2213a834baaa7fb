"""PanopticSports, softball: the default recipe."""

_base_ = "default.py"
