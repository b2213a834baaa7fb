"""Looking into the router: pictures of its gates, and how much each expert is used.

In a picture every Gaussian has the colours of its experts, mixed by its gates at that time, and is
drawn with its usual shape and opacity; a legend names the colours. The table says, per attribute,
how the weight is shared, how decided the gates are, and how many Gaussians change their mind.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from colorsys import hsv_to_rgb
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from gaussian_renderer import render
from scene import Scene, View
from scene.gaussian_model import SH_C0
from scene.mixture import MoDE
from scene.router import entropy
from training.evaluation import Render
from utils.errors import UserError

# Okabe and Ito's colours, which colour-blind readers can tell apart; an expert keeps its own.
PALETTE = {
    "hexplane": (0, 114, 178),
    "embedding": (230, 159, 0),
    "hash": (0, 158, 115),
    "polynomial": (204, 121, 167),
    "keyframe": (86, 180, 233),
    "zero": (153, 153, 153),
}
OTHERS = ((213, 94, 0), (240, 228, 66), (0, 0, 0))  # of experts that the palette does not know
USAGE_TIMES = 30  # at most, over which the table is made
MOVERS = 0.1  # share of the Gaussians that count as moving: those that move most
LEGEND_TEXT = 12  # pixels


def expert_colors(names: Sequence[str]) -> dict[str, tuple[int, int, int]]:
    """Expert -> RGB in 0 to 255, different for all of them."""
    spare = _spare_colors()
    return {name: PALETTE[name] if name in PALETTE else next(spare) for name in names}


def _spare_colors() -> Iterator[tuple[int, int, int]]:
    """`OTHERS`, then colours of which each is far from the last ones; none comes twice."""
    yield from OTHERS
    seen = {*OTHERS, *PALETTE.values()}
    for k in itertools.count():
        hue, saturation, value = k * 0.618 % 1, 0.5 + k * 0.755 % 0.5, 0.4 + k * 0.57 % 0.6
        color = tuple(round(255 * part) for part in hsv_to_rgb(hue, saturation, value))
        if color not in seen:
            seen.add(color)
            yield color


def chosen_attributes(model: MoDE, wanted: Sequence[str]) -> list[str]:
    """The attributes to draw: those ``wanted``, or all that are routed if none is named.

    Raises:
        UserError: the run routes nothing, or not what is wanted.
    """
    routed = list(model.router.learned)
    if not routed:
        raise UserError(
            "--gate_viz: this run has no router (one expert, nothing is mixed, or --gate sum)"
        )
    unknown = [name for name in wanted if name not in routed]
    if unknown:
        raise UserError(
            f"--gate_viz {unknown[0]}: this run routes {', '.join(routed)}; name one of them"
        )
    return list(wanted) or routed


def gate_renderer(model: MoDE, scene: Scene, iteration: int, attribute: str) -> Render:
    """A function that draws the gates of ``attribute`` at a view: (3, H, W), not clamped."""
    device = model.gaussians.xyz.device
    background = torch.tensor(scene.background, device=device)
    colors = torch.tensor(list(expert_colors(list(model.experts)).values()), device=device) / 255

    @torch.no_grad()
    def render_gates(view: View) -> Tensor:
        splats = model.deform(view.time, iteration=iteration)
        mixed = model.gates(view.time)[attribute] @ colors  # (N, 3)
        constant = ((mixed - 0.5) / SH_C0)[:, None]  # SH degree 0 that gives this colour
        painted = replace(splats, sh=torch.cat([constant, splats.sh[:, 1:]], dim=1))
        return render([view.camera], painted, background, 0).images[0]

    return render_gates


def with_legend(pixels: np.ndarray, model: MoDE, attribute: str, time: float) -> np.ndarray:
    """The picture (H, W, 3) uint8 with a strip below: each expert's colour, name and mean gate."""
    means = model.gates(time)[attribute].mean(0).tolist()
    members = model.router.members[attribute]
    colors = expert_colors(list(model.experts))
    entries = [
        (colors[name], name, means[k]) for k, name in enumerate(model.experts) if k in members
    ]
    strip = legend(entries, attribute, pixels.shape[1])
    return np.concatenate([pixels, strip])


