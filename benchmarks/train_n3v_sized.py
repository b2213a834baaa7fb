"""Times training of MoDE at the size of a Neural 3D Video clip, on a synthetic scene.

    python benchmarks/train_n3v_sized.py --device cuda --cameras 20 --frames 300 --size 1352 1014 \
        --gaussians 150000 --batch 2 --iterations 200 > train.json
    python benchmarks/train_n3v_sized.py                       # seconds, on a CPU

Iterations are of the fine stage with the router on, density statistics gathered and the number of
Gaussians fixed. ``ms_mean`` is wall-clock time over all iterations, logging included; on a GPU
``ms_median`` is between its own events. ``minutes`` extrapolates the mean to a whole run, whose
coarse stage is in truth cheaper. ``parts_ms`` are medians of a second pass; they leave out what is
between them. On a CPU ``products`` are the matrix products: how many floating-point operations an
iteration has in them, their share of its time, and the part of this machine's peak that they reach,
which `light.py` measures in the same run: a large product of the same kind.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import utils.threads  # noqa: F401  (before torch, as in training and rendering)

# isort: split
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

import light
import n3v_sized
import scene.experts.heads
import training.trainer
from training.reports import Report
from training.trainer import Plan, Trainer

RUN = 33_000  # iterations of a whole run: 3000 coarse, 30000 fine
# The decoders' operator is counted as a whole: it does little else.
PRODUCTS = {"aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "_Decode", "_DecodeBackward"}
START = 4000  # fine iteration to begin at: the router decides, densification goes on


def build_trainer(arguments, folder: Path) -> Trainer:
    """A trainer in the middle of the fine stage."""
    config = n3v_sized.build_config(arguments)
    config.opt.batch_size, config.opt.batch_same_time = arguments.batch, arguments.same_time
    scene = n3v_sized.build_scene(arguments)
    model = n3v_sized.build_trained(scene, config)
    report = Report(folder, quiet=True)
    trainer = Trainer(model, scene, config, Plan(folder), report, arguments.device)
    trainer._start_stage("fine")
    trainer.progress.iteration = START
    trainer.model.train()
    return trainer


def whole(trainer: Trainer, clock: n3v_sized.Clock, iterations: int) -> dict[str, float]:
    """Milliseconds of an iteration."""
    clock.wait()
    started, moments = time.perf_counter(), [clock.now()]
    for _ in range(iterations):
        trainer.iterate()
        moments.append(clock.now())
    clock.wait()
    mean = 1e3 * (time.perf_counter() - started) / iterations
    each = [clock.ms(a, b) for a, b in zip(moments, moments[1:], strict=False)]
    return {
        "ms_median": round(statistics.median(each), 3),
        "ms_max": round(max(each), 3),
        "ms_mean": round(mean, 3),
        "minutes": round(mean * RUN / 60e3, 2),
    }


@contextmanager
def counted_decoders() -> Iterator[list[int]]:
    """Collects the floating-point operations of the decoders' native operator, forward + backward.

    Three products of each layer: its values, and the gradients of its inputs and of its weights.
    That the backward pass computes activations again is not counted: it could keep them.
    """
    found: list[int] = []
    plain = scene.experts.heads.hexplane_encoder.decode

    def counting(inputs, before, inner, last, *rest):
        weights = [inner[0], *(weight for weight, _ in last)]
        weights += [] if before is None else [before[0]]
        found.append(3 * 2 * len(inputs) * sum(weight.numel() for weight in weights))
        return plain(inputs, before, inner, last, *rest)

    scene.experts.heads.hexplane_encoder.decode = counting
    try:
        yield found
    finally:
        scene.experts.heads.hexplane_encoder.decode = plain


def products(trainer: Trainer, iterations: int) -> dict[str, float]:
    """What the matrix products of an iteration are, and how fast."""
    counter = FlopCounterMode(display=False)
    with counter, counted_decoders() as decoded:
        trainer.iterate()
    operations = counter.get_total_flops() + sum(decoded)
    with profile(activities=[ProfilerActivity.CPU]) as found:
        started = time.perf_counter()
        for _ in range(iterations):
            trainer.iterate()
        seconds = (time.perf_counter() - started) / iterations
    events = [event for event in found.key_averages() if event.key in PRODUCTS]
    spent = 1e-6 * sum(event.self_cpu_time_total for event in events) / iterations
    peak, reached = light.multiply_add_peak(), operations / max(spent, 1e-9)
    return {
        "gigaflop": round(1e-9 * operations, 3),
        "ms": round(1e3 * spent, 3),
        "share": round(spent / seconds, 3),
        "gigaflop_per_second": round(1e-9 * reached, 1),
        "peak_gigaflop_per_second": round(1e-9 * peak, 1),
        "of_peak": round(reached / peak, 3),
    }


def parts(trainer: Trainer, clock: n3v_sized.Clock, iterations: int) -> dict[str, float]:
    """Milliseconds of the parts of an iteration; the trainer is not fit for use afterwards."""
    watch, modules = n3v_sized.Stopwatch(clock), (training.trainer, torch.Tensor)
    kept = training.trainer.render, torch.Tensor.backward
    named = {
        "data": [(trainer, "_next_batch"), (trainer.targets, "take")],
        "deform": [(trainer.model, "deform")],
        "raster": [(modules[0], "render")],
        "loss": [(trainer, "_loss_terms"), (trainer.checks, "loss")],
        "backward": [(modules[1], "backward")],
        "checks": [(trainer.checks, "gradients"), (trainer.checks, "read")],
        "density": [(trainer.density, "observe"), (trainer.density, "step")],
        "optimizer": [(trainer.optimizer, "step")],
    }
    for part, functions in named.items():
        for owner, name in functions:
            setattr(owner, name, watch.timed(part, getattr(owner, name)))
    try:
        for _ in range(iterations):
            watch.round()
            trainer.iterate()
    finally:
        modules[0].render, modules[1].backward = kept
    return {part: round(ms, 3) for part, ms in watch.medians().items()}


def main() -> None:
    """Prints one JSON object."""
    parser = n3v_sized.parser(__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--same-time", action="store_true", help="views of a batch share a time")
    parser.add_argument("--warm-up", type=int, default=3, help="iterations before the timed ones")
    parser.add_argument("--iterations", type=int, default=10, help="timed iterations of each pass")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    clock = n3v_sized.Clock(arguments.device)
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(arguments, Path(folder))
        for _ in range(arguments.warm_up):
            trainer.iterate()
        numbers = whole(trainer, clock, arguments.iterations)
        memory = n3v_sized.peak_gb(arguments.device)
        if arguments.device == "cpu":
            numbers["products"] = products(trainer, arguments.iterations)
        numbers["parts_ms"] = parts(trainer, clock, arguments.iterations)
        trainer.report.close()
    result = {**n3v_sized.facts(arguments), **numbers, "peak_gb": round(memory, 3)}
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
