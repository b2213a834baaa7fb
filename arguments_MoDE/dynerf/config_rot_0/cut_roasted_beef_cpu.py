"""Neural 3D Video, cut_roasted_beef, without a GPU: see `default_cpu.py` for what it gives up."""

_base_ = "default_cpu.py"
