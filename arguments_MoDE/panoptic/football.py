"""PanopticSports, football: the default recipe."""

_base_ = "default.py"
