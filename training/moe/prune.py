"""Gate-aware pruning: Gaussians that the gates do not depend on leave the experts.

The importance of Gaussian i of expert k is the mean over training views of the norm of its gates'
gradient by the Gaussian's three weights (MoE-GS, equation 10)::

    E_i = mean over views of || d(mean over pixels of gate_k) / d[w, w_dir, t w_time]_i ||

taken with the other experts' logits held: summed over the experts the gates are 1, and the gradient
of that is 0. The paper does not say how the pixels of a view are put together; here by their mean.

Where a gate is as good as 0 or 1 its gradient vanishes, however much the Gaussian is seen: gates
that decide sharply make this importance blind to what is trusted most. ``blend`` is the other one
offered: a Gaussian's weight in the blended picture, mean of gate_k T_i alpha_i.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from arguments_MoDE.moe import PruneArguments, parse_prune
from arguments_MoDE.saved import save_config
from scene import Scene, View, load_scene
from training.checkpoint import (
    STATE_KEYS,
    latest_checkpoint,
    load_state,
    recover,
    save_model,
    save_state,
)
from training.evaluation import evaluate_views, evenly_spaced, measure_fps
from training.launch import (
    check_apart,
    check_writable,
    clear_shown,
    is_run,
    set_precision,
)
from training.moe.files import (
    IMPORT,
    Member,
    MoERun,
    check_scene,
    check_untouched,
    device_of,
    folder_bytes,
    is_imported,
    load_moe,
    router_folder,
    save_router,
    write_settings,
)
from training.moe.model import MoEGS
from training.moe.views import MoEViewRenderer
from utils.errors import UserError
from utils.files import make_folder, remove_folder, sole_user, write_json
from utils.interrupts import DelayedInterrupt
from utils.verify import digest, plain_file

PROG = "train_moe.py prune"
DESCRIPTION = (
    "Remove the Gaussians of a MoE's experts that count least in the picture, or to its gates."
)
PARTS = ("experts", "router", "checkpoint")


def gate_importance(
    model: MoEGS, view: View, background: Tensor, temperature: float, kind: str
) -> dict[str, Tensor]:
    """Expert -> (N,) importance of its Gaussians at one view; see the module's text.

    Args:
        kind: ``gate`` or ``blend``.
    """
    names = list(model.experts)
    with torch.no_grad():
        splats = [model.splats(name, view.time) for name in names]
        own = [model.router.features(name, view.time) for name in names]
    leaves = [
        torch.ones(len(part.means), 3, device=part.means.device) if value is None else value
        for part, value in zip(splats, own, strict=True)
    ]
    if kind == "gate":
        leaves = [leaf.requires_grad_() for leaf in leaves]
        blend = model.blend(
            [view.camera], names, splats, leaves, view.time, background, temperature
        )
        aim = _held_gates(blend.logits / temperature).mean((0, 2, 3)).sum()
        return dict(zip(names, _norms(aim, leaves), strict=True))
    with torch.no_grad():
        features = None if own[0] is None else own
        gates = model.blend(
            [view.camera], names, splats, features, view.time, background, temperature
        ).gates
    return dict(zip(names, _blend_weights(model, view, splats, gates, background), strict=True))


def _held_gates(logits: Tensor) -> Tensor:
    """(B, E, H, W) gates, each with the gradient of its own logit only."""
    others = torch.stack(
        [
            torch.cat([logits[:, :k], logits[:, k + 1 :]], dim=1).logsumexp(1)
            for k in range(logits.shape[1])
        ],
        dim=1,
    )
    return torch.sigmoid(logits - others.detach())


def _norms(aim: Tensor, leaves: Sequence[Tensor]) -> list[Tensor]:
    return [gradient.norm(dim=1) for gradient in torch.autograd.grad(aim, leaves)]


def _blend_weights(
    model: MoEGS, view: View, splats: Sequence, gates: Tensor, background: Tensor
) -> list[Tensor]:
    """(N,) per expert: mean over pixels of gate x T x alpha, as a gradient by a feature of 1."""
    ones = [torch.ones(len(s.means), 1, device=s.means.device).requires_grad_() for s in splats]
    splatted = model.layers([view.camera], splats, ones, background).features
    aim = (gates[:, :, None] * splatted).mean((0, 2, 3, 4)).sum()
    return [gradient[:, 0] for gradient in torch.autograd.grad(aim, ones)]


class Importance:
    """Sums the importance of all Gaussians, view by view; the sums can be saved and continued."""

    def __init__(self, run: MoERun, scene: Scene, arguments: PruneArguments, device: str) -> None:
        """Nothing is summed yet."""
        self.run, self.arguments = run, arguments
        limit = arguments.views or None
        self.views = [scene.train[i] for i in evenly_spaced(len(scene.train), limit)]
        self.background = torch.tensor(scene.background, device=device)
        self.sums = {
            name: torch.zeros(len(expert.gaussians), device=device)
            for name, expert in run.model.experts.items()
        }
        self.done, self._saved = 0, time.monotonic()

    def measure(self) -> dict[str, Tensor]:
        """Expert -> (N,) mean importance; a signal leaves a checkpoint behind."""
        bar = tqdm(
            total=len(self.views),
            initial=self.done,
            desc="importance",
            disable=self.arguments.quiet,
        )
        with DelayedInterrupt() as interrupt, bar:
            for view in self.views[self.done :]:
                found = gate_importance(
                    self.run.model,
                    view,
                    self.background,
                    self.run.temperature,
                    self.arguments.importance,
                )
                for name, values in found.items():
                    self.sums[name] += values
                self.done += 1
                bar.update()
                if interrupt.requested is not None or self._late():
                    self.save()
                interrupt.stop()
        self.save()  # what follows can be done anew from here, with another share too
        return {name: total / len(self.views) for name, total in self.sums.items()}

    def _late(self) -> bool:
        return time.monotonic() - self._saved >= 60 * self.arguments.checkpoint_minutes > 0

    def save(self) -> Path:
        """Writes what `restore` needs and returns the folder."""
        folder = self.arguments.model_path / "checkpoint" / f"prune_{self.done}"
        info = {"config": _facts(self.run, self.arguments), "progress": self.done, "queue": []}
        save_state(folder, self.sums, info)
        self._saved = time.monotonic()
        return folder

    def restore(self, checkpoint: Path) -> None:
        """Continues where `save` stopped.

        Raises:
            UserError: it is of another MoE or of other settings.
        """
        tensors, info = load_state(checkpoint, STATE_KEYS)
        for key, value in _facts(self.run, self.arguments).items():
            if info["config"].get(key) != value:
                raise UserError(
                    f"--resume: {checkpoint} was made with another {key}; use the same, "
                    f"or --overwrite"
                )
        self.done = int(info["progress"])
        for name, value in tensors.items():
            self.sums[name].copy_(value)


def _facts(run: MoERun, arguments: PruneArguments) -> dict[str, Any]:
    router = router_folder(run.model_path, run.iteration) / "manifest.json"
    return {
        "experts": {n: Member.of(n, r).sha256 for n, r in run.runs.items()},
        "router": digest(router),
        "--importance": arguments.importance,
        "--views": arguments.views,
    }


def kept_rows(
    importance: dict[str, Tensor], arguments: PruneArguments
) -> tuple[dict[str, Tensor], float]:
    """Expert -> rows (int64, ascending) of the Gaussians that stay, and the least importance there.

    Those below the threshold go, or just the share asked for of all experts' Gaussians: of equal
    ones (many may have none at all) the first rows go first.
    """
    values = torch.cat(list(importance.values()))
    if arguments.threshold is not None:
        kept, limit = values >= arguments.threshold, arguments.threshold
    else:
        order = values.sort(stable=True).indices
        removed = round(arguments.share * len(values))
        kept = torch.ones_like(values, dtype=torch.bool)
        kept[order[:removed]] = False
        limit = float(values[kept].min()) if removed < len(values) else float(values.max())
    parts = kept.split([len(own) for own in importance.values()])
    rows = {name: p.nonzero()[:, 0] for name, p in zip(importance, parts, strict=True)}
    return rows, limit


def keep_rows(run: MoERun, rows: dict[str, Tensor]) -> None:
    """Leaves only ``rows`` (int64) of every expert's Gaussians, and of the router's weights."""
    for name, kept in rows.items():
        gaussians = run.model.experts[name].gaussians
        for key in gaussians.names:
            gaussians.values[key] = nn.Parameter(gaussians[key].detach()[kept], requires_grad=False)
        if name in run.model.router.gaussians:
            own = run.model.router.gaussians[name]
            for key in list(own):
                own[key] = nn.Parameter(own[key].detach()[kept])


def _measured(run: MoERun, scene: Scene, device: str) -> dict[str, Any]:
    """Quality on all test views, size and speed."""
    render = MoEViewRenderer(run.model, scene, run.params)
    fps, _ = measure_fps(render, scene.test or scene.train, device, seconds=3.0)
    return {
        "gaussians": {n: len(e.gaussians) for n, e in run.model.experts.items()},
        "fps": fps,
        **evaluate_views(render, scene.test),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Prunes as the command line says; returns the exit code."""
    arguments = parse_prune(argv, PROG, DESCRIPTION)
    folder = arguments.model_path
    check_writable(folder)
    run = load_moe(Path(arguments.moe))
    check_untouched(folder, run)
    _check_kind(run, arguments)
    checkpoint = _starting_point(arguments)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = device_of(arguments.device, run.runs, quiet=arguments.quiet)
    set_precision(run.config)
    run.model.to(device)
    if arguments.source_path:
        for part in run.runs.values():  # all are saved
            part.config.model.source_path = arguments.source_path
    check_apart(folder, run.config.model.source_path)
    scene = load_scene(run.config.model)
    check_scene(run.runs, scene)
    with ExitStack() as held:
        make_folder(folder)
        held.enter_context(sole_user(folder))
        if arguments.overwrite:
            clear_shown(folder)
        if checkpoint is None:
            _clear(folder)
        sums = Importance(run, scene, arguments, device)
        if checkpoint is not None:
            sums.restore(checkpoint)
        importance = sums.measure()
        record = _prune(run, scene, importance, arguments, device)
    print(_table(record))
    print(f"saved to {folder}")
    return 0


