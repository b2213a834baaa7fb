"""HyperNeRF with HexPlane and hash grid, without a GPU: an hour or so of one core. Not trained yet.

Gives up what `default_cpu.py` does, most of the grids' rows and three quarters of the network's
width.
"""

_base_ = "default_cpu.py"

OptimizationParams = dict(
    hash_lr_max_steps=0,  # both decays end with the run
    hash_grid_lr_init=2e-2,  # Grid4D: 8e-3, for runs many times as long
    hash_grid_lr_final=1e-3,
    hash_net_lr_init=2e-3,
    hash_net_lr_final=1e-4,
)

ModelHiddenParams = dict(experts=["hexplane", "hash"])

ModelHashParams = dict(
    grid_args={
        "canonical_desired_resolution": 256,  # Grid4D: 2048
        "canonical_log2_hashmap_size": 15,  # Grid4D: 19
        "deform_num_levels": 12,  # Grid4D: 32
        "deform_base_resolution": [16, 16, 8],
        "deform_desired_resolution": [64, 64, 48],  # Grid4D: [256 or 512, the same, 32 to 256]
        "deform_log2_hashmap_size": 15,
    },
    network_args={"depth": 1, "width": 64},  # Grid4D: 256
    hash_space_smooth_weight=0.005,  # Grid4D: 1, which holds a short run back
    hash_time_smooth_weight=0.005,
)
