"""The speed of light of the rasteriser on a CPU: the time of its unavoidable work alone.

    light = (pairs x arithmetic of a pair + splats x arithmetic of a splat) / threads
            + bytes / bandwidth

*Counts* (`counts`, means over the views) are of the lists of a finished render, gone through once
more. Of (pixel, splat) pairs `looked_at`: the splat's exact footprint touches the pixel's group,
those side by side that one vector holds (16 with AVX-512, 8 with AVX2, else 4), and the pixel has
not stopped: its alpha must be evaluated. `blended`: alpha is at least 1/255, too: colours and depth
are added up. `looked_at_back` and `blended` are the same of the backward pass, up to the pixel's
last contributor. `lanes` are what a kernel of whole groups evaluates on the forward pass. Of splats
`listed`: in a tile at least. `tiles`: their (splat, tile) pairs. `drawn`: blended in a pixel at
least, which those of the backward pass are.

*Arithmetic* (`bare_ns`) is measured in the same run, on one thread, of bare kernels with the
vectors of the rasteriser on data in registers and the first cache. Of a pair `look`: the quadratic
form, exp2, the product with the opacity, the comparison. `blend`: that, and the weight, the
transmittance, both decisions and four sums. `gather`: that of `look`, and the gradients of alpha,
its moments and of three colours. A pair that is only looked at costs `look`. Of a splat, the loops
of the rasteriser over a block of them: `project` (covariance, splat), `footprint` and, for each of
its tiles, `spans` (the rows of each group that it touches, without which more pairs would have to
be looked at), `color` (harmonics of degree 3), and on the way back `project_back` and `color_back`.

*Bytes*: forward, the Gaussians are read once and the images and radii are written once. Backward
(only that of the colours), the images' gradients are read, the Gaussians are read again, and their
gradients are written. Bandwidth is measured by a copy (`light.py`).

Left out: Gaussians that are not on the image, sorting and the lists of tiles, everything that
starts or ends a splat or a tile, the memory that holds a tile or a splat between two stages, lanes
that idle in a group of which other pixels go on or see the splat, the other row of two that are
taken together where a splat touches one of them, and imbalance of threads. The threads share the
arithmetic evenly, as if one did not slow down another. Arithmetic and bytes are added up, as
Gaussians must be read before pixels can be drawn. What it does not see: a footprint of pixels
instead of groups would look at fewer pairs, down to `blended`; and better loops over splats than
the rasteriser's own. `light_parts_ms` has the parts. Without `splats` it is the time of the pixels
and bytes alone, which no rasteriser of the same image by the same rule could beat with these
vectors: the multiples of that are `*_of_pixels`.
"""

from __future__ import annotations

from typing import Any

from benchmarks import light
from benchmarks.scenes import Scene
from diff_gaussian_rasterization import RasterOutput, _native, operator, rasterize

TIMED = {"pairs": 5_000_000, "splats": 30_000}  # of each kernel in each turn
TURNS = 30  # short and many: what else a core is busy with comes and goes
PAIR_WORKS = ("look", "blend", "gather")
SPLAT_WORKS = ("project", "footprint", "spans", "color", "project_back", "color_back")


def count_work(out: RasterOutput, threads: int = 1) -> dict[str, int]:
    """The pairs and splats of a render on the CPU that keeps what its backward pass needs."""
    kept = out.color.grad_fn
    inputs = operator._native_inputs(kept.settings, kept.saved_tensors)
    count = operator._kernel("count_work", out.color.dtype)
    return count(inputs, kept.state, threads)


def mean_work(scene: Scene, threads: int) -> dict[str, float]:
    """Pairs and splats per view."""
    views = [
        count_work(rasterize(**scene.gaussians, **camera, **scene.shared()), threads)
        for camera in scene.cameras()
    ]
    return {name: sum(view[name] for view in views) / len(views) for name in views[0]}


def bare_ns(turns: int = TURNS) -> dict[str, float]:
    """Nanoseconds of an item in each of the bare kernels: the best of several runs, in turns."""
    timed = dict.fromkeys(PAIR_WORKS, TIMED["pairs"]) | dict.fromkeys(SPLAT_WORKS, TIMED["splats"])
    best = dict.fromkeys(timed, float("inf"))
    for _ in range(turns):
        for name, count in timed.items():
            spent = _native.bare_kernel_ns(count, getattr(_native.BareWork, name))
            best[name] = min(best[name], spent)
    return best


def moved_bytes(scene: Scene) -> dict[str, int]:
    """Bytes of a view that must move: forward, and backward."""
    gaussians = light.size_of(scene.gaussians.values())
    plane = 4 * scene.width * scene.height
    radii = 4 * scene.count
    forward = gaussians + radii + 5 * plane  # three colours, alpha, depth
    return {"forward": forward, "backward": 2 * gaussians + 3 * plane}


def arithmetic_ms(counts: dict[str, float], ns: dict[str, float]) -> dict[str, dict[str, float]]:
    """Milliseconds of one thread for the pixels and the splats of a view: forward, and backward."""
    blend, gather = ns["blend"] - ns["look"], ns["gather"] - ns["look"]
    splat = ns["project"] + ns["footprint"] + ns["color"]
    splat_back = ns["project_back"] + ns["color_back"]
    return {
        "forward": {
            "pixels": 1e-6 * (counts["looked_at"] * ns["look"] + counts["blended"] * blend),
            "splats": 1e-6 * (counts["listed"] * splat + counts["tiles"] * ns["spans"]),
        },
        "backward": {
            "pixels": 1e-6 * (counts["looked_at_back"] * ns["look"] + counts["blended"] * gather),
            "splats": 1e-6 * counts["drawn"] * splat_back,
        },
    }


def bound(scene: Scene, threads: int) -> dict[str, Any]:
    """`light_forward_ms` and `light_forward_backward_ms` of a view, and what they are made of."""
    counts, ns, per_second = mean_work(scene, threads), bare_ns(), light.bandwidth()
    moved = moved_bytes(scene)
    parts = {
        way: {name: ms / threads for name, ms in work.items()}
        | {"bytes": 1e3 * moved[way] / per_second}
        for way, work in arithmetic_ms(counts, ns).items()
    }
    forward, backward = (sum(part.values()) for part in parts.values())
    return {
        "light_forward_ms": round(forward, 3),
        "light_forward_backward_ms": round(forward + backward, 3),
        "light_parts_ms": {
            way: {name: round(ms, 3) for name, ms in part.items()} for way, part in parts.items()
        },
        "counts": {name: round(count) for name, count in counts.items()},
        "bare_ns": {name: round(value, 4) for name, value in ns.items()},
        "moved_bytes": moved,
        "gigabytes_per_second": round(1e-9 * per_second, 2),
    }


def beside(times: dict[str, Any], found: dict[str, Any]) -> dict[str, float]:
    """How many times longer than light the measured times are, and than light without splats."""
    splats = {way: part["splats"] for way, part in found["light_parts_ms"].items()}
    without = {"forward": splats["forward"], "forward_backward": sum(splats.values())}
    ratios = {}
    for name, left_out in without.items():
        ms, least = times[f"{name}_ms"], found[f"light_{name}_ms"]
        ratios[f"{name}_of_light"] = round(ms / least, 2)
        ratios[f"{name}_of_pixels"] = round(ms / (least - left_out), 2)
    return ratios
