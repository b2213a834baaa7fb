"""Neural 3D Video as a mixture of two models: keyframes and polynomial.

The pair of the published table of efficiency. Not trained yet.
"""

_base_ = "four.py"

MoEParams = dict(members=["keyframe", "polynomial"])
