"""Technicolor, Painter: the default recipe."""

_base_ = "default.py"
