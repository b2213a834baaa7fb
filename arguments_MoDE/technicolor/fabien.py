"""Technicolor, Fabien: the default recipe."""

_base_ = "default.py"