def _check_kind(run: MoERun, arguments: PruneArguments) -> None:
    kind = run.params.router
    if kind == "volume" or (arguments.importance == "gate" and not run.model.router.splats):
        raise UserError(
            f"{arguments.moe} has a router of the kind {kind}, whose gates do not depend on "
            f"weights of Gaussians: train one with --router volume_aware"
            + ("" if kind == "volume" else ", or take --importance blend")
        )


def _starting_point(arguments: PruneArguments) -> Path | None:
    """Refuses a run folder that cannot be used; returns the checkpoint to go on from, if any."""
    folder = arguments.model_path
    if is_run(folder):
        raise UserError(f"{folder} holds the run of a single model: choose another --expname")
    if folder.exists():
        with sole_user(folder):  # an early answer, and nobody's work that is tidied up
            recover(folder, PARTS)
    begun = any((folder / "checkpoint").glob("prune_*/state.json"))
    if (folder / "experts").exists() and not begun and not (folder / "prune.json").exists():
        raise UserError(
            f"{folder} holds experts that no pruning made ({folder / 'experts'}): choose another "
            f"--expname"
        )
    found = [name for name in (*PARTS, "moe.json") if (folder / name).exists()]
    if not found or arguments.overwrite:
        return None
    if "moe.json" in found or not arguments.resume:
        raise UserError(
            f"{folder} holds something already ({found[0]}): --overwrite replaces it, --resume "
            f"continues an interrupted pruning, or choose another --expname"
        )
    return latest_checkpoint(folder, STATE_KEYS)


