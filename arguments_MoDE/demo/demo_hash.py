"""The demo scene with HexPlane and hash grid: about two minutes of training on two cores.

As `demo.py`, with a hash-grid expert in the place of the embedding expert. Against Grid4D's values
it gives up most of the grids' rows and of the network's width, for which the scene has no use: its
frames are small and its clip is short.
"""

_base_ = "demo.py"

OptimizationParams = dict(
    hash_lr_max_steps=0,  # both decays end with the run
    hash_grid_lr_init=3e-2,  # Grid4D: 8e-3, for runs thirty times as long
    hash_grid_lr_final=3e-4,  # Grid4D: 8e-5
    hash_net_lr_init=2e-3,  # Grid4D: 8e-4
    hash_net_lr_final=1e-4,  # Grid4D: 1.6e-6
)

ModelHiddenParams = dict(experts=["hexplane", "hash"])

ModelHashParams = dict(
    grid_args=dict(
        canonical_num_levels=8,  # Grid4D: 16
        canonical_desired_resolution=256,  # Grid4D: 2048
        canonical_log2_hashmap_size=15,  # Grid4D: 19
        deform_num_levels=8,  # Grid4D: 32
        deform_base_resolution=[8, 8, 4],
        deform_desired_resolution=[64, 64, 20],  # half as many moments as frames
        deform_log2_hashmap_size=15,
    ),
    network_args=dict(depth=1, width=64),  # Grid4D: 256
    hash_space_smooth_weight=0.005,  # Grid4D: 0.5, which holds so short a run back
    hash_time_smooth_weight=0.005,
)
