"""HexPlane features of 3D points at one time.

    from hexplane_encoder import encode
    features = encode(xyz, [xy, xz, yz], [x, y, z])  # (N, C)

A HexPlane (Cao and Johnson, CVPR 2023) holds one feature plane per pair of the axes x, y, z, t and
multiplies the six bilinear lookups of a point. At one time, the three space-time planes are lines,
which the caller interpolates; this package evaluates the remaining product, forward and backward,
in one pass over the points. `decode` is the small network behind such an encoder, a hidden layer
and several heads, in one pass as well; `roughness` is what keeps planes smooth in training.
`hexplane_encoder.reference` says all of it in plain PyTorch.
"""

from __future__ import annotations

from hexplane_encoder.decoder import decode
from hexplane_encoder.devices import DEVICES
from hexplane_encoder.encoder import encode
from hexplane_encoder.planes import roughness

__all__ = ["DEVICES", "decode", "encode", "roughness"]
__version__ = "0.1.0"
