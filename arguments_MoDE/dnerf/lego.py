"""D-NeRF, lego: the default recipe with rows of time for its 50 training views."""

_base_ = "default.py"

ModelHiddenParams = dict(kplanes_config={"resolution": [64, 64, 64, 25]})

ModelEmbParams = dict(emb_min_embeddings=5, emb_max_embeddings=25)
