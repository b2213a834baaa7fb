"""Settings of published recipes that do nothing here, and why, so that those recipes load.

``Retired.only`` names the one value under which nothing is lost: such a switch did change the
published program, so any other value is refused instead of being ignored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

ANY = object()


@dataclass(frozen=True)
class Retired:
    """Why a published key has no effect, and the only value it may have, where that matters."""

    reason: str
    only: Any = ANY


_UNUSED_ENCODING = "the published network computes this encoding and never uses it"
_UNREAD = "the published code never reads it"
_DELAY = "the published delay has zero steps, so it never acted"
_RASTERIZER = "the rasteriser does this itself"
_SAMPLING = "views are always drawn in shuffled passes and decoded when needed (--cache_gb)"

RETIRED: dict[str, dict[str, Retired]] = {
    "ModelParams": {
        "data_device": Retired(
            "frames stay in main memory as 8-bit; --device says where to compute"
        ),
        "eval": Retired("test cameras are always held out (--test_cameras)", only=True),
        "extension": Retired("image files are found whatever their type"),
        "render_process": Retired("use --test_iterations to watch a run"),
        "scale_xyz": Retired("the hash grids span the scene's box"),
    },
    "OptimizationParams": {
        "dataloader": Retired(_SAMPLING),
        "custom_sampler": Retired(_SAMPLING),
        "zerostamp_init": Retired("the coarse stage draws from all times", only=False),
        "add_point": Retired("the published growth calls a missing function", only=False),
        "position_lr_delay_mult": Retired(_DELAY),
        "deformation_lr_delay_mult": Retired(_DELAY),
        "lambda_lpips": Retired("the published LPIPS term is commented out"),
        "weight_lr": Retired(_UNREAD + "; --weight_movelr is the router's"),
        "weight_constraint_init": Retired(_UNREAD),
        "weight_constraint_after": Retired(_UNREAD),
        "weight_decay_iteration": Retired(_UNREAD),
    },
    "ModelHiddenParams": {
        "timebase_pe": Retired(_UNUSED_ENCODING),
        "posebase_pe": Retired(_UNUSED_ENCODING),
        "scale_rotation_pe": Retired(_UNUSED_ENCODING),
        "opacity_pe": Retired(_UNUSED_ENCODING),
        "timenet_width": Retired("the published time network is never called"),
        "timenet_output": Retired("the published time network is never called"),
        "grid_pe": Retired("plane features are used as they are", only=0),
        "bounds": Retired("the planes span the box of the initial point cloud, as published"),
        "no_grid": Retired("the HexPlane expert always has its planes", only=False),
        "empty_voxel": Retired("there is no occupancy mask", only=False),
        "static_mlp": Retired("there is no static mask", only=False),
        "apply_rotation": Retired("rotation deltas are added", only=False),
        "num_zero_expert": Retired(_UNREAD),
        "rout_interv": Retired(_UNREAD),
    },
    "PipelineParams": {
        "convert_SHs_python": Retired(_RASTERIZER),
        "compute_cov3D_python": Retired(_RASTERIZER),
        "debug": Retired("invalid values are reported always"),
    },
}

# Published values of another type than ours: {setting: {published: ours}}.
TRANSLATED: dict[str, dict[bool, int]] = {"add_points": {False: 0, True: 100_000}}

# Flags of the published entry points that do nothing here; True where the flag takes a value.
RETIRED_FLAGS: dict[str, tuple[bool, str]] = {
    "ip": (True, "there is no network viewer"),
    "port": (True, "there is no network viewer"),
    "debug_from": (True, "invalid values are reported always"),
    "detect_anomaly": (False, "losses and gradients are always checked, see --nonfinite"),
    "eval": (False, "test cameras are always held out"),
}

RETIRED_AT_RENDERING: dict[str, tuple[bool, str]] = {
    "seed": (True, "nothing that rendering does is random"),
}
