"""Neural 3D Video as a mixture of four models: those of `three.py` and the polynomial one.

Not trained yet. Published: two models of 150 frames each for the polynomial one, which otherwise
did not fit into memory; here one of the whole clip, in which Gaussians are as short-lived as there.
"""

_base_ = "three.py"

MoEParams = dict(members=["keyframe", "embedding", "hexplane", "polynomial"])

ExpertParams = dict(
    polynomial=dict(  # SpacetimeGaussians, with colours of SH degree 3
        OptimizationParams=dict(
            iterations=30000,
            coarse_iterations=0,
            batch_size=2,
            batch_same_time=True,
            lambda_dssim=0.25,  # 0.8 L1 + 0.2 (1 - SSIM)
            scaling_lr=1.5e-3,  # coffee_martini and flame_salmon_1: 3e-3
            densify_until_iter=9000,  # published: 6 rounds, until 1100, and pruning until 7000
            prune_min_gaussians=0,
            opacity_reset_interval=3000,
            max_screen_size=1e9,  # published: large ones are never pruned, faint ones only
            max_world_scale=1e9,
            position_lr_max_steps=30000,
        ),
        ModelMotionParams=dict(
            trbf_spread=True,  # published: points of all frames, each with its frame
            trbf_scale_init=-0.7,  # published: 0 of half the clip
        ),
    ),
)
