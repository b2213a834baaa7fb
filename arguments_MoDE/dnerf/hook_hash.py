"""D-NeRF, hook, with HexPlane and hash grid: the default recipe, its own rows of time."""

_base_ = ["default_hash.py", "hook.py"]
