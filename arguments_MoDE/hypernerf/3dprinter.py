"""HyperNeRF, vrig-3dprinter: 4DGaussians' rows of time, E-D3DGS's rows of embedding."""

_base_ = "default.py"

ModelHiddenParams = dict(kplanes_config={"resolution": [64, 64, 64, 100]})

ModelEmbParams = dict(
    emb_min_embeddings=20,
    emb_max_embeddings=100,
    emb_c2f_temporal_iter=4700,  # E-D3DGS: 20000 of 60000, cut to this run
)
