"""Technicolor, Theater: the default recipe."""

_base_ = "default.py"
