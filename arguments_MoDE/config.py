"""The settings of a run: dataclasses that are the one source for flags, recipes and saved runs.

A recipe file (`arguments_MoDE/dynerf/config_rot_0/coffee_martini.py`) holds one dict per section,
named like the class: ``OptimizationParams = dict(iterations=30000)``. Every field is a flag as well
(``--iterations 30000``, ``--no-white_background``). Explicit flags beat the recipe, the recipe
beats the defaults here. Names and defaults are those of the published MoDE code where it has them;
deviations say why.

A field with ``structural=True`` fixes the shape or the meaning of what is saved: a recipe given at
rendering may not contradict the run in it.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, fields
from typing import Any

SECTIONS = (
    "ModelParams",
    "OptimizationParams",
    "ModelHiddenParams",
    "ModelEmbParams",
    "ModelHashParams",
    "ModelMotionParams",
)

CACHES = ("auto", "ram", "disk", "none")


def option(
    default: Any,
    help: str,
    *,
    short: str | None = None,
    choices: tuple[str, ...] | None = None,
    structural: bool = False,
) -> Any:
    """A dataclass field with what the command line needs to know about it.

    Args:
        default: the value when neither a flag nor a recipe sets it; lists and dicts are copied.
        help: one line for ``--help``, with units and sentinels.
        short: a one-letter alias, without its dash.
        choices: the only values allowed.
        structural: whether rendering refuses a recipe that disagrees with the run.
    """
    metadata = {"help": help, "short": short, "choices": choices, "structural": structural}
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: copy.deepcopy(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class ModelParams:
    """Where the scene is and how it is read."""

    source_path: str = option("", "scene folder", short="s")
    model_path: str = option("", "run folder (what training writes and rendering reads)", short="m")
    expname: str = option("", "run folder by another name; as --model_path")
    images: str = option("images", "folder of extracted frames inside the scene folder", short="i")
    resolution: int = option(
        -1,
        "1, 2, 4, 8: divide the frames' size by it; other positive: target width in pixels; "
        "-1: native, halved until at most 1600 pixels wide",
        short="r",
    )
    start_frame: int = option(0, "first frame of the clip to use")
    duration: int = option(300, "use at most this many frames per camera; 0: all", short="d")
    frame_step: int = option(1, "use every n-th frame")
    time_convention: str = option(
        "full",
        "time of frame i of F: full = i/(F-1), published = i/F; where files give times (D-NeRF, "
        "nerfstudio), those are kept, from 0 to 1",
        choices=("full", "published"),
        structural=True,
    )
    test_cameras: list[str] = option(
        [], "held-out cameras, by name or index; default: the data set's own convention"
    )
    llffhold: int = option(
        8,
        "COLMAP and nerfstudio scenes of a camera that moves: hold out every n-th image, 0: none; "
        "--test_cameras overrules it",
    )
    sh_degree: int = option(3, "spherical-harmonics degree of the colours, 0 to 3", structural=True)
    white_background: bool = option(
        True, "white behind the Gaussians, else black", short="w", structural=True
    )
    near_plane: float = option(
        0.2, "Gaussians at this depth, in world units, or nearer to a camera are not drawn"
    )
    max_points: int = option(0, "thin the initial point cloud to at most this many points; 0: keep")
    add_points: int = option(
        0, "add this many uniformly random points in the cloud's box (published: 100000 or none)"
    )
    cache: str = option(
        "auto",
        "where decoded frames are kept: auto = in memory up to --cache_gb, then on disk too; "
        "ram = all in memory; disk = all on disk; none = images are decoded each time",
        choices=CACHES,
    )
    cache_gb: float = option(4.0, "memory for decoded frames, in GB; --cache ram does not heed it")
    seed: int = option(0, "seed of every random choice of a run")
    video_frames: int = option(0, "frames of the rendered camera path; 0: as many as the clip has")


@dataclass
class OptimizationParams:
    """Schedules, losses and density control."""

    iterations: int = option(30000, "iterations of the fine stage (deformation on)")
    coarse_iterations: int = option(
        3000, "iterations of the coarse stage (canonical Gaussians only)"
    )
    batch_size: int = option(1, "views per iteration; their mean loss is one step")
    batch_same_time: bool = option(
        False, "draw the views of a batch at one time, so that deformation is computed once"
    )
    position_lr_init: float = option(1.6e-4, "learning rate of positions, times the scene extent")
    position_lr_final: float = option(1.6e-6, "its final value, times the scene extent")
    position_lr_max_steps: int = option(
        20000, "steps of the log-linear decay; 0: the stage's length"
    )
    deformation_lr_init: float = option(1.6e-4, "HexPlane decoder, times the scene extent")
    deformation_lr_final: float = option(1.6e-5, "its final value, times the scene extent")
    grid_lr_init: float = option(1.6e-3, "HexPlane planes, times the scene extent")
    grid_lr_final: float = option(1.6e-4, "its final value, times the scene extent")
    embnet_lr_init: float = option(1.6e-4, "embedding expert's network, times the scene extent")
    embnet_lr_final: float = option(1.6e-5, "its final value, times the scene extent")
    embnet_lr_max_steps: int = option(60000, "steps of its decay; 0: the stage's length")
    scale_lr_by_extent: bool = option(
        True,
        "multiply network learning rates by the scene extent, as published; positions always are",
    )
    sh_interval: int = option(
        1000, "iterations of a stage after which colours use one more SH degree, up to sh_degree"
    )
    feature_lr: float = option(2.5e-3, "learning rate of the SH degree 0; the rest has 1/20 of it")
    opacity_lr: float = option(0.05, "learning rate of opacity logits")
    scaling_lr: float = option(5e-3, "learning rate of log-scales")
    rotation_lr: float = option(1e-3, "learning rate of quaternions")
    embedding_lr: float = option(2.5e-3, "learning rate of the per-Gaussian embeddings")
    offsets_lr: float = option(
        2e-5,
        "learning rate of the per-camera time offsets; of no use where several cameras share a "
        "deformation (batch_same_time)",
    )
    hash_grid_lr_init: float = option(8e-3, "learning rate of the hash grids' tables")
    hash_grid_lr_final: float = option(8e-5, "its final value")
    hash_net_lr_init: float = option(8e-4, "learning rate of the hash-grid expert's network")
    hash_net_lr_final: float = option(1.6e-6, "its final value")
    hash_lr_max_steps: int = option(45000, "steps of both decays; 0: the stage's length")
    movelr: float = option(
        3.5, "polynomial expert: learning rate of its motion, as a multiple of half the positions'"
    )
    omega_lr: float = option(1e-4, "polynomial expert: learning rate of its rotation velocity")
    trbfc_lr: float = option(1e-4, "polynomial expert: learning rate of the temporal centres")
    trbfs_lr: float = option(0.03, "polynomial expert: learning rate of the temporal log-widths")
    keyframe_lr: float = option(
        3.5, "keyframe expert: learning rate of positions, as a multiple of the canonical ones'"
    )
    keyframe_rotation_lr: float = option(1e-3, "keyframe expert: learning rate of quaternions")
    keyframe_span_lr: float = option(
        1e-3, "keyframe expert: learning rate of the moments between which a Gaussian is visible"
    )
    keyframe_fade_lr: float = option(
        0.01, "keyframe expert: learning rate of the log-widths of fading"
    )
    weight_movelr: float = option(5e-3, "learning rate of the router's knots")
    weight_movelr_final: float = option(5e-4, "its final value")
    weight_lr_max_steps: int = option(20000, "steps of its decay; 0: the stage's length")
    balance_weight: float = option(
        0.0, "weight of the load balance of the gates: 0 for equal use of the experts"
    )
    entropy_weight_init: float = option(
        0.0, "weight of the gates' entropy at the start of the fine stage; negative keeps them even"
    )
    entropy_weight_final: float = option(
        0.0, "the same at its end, linear in between; positive makes gates decide"
    )
    exposure_lr: float = option(1e-3, "learning rate of the per-camera colour transforms")
    gaiting_from_iter: int = option(
        0, "fine iteration at which the router takes over from the warm-up"
    )
    warmup_gate: str = option(
        "random",
        "gates before that: random per Gaussian and render, or uniform",
        choices=("random", "uniform"),
    )
    loss: str = option("l1", "photometric loss", choices=("l1", "l2", "charbonnier"))
    lambda_dssim: float = option(0.0, "weight of 1 - SSIM")
    camera_color: bool = option(
        False,
        "learn an affine colour transform per training camera (for rigs that differ in colour)",
        structural=True,
    )
    tf32: bool = option(
        False, "matrix products on a GPU keep 10 bits of the mantissa (quality not measured)"
    )
    nonfinite: str = option(
        "stop",
        "a loss or gradient that is not finite: stop = end with a line that names it; skip = leave "
        "that step out and say so, 20 in a row still end the run (on a GPU every step then waits)",
        choices=("stop", "skip"),
    )
    percent_dense: float = option(
        0.01, "split rather than clone above this scale, times the scene extent"
    )
    densify_from_iter: int = option(500, "densify after this iteration, in each stage")
    densify_until_iter: int = option(15000, "last iteration of density control, in each stage")
    densification_interval: int = option(100, "iterations between densifications")
    densify_grad_threshold_coarse: float = option(
        2e-4, "mean screen gradient (NDC) that densifies, coarse stage"
    )
    densify_grad_threshold_fine_init: float = option(
        2e-4, "the same at the start of the fine stage"
    )
    densify_grad_threshold_after: float = option(2e-4, "the same at the end of densification")
    opacity_threshold_coarse: float = option(0.005, "prune below this opacity, coarse stage")
    opacity_threshold_fine_init: float = option(0.005, "the same at the start of the fine stage")
    opacity_threshold_fine_after: float = option(0.005, "the same at the end of densification")
    pruning_from_iter: int = option(500, "prune after this iteration, in each stage")
    pruning_interval: int = option(100, "iterations between prunings")
    prune_min_gaussians: int = option(200000, "prune only above this count (published: hard-coded)")
    max_gaussians: int = option(
        360000, "densify only below this count (published: hard-coded), and never beyond it"
    )
    max_screen_size: float = option(
        20.0, "prune above this radius in pixels, once opacity has been reset"
    )
    max_world_scale: float = option(0.1, "prune above this scale times the scene extent, likewise")
    opacity_reset_interval: int = option(3000, "iterations between opacity resets")


@dataclass
class ModelHiddenParams:
    """The HexPlane expert, the router and the mixture."""

    experts: list[str] = option(
        ["hexplane", "embedding"], "experts of the mixture, in order", structural=True
    )
    static: bool = option(False, "no deformation at all: the baseline", structural=True)
    kplanes_config: dict = option(
        {
            "grid_dimensions": 2,
            "input_coordinate_dim": 4,
            "output_coordinate_dim": 32,
            "resolution": [64, 64, 64, 25],
        },
        "HexPlane: channels and base resolution [x, y, z, t]",
        structural=True,
    )
    multires: list[int] = option(
        [1, 2, 4, 8], "multipliers of the spatial resolution, a level each", structural=True
    )
    net_width: int = option(64, "width of the HexPlane decoder", structural=True)
    defor_depth: int = option(1, "depth of its trunk; 0 and 1 are the same", structural=True)
    no_dx: bool = option(False, "HexPlane does not move positions", structural=True)
    no_ds: bool = option(False, "HexPlane does not change scales", structural=True)
    no_dr: bool = option(False, "HexPlane does not change rotations", structural=True)
    no_do: bool = option(True, "HexPlane does not change opacities", structural=True)
    no_dshs: bool = option(True, "HexPlane does not change colours", structural=True)
    zero_init_heads: bool = option(
        False,
        "start deformation heads at zero: the fine stage begins where the coarse one ended",
        structural=False,
    )
    plane_tv_weight: float = option(1e-4, "weight of the smoothness of the space planes")
    time_smoothness_weight: float = option(1e-2, "weight of the smoothness in time")
    l1_time_planes: float = option(1e-4, "weight of |1 - space-time plane|")
    # Published: neither of the next two, and 18 knots; the published recipes say otherwise.
    MoE_mean: bool = option(
        True, "mix positions over the experts, else the first expert's", structural=True
    )
    MoE_rotation: bool = option(True, "mix rotations", structural=True)
    MoE_scale: bool = option(False, "mix scales", structural=True)
    MoE_opacity: bool = option(False, "mix opacities", structural=True)
    MoE_sh: bool = option(False, "mix colours", structural=True)
    gate: str = option(
        "softmax",
        "softmax; published (standardised logits; learns nothing with two experts); or sum (no "
        "router: all gates are 1)",
        choices=("softmax", "published", "sum"),
        structural=True,
    )
    mixing: str = option(
        "delta",
        "delta: canonical + gated deltas; published: guests see detached canonical Gaussians",
        choices=("delta", "published"),
    )
    temp: float = option(1.0, "temperature of the softmax gate", structural=True)
    moe_top_k: int = option(2, "experts kept per Gaussian; 0: all", structural=True)
    control_num: int = option(
        3,
        "knots of the router's spline in time; 0: by the clip's length (2 + frames / 15, 3 to 12)",
        structural=True,
    )


@dataclass
class ModelEmbParams:
    """The per-Gaussian embedding expert (E-D3DGS)."""

    emb_net_width: int = option(64, "width of its networks", structural=True)
    emb_defor_depth: int = option(1, "depth of its trunks; 0 and 1 are the same", structural=True)
    emb_min_embeddings: int = option(30, "rows of the temporal table at the start", structural=True)
    emb_max_embeddings: int = option(150, "rows of the temporal table at the end", structural=True)
    emb_temporal_embedding_dim: int = option(256, "columns of the temporal table", structural=True)
    emb_gaussian_embedding_dim: int = option(
        32, "size of the per-Gaussian embedding", structural=True
    )
    emb_c2f_temporal_iter: int = option(
        20000, "iterations over which the rows grow", structural=True
    )
    emb_no_c2f_temporal_embedding: bool = option(False, "all rows from the start", structural=True)
    emb_use_coarse_temporal_embedding: bool = option(
        False, "coarse branch keeps the minimum of rows", structural=True
    )
    emb_no_coarse_deform: bool = option(False, "without the coarse branch", structural=True)
    emb_no_fine_deform: bool = option(False, "without the fine branch", structural=True)
    emb_zero_temporal: bool = option(False, "temporal table starts at zero")
    emb_no_ds: bool = option(False, "does not change scales", structural=True)
    emb_no_dr: bool = option(False, "does not change rotations", structural=True)
    emb_no_do: bool = option(True, "does not change opacities", structural=True)
    emb_no_dc: bool = option(False, "does not change colours", structural=True)
    emb_use_anneal: bool = option(
        True, "fade the deltas in over the first 1000 iterations", structural=True
    )
    emb_deform_from_iter: int = option(
        0,
        "with emb_use_anneal, fade scale, opacity and colour in from this iteration",
        structural=True,
    )
    emb_smooth_weight: float = option(
        0.0, "weight of the local smoothness of embeddings (E-D3DGS: 1.0; MoDE: none)"
    )


@dataclass
class ModelHashParams:
    """The hash-grid expert (Grid4D)."""

    grid_args: dict = option(
        {
            "canonical_num_levels": 16,
            "canonical_level_dim": 2,
            "canonical_base_resolution": 16,
            "canonical_desired_resolution": 2048,
            "canonical_log2_hashmap_size": 19,
            "deform_num_levels": 32,
            "deform_level_dim": 2,
            "deform_base_resolution": [8, 8, 8],
            "deform_desired_resolution": [32, 32, 16],
            "deform_log2_hashmap_size": 19,
        },
        "hash grids: canonical_* is the one in space, deform_* the three in space and time "
        "(resolutions: space, space, time)",
        structural=True,
    )
    network_args: dict = option(
        {"depth": 1, "width": 256, "directional": True},
        "its network: hidden layers, width, attention in (-1, 1) rather than (0, 1)",
        structural=True,
    )
    hash_field: str = option(
        "contracted",
        "contracted: the box of the points, the rest of space squeezed around it; for imported "
        "models mode or grid4d: a cube around the origin, nothing outside it, as published",
        choices=("contracted", "mode", "grid4d"),
        structural=True,
    )
    hash_bound: float = option(
        1.6, "half the side of that cube, world units (mode and grid4d only)", structural=True
    )
    hash_no_ds: bool = option(False, "does not change scales", structural=True)
    hash_no_dr: bool = option(False, "does not change rotations", structural=True)
    hash_space_smooth_weight: float = option(
        0.5, "weight of the smoothness of the grid in space (MoDE computes it and adds nothing)"
    )
    hash_time_smooth_weight: float = option(
        0.5, "weight of the smoothness of the grids in space and time (likewise)"
    )
    hash_smooth_ratio: float = option(0.1, "share of the Gaussians that both are measured on")
    hash_space_perturb: float = option(
        3e-3, "largest offset along an axis that they compare over, as a share of the grid"
    )
    hash_time_perturb: float = option(
        3e-4, "the same along the time axis, as a share of the clip; 0: none"
    )


@dataclass
class ModelMotionParams:
    """The experts without a network: polynomials and keyframes per Gaussian."""

    trbf_scale_init: float = option(
        1.0, "polynomial expert: initial log-width of visibility in clips (STG: 0)"
    )
    trbf_spread: bool = option(
        False,
        "polynomial expert: temporal centres start anywhere in the clip, and so do those of clones "
        "and children (STG); else all in its middle",
    )
    keyframe_num: int = option(
        6, "keyframe expert: keyframes, evenly spaced over the clip", structural=True
    )
    keyframe_opacity: bool = option(
        False,
        "keyframe expert: Gaussians are visible between two moments of their own (Ex4DGS)",
        structural=True,
    )
    keyframe_fade_init: float = option(
        -0.5, "keyframe expert: initial log-width of fading, in clips, with --keyframe_opacity"
    )
    keyframe_sets: bool = option(
        False,
        "keyframe expert: Gaussians start static, on a line, and those that move farthest become "
        "dynamic, with keyframes (Ex4DGS)",
        structural=True,
    )
    keyframe_extract_interval: int = option(
        100, "keyframe expert: fine iterations after which static Gaussians become dynamic"
    )
    keyframe_extract_share: float = option(
        0.02, "keyframe expert: share of the static Gaussians that do (Ex4DGS: 0.01 to 0.02)"
    )


@dataclass
class MoEParams:
    """Which models `train_moe.py` mixes; no part of the settings of any one of them."""

    members: list[str] = option(
        [],
        "models to train: an expert's name, several joined with + for a mixture of them in one "
        "model, mode (hexplane+embedding), or a name that ExpertParams in the recipe gives experts",
    )


@dataclass
class RouterParams:
    """The pixel router and how it is trained."""

    router: str = option(
        "volume_aware",
        "volume_aware; or an ablation: pixel (rays and time only) or volume (weights scale the "
        "Gaussians' opacities)",
        choices=("volume_aware", "pixel", "volume"),
    )
    router_iterations: int = option(5000, "iterations of the router's training")
    router_batch_size: int = option(1, "views per iteration, of one time")
    temperature_init: float = option(
        1.0, "temperature of the softmax over the experts at the start of training"
    )
    temperature_final: float = option(
        0.1, "the same at its end and when rendering, log-linear in between"
    )
    temperature: str = option(
        "annealed",
        "annealed: as above; published: 0.01 in training and 1 when rendering, as released",
        choices=("annealed", "published"),
    )
    init_mixprob: float = option(0.9, "initial value of the Gaussians' weights")
    mask_lr: float = option(0.5, "learning rate of w and w_dir")
    mask_lr_final: float = option(
        0.005, "its final value (published: 0.05, a hundredth after twice the iterations)"
    )
    time_lr: float = option(0.05, "learning rate of w_time")
    network_lr: float = option(0.05, "learning rate of the network")
    router_lambda_dssim: float = option(0.2, "share of 1 - SSIM in the loss; L1 has the rest")
    shared_transmittance: bool = option(
        False, "draw all experts' Gaussians through one transmittance rather than each its own"
    )
    router_seed: int = option(0, "seed of the order of views and of the network")


@dataclass
class Config:
    """A whole run, resolved."""

    ModelParams: ModelParams = field(default_factory=ModelParams)
    OptimizationParams: OptimizationParams = field(default_factory=OptimizationParams)
    ModelHiddenParams: ModelHiddenParams = field(default_factory=ModelHiddenParams)
    ModelEmbParams: ModelEmbParams = field(default_factory=ModelEmbParams)
    ModelHashParams: ModelHashParams = field(default_factory=ModelHashParams)
    ModelMotionParams: ModelMotionParams = field(default_factory=ModelMotionParams)

    @property
    def model(self) -> ModelParams:
        """The scene and how it is read."""
        return self.ModelParams

    @property
    def opt(self) -> OptimizationParams:
        """Schedules, losses and density control."""
        return self.OptimizationParams

    @property
    def hidden(self) -> ModelHiddenParams:
        """HexPlane, router and mixture."""
        return self.ModelHiddenParams

    @property
    def emb(self) -> ModelEmbParams:
        """The embedding expert."""
        return self.ModelEmbParams

    @property
    def hash(self) -> ModelHashParams:
        """The hash-grid expert."""
        return self.ModelHashParams

    @property
    def motion(self) -> ModelMotionParams:
        """The polynomial and the keyframe expert."""
        return self.ModelMotionParams

    def as_dict(self) -> dict[str, dict[str, Any]]:
        """Section name -> field name -> value, ready for JSON."""
        return {
            section.name: {
                f.name: getattr(getattr(self, section.name), f.name)
                for f in fields(getattr(self, section.name))
            }
            for section in fields(self)
        }
