"""Neural 3D Video, coffee_martini: router without a warm-up."""

_base_ = ["default.py", "../grids_64.py"]
