"""The hash grid in a short run on a CPU: a quarter of the network's width, few rows, high rates."""

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
        "deform_log2_hashmap_size": 15,
    },
    network_args={"width": 64},  # Grid4D: 256
    hash_space_smooth_weight=0.005,  # Grid4D: 0.5 or 1, which holds a short run back
    hash_time_smooth_weight=0.005,
)
