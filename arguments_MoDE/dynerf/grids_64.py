"""Grid4D's values for coffee_martini and flame_salmon_1, laid over those for the other scenes."""

ModelHashParams = dict(
    grid_args={"deform_desired_resolution": [64, 64, 128]},
    hash_space_smooth_weight=0.0,
    hash_time_smooth_weight=0.0,
)
