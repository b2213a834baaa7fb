"""The demo scene with a third expert that stays put, for what does not move."""

_base_ = "demo.py"

ModelHiddenParams = dict(experts=["hexplane", "embedding", "zero"], moe_top_k=0)
