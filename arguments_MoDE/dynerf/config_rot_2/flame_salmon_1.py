"""Neural 3D Video, flame_salmon_1: router with 5 knots."""

_base_ = ["default.py", "../grids_64.py"]
