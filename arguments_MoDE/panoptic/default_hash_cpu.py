"""PanopticSports with HexPlane and hash grid, without a GPU: less than half an hour of one core.

Gives up what `default_cpu.py` does, most of the grids' rows and three quarters of the network's
width.
"""

_base_ = ["default_cpu.py", "../short_hash.py"]

ModelHashParams = dict(
    grid_args={
        "deform_base_resolution": [16, 16, 8],
        "deform_desired_resolution": [64, 64, 30],  # half of the frames
    },
)
