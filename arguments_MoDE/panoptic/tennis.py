"""PanopticSports, tennis: the default recipe."""

_base_ = "default.py"
