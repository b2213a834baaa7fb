"""Neural 3D Video, cook_spinach, without a GPU: see `default_cpu.py` for what it gives up."""

_base_ = "default_cpu.py"
