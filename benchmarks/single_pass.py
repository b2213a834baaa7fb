"""Several experts in one render against a render for each: is the single pass worth its code?

    python benchmarks/single_pass.py --threads 1
    python benchmarks/single_pass.py --case n3v --device cuda

Three sets of Gaussians (experts), each with three further features, from one camera:

    single     one call with layers, colours and features together
    joined     the same of tensors that must first be copied together
    shared     the same as single, with one transmittance of all layers
    separate   a call for each expert, colours and features together
    two_calls  two calls for each expert, colours and then features, as published

``image`` is a render without gradients; ``router`` is forward and backward where only the features
want gradients; ``all`` where everything does. Within a case all ways are run in turns, so their
ratios are of one time and one machine; `ms` are medians, `cpu_ms` the least processor time of all
threads, which other processes disturb less. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

from benchmarks import scenes
from benchmarks.clock import WARM_UP, once_ms, synchronise
from benchmarks.timing import name_of
from diff_gaussian_rasterization import DEVICES, RasterOutput, rasterize

EXPERTS, FEATURES = 3, 3
CASES = {"demo": (10_000, (256, 192)), "n3v": (100_000, (676, 507))}  # Gaussians of each, size
PASSES = {
    "image": [],
    "router": ["features"],
    "all": None,
}  # what wants gradients; None: everything


@dataclass(frozen=True)
class Experts:
    """Sets of Gaussians with features, and what all calls share."""

    gaussians: list[dict[str, Tensor]]
    common: dict  # with the background of colours and features

    @property
    def counts(self) -> list[int]:
        """Gaussians of each expert."""
        return [one["means3D"].shape[1] for one in self.gaussians]

    @property
    def leaves(self) -> list[Tensor]:
        """What wants gradients."""
        return [t for one in self.gaussians for t in one.values() if t.requires_grad]


def experts(case: str, wanted: list[str] | None, device: str) -> Experts:
    """Rooms of different seeds before the same camera."""
    count, size = CASES[case]
    rooms = [scenes.n3v(count, size, 1, seed).to(device) for seed in range(EXPERTS)]
    random = torch.Generator().manual_seed(0)
    found = []
    for room in rooms:
        features = torch.rand(1, count, FEATURES, generator=random).to(device)
        tensors = {name: t.detach() for name, t in room.gaussians.items()} | {"features": features}
        found.append(
            {n: t.requires_grad_(wanted is None or n in wanted) for n, t in tensors.items()}
        )
    common = rooms[0].cameras()[0] | rooms[0].shared()
    return Experts(found, common | {"background": torch.zeros(3 + FEATURES, device=device)})


# ---- the ways -----------------------------------------------------------------------------------


def single(e: Experts, **options) -> list[RasterOutput]:
    """One call."""
    together = {name: [one[name] for one in e.gaussians] for name in e.gaussians[0]}
    return [rasterize(**together, **e.common, **options)]


def shared(e: Experts) -> list[RasterOutput]:
    """One call with one transmittance."""
    return single(e, shared_transmittance=True)


def joined(e: Experts) -> list[RasterOutput]:
    """One call after the tensors are copied together."""
    whole = {name: torch.cat([one[name] for one in e.gaussians], 1) for name in e.gaussians[0]}
    return [rasterize(**whole, **e.common, layers=e.counts)]


def separate(e: Experts) -> list[RasterOutput]:
    """A call for each expert."""
    return [rasterize(**one, **e.common) for one in e.gaussians]


def two_calls(e: Experts) -> list[RasterOutput]:
    """Two calls for each expert."""
    outputs = []
    common = e.common | {"background": e.common["background"][:3]}
    for one in e.gaussians:
        shape = {name: t for name, t in one.items() if name not in ("shs", "features")}
        outputs.append(rasterize(**shape, **common, shs=one["shs"]))
        outputs.append(rasterize(**shape, **common, colors=one["features"]))
    return outputs


WAYS: dict[str, Callable[[Experts], list[RasterOutput]]] = {
    way.__name__: way for way in (single, joined, shared, separate, two_calls)
}


def run_once(e: Experts, way: Callable[[Experts], list[RasterOutput]], device: str) -> None:
    """One render, and its backward pass if anything wants gradients."""
    leaves = e.leaves
    with torch.set_grad_enabled(bool(leaves)):
        outputs = way(e)
    images = [out.color for out in outputs if out.color.requires_grad]
    if images:
        torch.autograd.grad(images, leaves, [torch.ones_like(image) for image in images])
    synchronise(device)


# ---- timing -------------------------------------------------------------------------------------


def measure(case: str, pass_: str, arguments: argparse.Namespace) -> dict:
    """All ways of one case in turns."""
    e, device = experts(case, PASSES[pass_], arguments.device), arguments.device
    wall: dict[str, list[float]] = {name: [] for name in WAYS}
    cpu: dict[str, list[float]] = {name: [] for name in WAYS}
    for _ in range(WARM_UP + arguments.repeats):
        for name, way in WAYS.items():
            started = time.process_time()
            wall[name].append(once_ms(partial(run_once, e, way, device), device))
            cpu[name].append(1000 * (time.process_time() - started))
    ms = {name: statistics.median(times[WARM_UP:]) for name, times in wall.items()}
    cpu_ms = {name: min(times[WARM_UP:]) for name, times in cpu.items()}
    return {
        "name": f"{case}/{pass_}",
        "ms": {name: round(value, 2) for name, value in ms.items()},
        "cpu_ms": {name: round(value, 2) for name, value in cpu_ms.items()},
        "of_single": ratios(ms),
        "cpu_of_single": ratios(cpu_ms),
    }


def ratios(ms: dict[str, float]) -> dict[str, float]:
    """How many times as long as the single pass every other way takes."""
    return {name: round(value / ms["single"], 2) for name, value in ms.items() if name != "single"}


def main() -> None:
    """Prints one JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--case", choices=CASES, help="default: all")
    parser.add_argument("--pass", dest="pass_", choices=PASSES, help="default: all")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=15, help="timed runs of each way")
    parser.add_argument("--device", choices=DEVICES, default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    cases = [arguments.case] if arguments.case else list(CASES)
    passes = [arguments.pass_] if arguments.pass_ else list(PASSES)
    found = [measure(case, pass_, arguments) for case in cases for pass_ in passes]
    where = {"device": name_of(arguments.device), "threads": torch.get_num_threads()}
    print(json.dumps({**where, "cases": found}, indent=2))


if __name__ == "__main__":
    main()
