"""PanopticSports as a mixture of three models without a GPU: 30 frames at 320x180.

Gives up what `default_cpu.py` and `default_hash_cpu.py` of the data set do, half of their frames,
more than half of their iterations and a third of their Gaussians: a quarter of an hour of one core.
"""

_base_ = "../../panoptic/default_hash_cpu.py"

ModelParams = dict(duration=30)

OptimizationParams = dict(
    iterations=3000,
    coarse_iterations=600,
    densify_until_iter=1800,
    max_gaussians=12000,
)

MoEParams = dict(members=["hexplane", "hash", "keyframe"])

ExpertParams = dict(
    keyframe=dict(
        OptimizationParams=dict(keyframe_lr=30.0),
        ModelMotionParams=dict(keyframe_num=8, keyframe_opacity=True),
    ),
)

RouterParams = dict(
    router_iterations=500,  # published: 5000, for clips of 300 frames
    temperature_init=0.3,
    temperature_final=0.3,
)
