"""The speed of light of the rasteriser on a CPU: the time of its unavoidable work alone.

    light = pairs x arithmetic of a pair / threads + bytes / bandwidth

*Pairs* (`pairs`, means over the views) are counted by going through the lists of a finished render
once more. `looked_at`: the splat's exact footprint touches the pixel's group, those side by side
that one vector holds (16 with AVX-512, 8 with AVX2, else 4), and the pixel has not stopped: its
alpha must be evaluated. `blended`: alpha is at least 1/255, too: colours and depth
are added up. `looked_at_back` and `blended` are the same of the backward pass, up to the pixel's
last contributor. `lanes` are what a kernel of whole groups evaluates on the forward pass.

*Arithmetic* (`pair_ns`) is measured in the same run, on one thread, of bare kernels with the
vectors of the rasteriser on data in registers and the first cache. `look`: the quadratic form,
exp2, the product with the opacity, the comparison. `blend`: that, and the weight, the
transmittance, both decisions and four sums. `gather`: that of `look`, and the gradients of alpha,
its moments and of three colours. A pair that is only looked at costs `look`.

*Bytes*: forward, the Gaussians are read once and the images and radii are written once. Backward
(only that of the colours), the images' gradients are read, the Gaussians are read again, and their
gradients are written. Bandwidth is measured by a copy (`light.py`).

Left out, so that no rasteriser of the same image by the same rule could be faster with these
vectors: projection, colours from harmonics and their gradients, sorting and the lists of tiles,
everything that starts or ends a splat or a tile, the memory that holds a tile between two splats,
lanes that idle in a group of which other pixels go on or see the splat, and imbalance of threads.
The threads share the arithmetic evenly, as if one did not slow down another. Arithmetic and bytes
are added up, as Gaussians must be read before pixels can be drawn. What it does not see: a
footprint of pixels instead of groups would look at fewer pairs, down to `blended`.
"""

from __future__ import annotations

from typing import Any

from benchmarks import light
from benchmarks.scenes import Scene
from diff_gaussian_rasterization import RasterOutput, _native, operator, rasterize

TIMED_PAIRS = 5_000_000  # of each kernel in each turn
TURNS = 30  # short and many: what else a core is busy with comes and goes
WORKS = ("look", "blend", "gather")


def count_pairs(out: RasterOutput, threads: int = 1) -> dict[str, int]:
    """The pairs of a render on the CPU that keeps what its backward pass needs."""
    kept = out.color.grad_fn
    inputs = operator._native_inputs(kept.settings, kept.saved_tensors)
    count = operator._kernel("count_pairs", out.color.dtype)
    return count(inputs, kept.state, threads)


def mean_pairs(scene: Scene, threads: int) -> dict[str, float]:
    """Pairs per view."""
    views = [
        count_pairs(rasterize(**scene.gaussians, **camera, **scene.shared()), threads)
        for camera in scene.cameras()
    ]
    return {name: sum(view[name] for view in views) / len(views) for name in views[0]}


def pair_ns(turns: int = TURNS) -> dict[str, float]:
    """Nanoseconds of a pair in each of the bare kernels: the best of several runs, in turns."""
    best = dict.fromkeys(WORKS, float("inf"))
    for _ in range(turns):
        for name in WORKS:
            spent = _native.bare_kernel_ns(TIMED_PAIRS, getattr(_native.BareWork, name))
            best[name] = min(best[name], spent)
    return best


def moved_bytes(scene: Scene) -> dict[str, int]:
    """Bytes of a view that must move: forward, and backward."""
    gaussians = light.size_of(scene.gaussians.values())
    plane = 4 * scene.width * scene.height
    radii = 4 * scene.count
    forward = gaussians + radii + 5 * plane  # three colours, alpha, depth
    return {"forward": forward, "backward": 2 * gaussians + 3 * plane}


def arithmetic_ms(pairs: dict[str, float], ns: dict[str, float]) -> dict[str, float]:
    """Milliseconds of one thread for a view's pairs: forward, and backward."""
    blend, gather = ns["blend"] - ns["look"], ns["gather"] - ns["look"]
    return {
        "forward": 1e-6 * (pairs["looked_at"] * ns["look"] + pairs["blended"] * blend),
        "backward": 1e-6 * (pairs["looked_at_back"] * ns["look"] + pairs["blended"] * gather),
    }


def bound(scene: Scene, threads: int) -> dict[str, Any]:
    """`light_forward_ms` and `light_forward_backward_ms` of a view, and what they are made of."""
    pairs, ns, per_second = mean_pairs(scene, threads), pair_ns(), light.bandwidth()
    arithmetic, moved = arithmetic_ms(pairs, ns), moved_bytes(scene)
    parts = {name: arithmetic[name] / threads + 1e3 * moved[name] / per_second for name in moved}
    return {
        "light_forward_ms": round(parts["forward"], 3),
        "light_forward_backward_ms": round(parts["forward"] + parts["backward"], 3),
        "pairs": {name: round(count) for name, count in pairs.items()},
        "pair_ns": {name: round(value, 4) for name, value in ns.items()},
        "moved_bytes": moved,
        "gigabytes_per_second": round(1e-9 * per_second, 2),
    }


def beside(times: dict[str, Any], found: dict[str, Any]) -> dict[str, float]:
    """How many times longer than light the measured times are."""
    return {
        f"{name}_of_light": round(times[f"{name}_ms"] / found[f"light_{name}_ms"], 2)
        for name in ("forward", "forward_backward")
    }
