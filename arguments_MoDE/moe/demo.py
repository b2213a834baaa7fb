"""The demo scene as a mixture of three models that are trained each for itself."""

_base_ = "../demo/demo_hash.py"

MoEParams = dict(members=["hexplane", "hash", "polynomial"])
