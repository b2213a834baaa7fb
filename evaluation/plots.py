"""Plots of the report, by matplotlib, which is asked for only here."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path

from utils.errors import UserError
from utils.files import atomic_file

_SIZE = (9.0, 3.2)  # inches
_DPI = 110
_NAMED = 12  # ticks that are labelled with names of pictures, at most


def refuse_without_matplotlib() -> None:
    """Raises UserError where matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        raise UserError(
            "plots need matplotlib: pip install -r requirements-evaluate.txt, or use --no-plots"
        )


def plot_views(
    path: Path,
    title: str,
    names: Sequence[str],
    curves: Mapping[str, Sequence[float | None]],
) -> None:
    """Writes a PNG with a curve for each source over the pictures, in their order.

    Args:
        title: of the vertical axis.
        names: of the pictures.
        curves: label -> a value for each picture; None leaves a gap.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=_SIZE, dpi=_DPI, layout="constrained")
    canvas, axes = FigureCanvasAgg(figure), figure.add_subplot()
    for label, values in curves.items():
        points = [(x, y) for x, y in enumerate(values) if y is not None]
        marker = "o" if len(points) < 40 else None
        axes.plot(*zip(*points, strict=True), label=_plain(label), marker=marker, markersize=3)
    step = max(1, -(-len(names) // _NAMED))
    axes.set_xticks(range(0, len(names), step), [_plain(name) for name in names[::step]])
    axes.tick_params(axis="x", labelsize=7, rotation=30)
    axes.set_ylabel(title)
    axes.grid(alpha=0.3)
    if len(curves) > 1:
        axes.legend(fontsize=8)
    with atomic_file(path) as temporary:
        canvas.print_png(str(temporary))


def _plain(text: str) -> str:
    """Without what matplotlib takes for formulas, or a legend for hidden."""
    return text.replace("$", r"\$").removeprefix("_") or "-"
