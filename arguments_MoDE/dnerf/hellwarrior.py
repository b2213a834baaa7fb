"""D-NeRF, hellwarrior: the default recipe with rows of time for its 100 training views."""

_base_ = "default.py"

ModelHiddenParams = dict(kplanes_config={"resolution": [64, 64, 64, 50]})

ModelEmbParams = dict(emb_min_embeddings=10, emb_max_embeddings=50)
