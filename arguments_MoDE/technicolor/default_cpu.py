"""Technicolor on a machine without a GPU: hours instead of days. Not trained yet.

Gives up, against `default.py`: three quarters of the width and height (512x272 of 2048x1088), four
fifths of the iterations, colours and opacities that change in time, the finer level of planes, and
Gaussians beyond 100,000. The values are those of Neural 3D Video's CPU recipe.
"""

_base_ = "default.py"

ModelParams = dict(
    resolution=4,  # full: 1; the rasteriser's time goes with the pixels
    max_points=40000,  # full: all; the deformation's time goes with the Gaussians
)

OptimizationParams = dict(
    iterations=6000,  # full: 30000
    coarse_iterations=1000,  # full: 3000
    batch_same_time=True,  # one deformation serves the whole batch
    position_lr_max_steps=6000,  # the decays end with the run
    weight_lr_max_steps=6000,
    embnet_lr_max_steps=6000,
    densify_until_iter=3000,  # full: 10000, the first third; half of a short run
    gaiting_from_iter=600,  # full: 3000, the first tenth, as here
    max_gaussians=100000,  # full: 360000
    prune_min_gaussians=20000,  # full: 200000, which this run never reaches
)

ModelHiddenParams = dict(
    multires=[1],  # full: [1, 2]
    net_width=64,  # full: 128
    no_do=True,  # full: False
    no_dshs=True,  # full: False; 48 of the decoder's 59 outputs
)
