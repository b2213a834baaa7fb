"""HyperNeRF, vrig-chicken: 4DGaussians' rows of time, E-D3DGS's rows of embedding."""

_base_ = "default.py"

ModelHiddenParams = dict(kplanes_config={"resolution": [64, 64, 64, 80]})

ModelEmbParams = dict(
    emb_min_embeddings=16,
    emb_max_embeddings=80,
    emb_c2f_temporal_iter=2300,  # E-D3DGS: 10000 of 60000, cut to this run
)
