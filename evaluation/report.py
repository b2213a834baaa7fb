"""The report of one or several measured sources: blocks, and how Markdown and HTML show them."""

from __future__ import annotations

import csv
import html
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.measure import Measured
from evaluation.pictures import GAIN, error_picture, strip
from evaluation.plots import plot_views
from evaluation.protocols import RANGES, SSIMS, Protocol
from utils.files import atomic_file, write_json

FORMAT = 1
RECORD = "evaluation.json"
FILES = (RECORD, "report.md", "report.html", "views.csv", "worst", "plots")

TITLES = {
    "psnr": "PSNR",
    "ssim": "SSIM",
    "lpips": "LPIPS",
    "moving_share": "moving",
    "psnr_moving": "PSNR moving",
    "ssim_moving": "SSIM moving",
    "psnr_still": "PSNR still",
    "flicker": "flicker",
    "flicker_gt": "flicker of truth",
    "tlpips": "tLPIPS",
}
MOTION = tuple(TITLES)[3:]
LOW_IS_GOOD = ("lpips", "tlpips", "d_")


# ---- blocks -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Heading:
    """A title; level 1 is the report's."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Text:
    """Paragraphs, or the points of a list."""

    lines: Sequence[str]
    listed: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of cells under heads; folded away in HTML where it is long."""

    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    folded: str = ""


@dataclass(frozen=True)
class Figure:
    """A picture beside the report."""

    path: str
    text: str


Block = Heading | Text | Table | Figure


def as_markdown(blocks: Sequence[Block]) -> str:
    """The blocks as Markdown."""
    return "\n".join(_markdown(block) + "\n" for block in blocks)


def _markdown(block: Block) -> str:
    if isinstance(block, Heading):
        return f"{'#' * block.level} {_escaped(block.text)}"
    if isinstance(block, Text):
        start, between = ("- ", "\n") if block.listed else ("", "\n\n")
        return between.join(start + _escaped(line) for line in block.lines)
    if isinstance(block, Figure):
        return f"![{_escaped(block.text)}]({block.path})\n\n*{_escaped(block.text)}*"
    rows = [block.heads, ["---"] * len(block.heads), *block.rows]
    return "\n".join("| " + " | ".join(_escaped(cell) for cell in row) + " |" for row in rows)


def _escaped(text: str) -> str:
    """Without what Markdown would take for HTML, a cell's end or emphasis in names of files."""
    for sign in "\\|*_<`[":
        text = text.replace(sign, "\\" + sign)
    return text


STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 1100px; padding: 0 1em; }
table { border-collapse: collapse; margin: .6em 0; font-variant-numeric: tabular-nums; }
th, td { padding: .2em .7em; border-bottom: 1px solid #ddd; text-align: right; }
th:first-child, td:first-child { text-align: left; }
img { max-width: 100%; } figure { margin: 1em 0; } figcaption { color: #555; }
"""


def as_html(blocks: Sequence[Block], title: str) -> str:
    """The blocks as a page that needs nothing but the pictures beside it."""
    body = "\n".join(_html(block) for block in blocks)
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def _html(block: Block) -> str:
    if isinstance(block, Heading):
        return f"<h{block.level}>{html.escape(block.text)}</h{block.level}>"
    if isinstance(block, Text):
        tag = "li" if block.listed else "p"
        inside = "\n".join(f"<{tag}>{html.escape(line)}</{tag}>" for line in block.lines)
        return f"<ul>\n{inside}\n</ul>" if block.listed else inside
    if isinstance(block, Figure):
        text = html.escape(block.text)
        image = f'<img src="{html.escape(block.path)}" alt="{text}" loading="lazy">'
        return f"<figure>{image}<figcaption>{text}</figcaption></figure>"
    rows = [_html_row(block.heads, "th"), *(_html_row(row, "td") for row in block.rows)]
    table = "<table>\n" + "\n".join(rows) + "\n</table>"
    if not block.folded:
        return table
    return f"<details><summary>{html.escape(block.folded)}</summary>\n{table}\n</details>"


def _html_row(cells: Sequence[str], tag: str) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"


# ---- what the report says -----------------------------------------------------------------------


def write_report(
    folder: Path, measured: Sequence[Measured], protocol: Protocol, *, plots: bool
) -> None:
    """Writes `FILES` into ``folder``."""
    blocks = [*_summary(measured, protocol)]
    blocks += _plots(folder, measured) if plots else []
    blocks += _worst(folder, measured)
    blocks += _per_camera(measured)
    blocks += _per_view(measured)
    title = " and ".join(m.label for m in measured)
    texts = {
        "report.md": as_markdown(blocks),
        "report.html": as_html(blocks, f"Evaluation of {title}"),
        "views.csv": views_csv(measured),
    }
    for name, text in texts.items():
        with atomic_file(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    write_json(folder / RECORD, record(measured, protocol))


def record(measured: Sequence[Measured], protocol: Protocol) -> dict[str, Any]:
    """All numbers, for ``evaluation.json``."""
    settings = {key: value for key, value in vars(protocol).items() if key != "kinds"}
    return {
        "format": FORMAT,
        "protocol": {**settings, "ssim_window": SSIMS[protocol.ssim]},
        "sources": [
            {
                "label": m.label,
                **m.facts,
                "deviations": m.deviations,
                "notes": [*m.notes, *m.reasons],
                "views": len(m.rows),
                "reported": m.keys,
                **m.headline,
                "means": m.means,
                "counts": {key: m.count(key) for key in m.means if m.count(key)},
                "per_camera": m.cameras,
                "per_view": m.rows,
            }
            for m in measured
        ],
    }


def views_csv(measured: Sequence[Measured]) -> str:
    """Every number of every picture, a line for each picture of each source."""
    keys = list(dict.fromkeys(key for m in measured for row in m.rows.values() for key in row))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["source", "view", *keys])
    for m in measured:
        for name, row in m.rows.items():
            writer.writerow([m.label, name, *(row.get(key, "") for key in keys)])
    return text.getvalue()


def headline_table(measured: Sequence[Measured]) -> Table:
    """PSNR, SSIM, LPIPS and motion of every source; the best of several is marked."""
    columns = {key: [m.headline[key] for m in measured] for key in ("psnr", "ssim", "lpips")}
    columns |= {key: [m.means.get(key) for m in measured] for key in MOTION}
    columns = {key: cells for key, cells in columns.items() if any(c is not None for c in cells)}
    rows = [
        [m.label, str(len(m.rows)), *(_marked(key, cells, row) for key, cells in columns.items())]
        for row, m in enumerate(measured)
    ]
    return Table(["", "views", *(TITLES[key] for key in columns)], rows)


def _marked(key: str, cells: Sequence[float | None], row: int) -> str:
    """The cell, with a star where it is the best of several."""
    values = [cell for cell in cells if cell is not None]
    text = number(key, cells[row])
    if cells[row] is None or len(cells) == 1 or key in ("moving_share", "flicker", "flicker_gt"):
        return text
    best = min(values) if key.startswith(LOW_IS_GOOD) else max(values)
    return f"{text} ★" if cells[row] == best else text


def number(key: str, value: float | None) -> str:
    """A number with the digits that its kind deserves."""
    if value is None:
        return "-"
    if key == "moving_share":
        return f"{value:.1%}"
    return f"{value:.2f}" if key.startswith(("psnr", "flicker")) else f"{value:.4f}"


def _summary(measured: Sequence[Measured], protocol: Protocol) -> list[Block]:
    labels = " and ".join(m.label for m in measured)
    values = "rounded to 8 bits" if protocol.eight_bit else "in float, clamped to [0, 1]"
    lines = [
        f"Protocol {protocol.name}, after {protocol.source}: held-out cameras: {protocol.cameras}; "
        f"frames: {protocol.frames}; renders {values}; SSIM: {SSIMS[protocol.ssim]}; LPIPS by "
        f"{protocol.lpips_net}, fed {RANGES[protocol.lpips_range]}.",
        protocol.differing,
    ]
    blocks: list[Block] = [Heading(f"Evaluation of {labels}", 1), headline_table(measured)]
    remarks = [f"{m.label}: {text}" for m in measured for text in _remarks(m)]
    blocks += [Text(remarks, listed=True)] if remarks else []
    blocks += [Text(lines), *_variants(measured)]
    return blocks


def _remarks(m: Measured) -> list[str]:
    """What a reader has to know before comparing."""
    found = [f"not as the protocol has it: {text}" for text in m.deviations]
    found += [*m.notes, *m.reasons]
    moments = Counter(item.clip for item in m.items if item.clip is not None)
    steps = moments.total() - len(moments)
    for title, key, all_of, what in (
        ("LPIPS", m.keys["lpips"], len(m.rows), "views"),
        ("tLPIPS", "tlpips", steps, "steps in time"),
    ):
        if 0 < m.count(key) < all_of:
            found.append(f"{title} is of {m.count(key)} of {all_of} {what}, evenly spaced")
    return found


def _variants(measured: Sequence[Measured]) -> list[Block]:
    """Every mean there is, for comparing with papers that measured another way."""
    keys = list(dict.fromkeys(key for m in measured for key in m.means if key not in MOTION))
    rows = [[key, *(_with_count(m, key) for m in measured)] for key in keys]
    return [Heading("All variants"), Table(["", *(m.label for m in measured)], rows)]


def _with_count(m: Measured, key: str) -> str:
    """A mean, and of how many views where it is not of all."""
    text, count = number(key, m.means.get(key)), m.count(key)
    return f"{text} ({count} of {len(m.rows)} views)" if 0 < count < len(m.rows) else text


def _plots(folder: Path, measured: Sequence[Measured]) -> list[Block]:
    names = list(measured[0].rows)
    wanted = {key: [m.keys[key] for m in measured] for key in ("psnr", "ssim", "lpips")}
    wanted |= {key: [key] * len(measured) for key in ("psnr_moving", "flicker", "tlpips")}
    blocks: list[Block] = [Heading("Over the views")]
    for name, keys in wanted.items():
        curves = {
            m.label: [m.rows[view].get(key) for view in names]
            for m, key in zip(measured, keys, strict=True)
            if m.count(key) > 1
        }
        if name == "flicker" and curves:
            curves["ground truth"] = [measured[0].rows[view].get("flicker_gt") for view in names]
        if curves:
            unit = {"psnr": ", dB", "psnr_moving": ", dB", "flicker": ", levels of 255"}
            plot_views(
                folder / "plots" / f"{name}.png", TITLES[name] + unit.get(name, ""), names, curves
            )
            blocks.append(Figure(f"plots/{name}.png", f"{TITLES[name]} of every view"))
    return blocks if len(blocks) > 1 else []


def _worst(folder: Path, measured: Sequence[Measured]) -> list[Block]:
    """Ground truth, image and error of the pictures of the lowest PSNR."""
    blocks: list[Block] = []
    for number_of, m in enumerate(measured):
        for rank, picture in enumerate(m.worst):
            value = number("psnr", m.rows[picture.name][m.keys["psnr"]])
            tiles = [("ground truth", picture.target), (m.label, picture.image)]
            tiles.append((f"error x{GAIN}", error_picture(picture.image, picture.target)))
            path = f"worst/{number_of:02d}_{rank:02d}.png"
            _save(folder / path, tiles)
            blocks.append(Figure(path, f"{m.label}: {picture.name}, {value} dB"))
    blocks += _side_by_side(folder, measured)
    return [Heading("Worst views"), *blocks] if blocks else []


def _side_by_side(folder: Path, measured: Sequence[Measured]) -> list[Block]:
    """The worst views of the first source, in all."""
    if len(measured) < 2:
        return []
    first, blocks = measured[0], []
    for rank, picture in enumerate(first.worst):
        key = [(m, m.rows[picture.name].get(m.keys["psnr"])) for m in measured]
        shown = [picture, *(m.kept[picture.name] for m in measured[1:])]
        tiles = [("ground truth", picture.target)]
        for (m, value), p in zip(key, shown, strict=True):
            tiles.append((f"{m.label}, {number('psnr', value)} dB", p.image))
        path = f"worst/all_{rank:02d}.png"
        _save(folder / path, tiles)
        blocks.append(Figure(path, f"{picture.name} in all"))
    return blocks


def _save(path: Path, tiles: Sequence[tuple[str, Any]]) -> None:
    with atomic_file(path) as temporary:
        strip(tiles).save(temporary)


def _per_camera(measured: Sequence[Measured]) -> list[Block]:
    if not 1 < len(measured[0].cameras) < len(measured[0].rows):
        return []
    rows = [
        [camera, m.label, *(number(name, row.get(key)) for name, key in m.keys.items())]
        for camera in measured[0].cameras
        for m, row in ((m, m.cameras[camera]) for m in measured)
    ]
    return [Heading("Cameras"), Table(["camera", "", "PSNR", "SSIM", "LPIPS"], rows)]


def _per_view(measured: Sequence[Measured]) -> list[Block]:
    keys = ("psnr", "ssim", "lpips")
    extra = [k for k in ("psnr_moving", "flicker", "tlpips") if any(m.count(k) for m in measured)]
    heads = ["view"]
    for m in measured:
        suffix = f" {m.label}" if len(measured) > 1 else ""
        heads += [TITLES[key] + suffix for key in (*keys, *extra)]
    rows = []
    for name in measured[0].rows:
        cells = [name]
        for m in measured:
            row = m.rows[name]
            cells += [number(key, row.get(m.keys[key])) for key in keys]
            cells += [number(key, row.get(key)) for key in extra]
        rows.append(cells)
    return [Heading("Every view"), Table(heads, rows, folded=f"{len(rows)} views")]
