"""Technicolor with HexPlane and hash grid, without a GPU: hours instead of days. Not trained yet.

Gives up what `default_cpu.py` does, most of the grids' rows and three quarters of the network's
width.
"""

_base_ = "default_cpu.py"

OptimizationParams = dict(
    hash_lr_max_steps=6000,  # the decay ends with the run
    hash_net_lr_init=8e-4,  # full: 1.6e-4, for a run five times as long
    hash_net_lr_final=8e-5,
)

ModelHiddenParams = dict(experts=["hexplane", "hash"])

ModelHashParams = dict(
    grid_args={
        "canonical_desired_resolution": 512,  # full: 2048
        "canonical_log2_hashmap_size": 16,  # full: 19
        "deform_num_levels": 12,  # full: 32
        "deform_base_resolution": [16, 16, 8],
        "deform_desired_resolution": [64, 64, 25],  # full: [512, 512, 25]
        "deform_log2_hashmap_size": 16,
    },
    network_args={"width": 64},  # full: 256
    hash_smooth_ratio=0.1,  # full: all
)
