"""PanopticSports, boxes: the default recipe."""

_base_ = "default.py"
