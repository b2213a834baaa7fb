"""Technicolor as a mixture of three models: keyframes, embedding and polynomial, as published.

Not trained yet. The models' values are those published for this data set where there are any; scene
by scene they differ, and here they are those of Painter.
"""

_base_ = ["../n3v/four.py", "../../technicolor/default.py"]

MoEParams = dict(members=["keyframe", "embedding", "polynomial"])

ExpertParams = dict(
    keyframe=dict(
        OptimizationParams=dict(
            iterations=30000,
            densify_until_iter=25000,
            # Published: 2.5e-4 of a loss that is 0.8 of this one; dynamic Gaussians: 8e-5.
            densify_grad_threshold_fine_init=2.5e-4 / 0.8,
            densify_grad_threshold_after=2.5e-4 / 0.8,
            keyframe_span_lr=0.01 / 5,
        ),
        ModelMotionParams=dict(keyframe_num=6, keyframe_extract_interval=1000),
    ),
    embedding=dict(
        OptimizationParams=dict(
            iterations=100000,
            densify_from_iter=500,
            densify_until_iter=100000,
            pruning_from_iter=500,
        ),
        ModelEmbParams=dict(
            emb_use_coarse_temporal_embedding=True,
            emb_deform_from_iter=0,
            emb_smooth_weight=0.1,
        ),
    ),
    polynomial=dict(
        OptimizationParams=dict(scaling_lr=5e-3),
        ModelMotionParams=dict(trbf_scale_init=-2.0),
    ),
)

RouterParams = dict(
    mask_lr=0.1,  # Fabien: 0.05, and half of the next two
    mask_lr_final=0.01,  # a hundredth after twice as many iterations
    time_lr=0.01,
    network_lr=0.01,
)
