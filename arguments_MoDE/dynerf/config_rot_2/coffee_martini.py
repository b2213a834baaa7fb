"""Neural 3D Video, coffee_martini: router with 5 knots."""

_base_ = ["default.py", "../grids_64.py"]
