"""Whether a training fits the memory, asked before it starts.

What is counted is what must be there: parameters, gradients and Adam's two moments in float32, a
copy of parameters and moments on the host while a checkpoint is written, and the images of a batch
with their gradients. What rendering and deformation need on top is not, so that nothing is refused
which could have run.
"""

from __future__ import annotations

import sys

import torch

from arguments_MoDE.config import Config
from scene import Scene
from scene.mixture import MoDE
from utils.errors import UserError
from utils.memory import available_memory

FLOAT = 4  # bytes
IMAGES = 4  # float copies of a batch that live at once: image, target, loss, gradient


def needed_bytes(model: MoDE, config: Config, scene: Scene, count: int) -> tuple[int, int]:
    """Bytes that training ``count`` Gaussians takes beside the model's own parameters.

    Returns:
        Where it is computed (gradients, moments, images), and on the host while saving.
    """
    per_gaussian = sum(model.gaussians[n][0].numel() for n in model.gaussians.names)
    floats = count * per_gaussian + sum(p.numel() for p in model.experts.parameters())
    largest = max(view.camera.width * view.camera.height for view in scene.train)
    pixels = config.opt.batch_size * largest
    more = (count - len(model.gaussians)) * per_gaussian  # parameters that do not exist yet
    return FLOAT * (3 * floats + more + 3 * IMAGES * pixels), FLOAT * 3 * floats


def check_memory(model: MoDE, config: Config, scene: Scene, device: str) -> None:
    """Looks at the memory that is left, of the host and of the GPU.

    Raises:
        UserError: not even the first iteration can fit; the line says how much it takes.
    """
    on_host = device == "cpu"
    left = available_memory() if on_host else torch.cuda.mem_get_info(device)[0]
    if left is None:
        return
    now = _needed(model, config, scene, len(model.gaussians), on_host)
    later = _needed(model, config, scene, max(len(model.gaussians), _limit(config)), on_host)
    if now > left:
        raise UserError(
            f"--device {device}: {len(model.gaussians)} Gaussians and a batch of "
            f"{config.opt.batch_size} need at least {now / 1e9:.1f} GB, {left / 1e9:.1f} GB are "
            f"free: use fewer points (--max_points), a lower resolution (-r) or a smaller batch"
        )
    if later > left:
        print(
            f"warning: if densification reaches --max_gaussians {config.opt.max_gaussians}, "
            f"training needs at least {later / 1e9:.1f} GB, {left / 1e9:.1f} GB are free",
            file=sys.stderr,
        )


def _needed(model: MoDE, config: Config, scene: Scene, count: int, on_host: bool) -> int:
    computing, saving = needed_bytes(model, config, scene, count)
    return computing + (saving if on_host else 0)


def _limit(config: Config) -> int:
    return config.opt.max_gaussians if config.opt.densify_until_iter > 0 else 0
