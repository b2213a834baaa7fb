"""D-NeRF, jumpingjacks: the default recipe with rows of time for its 200 training views."""

_base_ = "default.py"

ModelHiddenParams = dict(kplanes_config={"resolution": [64, 64, 64, 100]})

ModelEmbParams = dict(emb_min_embeddings=20, emb_max_embeddings=100)
