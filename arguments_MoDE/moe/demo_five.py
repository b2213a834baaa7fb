"""The demo scene as a mixture of all five kinds of models, about twice the time of `demo.py`."""

_base_ = ["../demo/demo_hash.py", "demo.py"]

MoEParams = dict(members=["hexplane", "keyframe", "polynomial", "hash", "embedding"])

ExpertParams = dict(
    hash=dict(
        OptimizationParams=dict(position_lr_init=1e-3, position_lr_final=1e-5),
    ),
    embedding=dict(
        OptimizationParams=dict(position_lr_init=1e-3, position_lr_final=1e-5),
        ModelEmbParams=dict(
            emb_use_anneal=False,  # it would last as long as the run
            emb_c2f_temporal_iter=300,
        ),
    ),
)
