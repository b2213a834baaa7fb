"""D-NeRF scenes with HexPlane and hash grid: `default.py` with Grid4D's values for these scenes."""

_base_ = "default.py"

OptimizationParams = dict(
    hash_lr_max_steps=20000,  # ours: the decay ends with the run
)

ModelHiddenParams = dict(experts=["hexplane", "hash"])

ModelHashParams = dict(
    network_args={"depth": 0},
)
