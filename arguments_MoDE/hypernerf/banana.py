"""HyperNeRF, vrig-peel-banana: 4DGaussians' rows of time, E-D3DGS's rows of embedding."""

_base_ = "default.py"

ModelHiddenParams = dict(kplanes_config={"resolution": [64, 64, 64, 250]})

ModelEmbParams = dict(
    emb_min_embeddings=50,
    emb_max_embeddings=250,
    emb_c2f_temporal_iter=7000,  # E-D3DGS: 40000 of 80000, cut to this run
)
