"""Technicolor, Birthday, with HexPlane and hash grid: the default recipe."""

_base_ = "default_hash.py"
