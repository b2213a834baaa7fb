"""HyperNeRF with HexPlane and hash grid, without a GPU: an hour or so of one core. Not trained yet.

Gives up what `default_cpu.py` does, most of the grids' rows and three quarters of the network's
width.
"""

_base_ = ["default_cpu.py", "../short_hash.py"]

ModelHashParams = dict(
    grid_args={
        "deform_base_resolution": [16, 16, 8],
        "deform_desired_resolution": [64, 64, 48],  # Grid4D: [256 or 512, the same, 32 to 256]
    },
    network_args={"depth": 1},
)