def legend(
    entries: Sequence[tuple[tuple[int, int, int], str, float]], title: str, width: int
) -> np.ndarray:
    """A white strip (h, width, 3) with coloured squares, names and shares of 1 as per cent.

    As many rows as it takes, whatever the shares are: the frames of a video are of one size.
    """
    font, step = ImageFont.load_default(LEGEND_TEXT), LEGEND_TEXT + 6
    x, row, places = 4 + int(font.getlength(f"{title}:  ")), 0, []
    for color, name, share in entries:
        length = step + int(font.getlength(f"{name} 100 %")) + 10
        if x + length > width and x > 4:
            x, row = 4, row + 1
        places.append((x, row * step + 3, color, f"{name} {100 * share:.0f} %"))
        x += length
    height = (row + 1) * step + 4
    strip = Image.new("RGB", (width, height + height % 2), "white")  # even, as video wants it
    draw = ImageDraw.Draw(strip)
    draw.text((4, 3), f"{title}:", fill="black", font=font)
    for x, y, color, text in places:
        draw.rectangle((x, y, x + LEGEND_TEXT, y + LEGEND_TEXT), fill=color)
        draw.text((x + step, y), text, fill="black", font=font)
    return np.asarray(strip)


# ---- usage --------------------------------------------------------------------------------------


@torch.no_grad()
def gate_usage(model: MoDE, times: Sequence[float], iteration: int) -> dict[str, Any]:
    """How the router uses the experts, over ``times``.

    Returns:
        attribute -> {``all``, ``moving``}: over all Gaussians, and over the tenth that moves most;
        each with ``weight`` and ``best`` (expert -> mean gate, and share of Gaussians and times
        where its gate is the largest), ``entropy`` (mean, 0: one expert decides, 1: all alike) and
        ``changes`` (share of the Gaussians whose best expert is not the same at all times).
    """
    movers = _moving(model, times, iteration)
    at_times = [model.gates(time) for time in times]
    usage: dict[str, Any] = {}
    for attribute, members in model.router.members.items():
        gates = torch.stack([gate[attribute][:, list(members)] for gate in at_times])  # (T, N, E)
        names = [list(model.experts)[k] for k in members]
        usage[attribute] = {
            "all": _summary(gates, names),
            "moving": _summary(gates[:, movers], names),
        }
    return usage


def _moving(model: MoDE, times: Sequence[float], iteration: int) -> Tensor:
    """Rows of the Gaussians that move most: those with the largest box over ``times``."""
    means = torch.stack([model.deform(time, iteration=iteration).means for time in times])
    reach = (means.amax(0) - means.amin(0)).norm(dim=-1)
    return reach.topk(max(1, round(MOVERS * len(reach)))).indices


def _summary(gates: Tensor, names: Sequence[str]) -> dict[str, Any]:
    best = gates.argmax(-1)  # (T, N)
    share = torch.nn.functional.one_hot(best, len(names)).float().mean((0, 1))
    return {
        "weight": dict(zip(names, gates.mean((0, 1)).tolist(), strict=True)),
        "best": dict(zip(names, share.tolist(), strict=True)),
        "entropy": entropy(gates.flatten(0, 1)).item(),
        "changes": (best != best[0]).any(0).float().mean().item(),
    }


def usage_table(usage: dict[str, Any]) -> str:
    """`gate_usage` as aligned text: a row per attribute and group of Gaussians."""
    experts = list(dict.fromkeys(n for u in usage.values() for n in u["all"]["weight"]))
    rows = [["gates", "Gaussians", *experts, "entropy", "changes"]]
    for attribute, groups in usage.items():
        for group, values in groups.items():
            weights = [values["weight"].get(name) for name in experts]
            cells = ["-" if w is None else f"{100 * w:.0f} %" for w in weights]
            rows.append(
                [
                    attribute,
                    group,
                    *cells,
                    f"{values['entropy']:.2f}",
                    f"{100 * values['changes']:.0f} %",
                ]
            )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = (zip(row, widths, strict=True) for row in rows)
    return "\n".join("  ".join(cell.rjust(width) for cell, width in line) for line in lines)
