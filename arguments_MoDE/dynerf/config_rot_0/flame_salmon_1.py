"""Neural 3D Video, flame_salmon_1: the default recipe, batches of 4."""

_base_ = ["default.py", "../grids_64.py"]
