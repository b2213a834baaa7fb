"""Neural 3D Video, coffee_martini: the default recipe, batches of 4."""

_base_ = ["default.py", "../grids_64.py"]
