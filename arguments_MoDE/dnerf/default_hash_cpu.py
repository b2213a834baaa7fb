"""D-NeRF scenes with HexPlane and hash grid, without a GPU: about ten minutes of one core.

Gives up what `default_cpu.py` does, most of the grids' rows and three quarters of the network's
width.
"""

_base_ = ["default_cpu.py", "../short_hash.py"]

ModelHashParams = dict(network_args={"depth": 0})
