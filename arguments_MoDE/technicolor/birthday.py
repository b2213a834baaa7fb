"""Technicolor, Birthday: the default recipe."""

_base_ = "default.py"
