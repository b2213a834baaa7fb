"""Neural 3D Video, flame_salmon_1: router without a warm-up."""

_base_ = ["default.py", "../grids_64.py"]
