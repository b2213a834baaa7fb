"""Neural 3D Video, flame_steak, without a GPU: see `default_cpu.py` for what it gives up."""

_base_ = "default_cpu.py"
