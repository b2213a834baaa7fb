"""PanopticSports, juggle: the default recipe."""

_base_ = "default.py"
