"""HyperNeRF, vrig-3dprinter, with HexPlane and hash grid: Grid4D's values for it."""

_base_ = ["default_hash.py", "3dprinter.py"]

ModelHashParams = dict(
    grid_args={
        "canonical_desired_resolution": 256,
        "deform_desired_resolution": [512, 512, 32],
    },
)