def _clear(folder: Path) -> None:
    for name in PARTS:
        remove_folder(folder / name)
    for name in ("moe.json", "prune.json", "metrics.json", "metrics.jsonl"):
        (folder / name).unlink(missing_ok=True)


def _prune(
    run: MoERun,
    scene: Scene,
    importance: dict[str, Tensor],
    arguments: PruneArguments,
    device: str,
) -> dict[str, Any]:
    """Removes the Gaussians and writes the smaller MoE; returns numbers before and after."""
    folder = arguments.model_path
    rows, limit = kept_rows(importance, arguments)
    empty = [name for name, kept in rows.items() if not len(kept)]
    if empty:
        raise UserError(
            f"nothing would be left of expert {empty[0]}: lower --share or --threshold (--resume "
            f"measures nothing again), or leave the expert out when the router is trained"
        )
    before = _measured(run, scene, device) | {"bytes_on_disk": folder_bytes(run)}
    keep_rows(run, rows)
    after = _measured(run, scene, device)
    for name in PARTS[:2]:
        remove_folder(folder / name)  # of a pruning that was killed here
    members = []
    for name, part in run.runs.items():
        place = folder / "experts" / name
        save_model(run.model.experts[name], place, part.iteration, part.training_seconds)
        part.config.model.model_path = str(place)
        save_config(part.config, place / "config.json")
        if is_imported(part):
            shutil.copyfile(plain_file(part.model_path / IMPORT), place / IMPORT)
        part.model_path = place
        members.append(Member.of(name, part))
    save_router(run.model, folder, run.iteration, run.training_seconds)
    after["bytes_on_disk"] = folder_bytes(run, folder)
    record = {
        "moe": arguments.moe,
        "importance": arguments.importance,
        "threshold": limit,
        "views": min(arguments.views or len(scene.train), len(scene.train)),
        "before": before,
        "after": after,
    }
    write_json(folder / "prune.json", record)
    write_settings(folder, run.params, members)  # last: with it the folder is a MoE's
    shutil.rmtree(folder / "checkpoint", ignore_errors=True)
    return record


def _table(record: dict[str, Any]) -> str:
    lines = [f"{'':8}{'PSNR':>8}{'SSIM':>8}{'Gaussians':>11}{'MB':>8}{'fps':>8}"]
    for name in ("before", "after"):
        own = record[name]
        count, size = sum(own["gaussians"].values()), own["bytes_on_disk"] / 1e6
        quality = [f"{own[k]:8.2f}" if k in own else f"{'-':>8}" for k in ("psnr", "ssim")]
        lines.append(f"{name:8}{''.join(quality)}{count:11d}{size:8.1f}{own['fps']:8.1f}")
    return "\n".join(lines)
