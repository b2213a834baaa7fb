"""PanopticSports as a mixture of three models: HexPlane, hash grid and keyframes.

No published recipe: the values for MoDE on this data set. Not trained yet.
"""

_base_ = "../../panoptic/default_hash.py"

MoEParams = dict(members=["hexplane", "hash", "keyframe"])

ExpertParams = dict(
    keyframe=dict(
        OptimizationParams=dict(coarse_iterations=0, keyframe_lr=1.0, lambda_dssim=0.25),
        ModelMotionParams=dict(
            keyframe_num=16,  # every 10 frames, as Ex4DGS
            keyframe_opacity=True,
            keyframe_sets=True,
            keyframe_extract_interval=1000,
        ),
    ),
)
