"""The command line of `evaluate.py`, and what it does in order: open, check, measure, write."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import torch

import photometric_loss
from arguments_MoDE.cli import DEVICE_HELP, DEVICES
from arguments_MoDE.values import MOST_THREADS, check_range
from evaluation.measure import NO_CLIP, Measured, Meter, choose, deviations, refuse_small
from evaluation.opening import (
    is_rendered,
    is_run,
    open_folders,
    open_rendered,
    open_run,
    refuse_different_views,
)
from evaluation.plots import refuse_without_matplotlib
from evaluation.protocols import Protocol, find_protocol, protocol_of_kind, protocol_table
from evaluation.report import FILES, RECORD, headline_table, write_report
from evaluation.sources import RunSource, Source
from training.evaluation import Perceptual
from utils.errors import UserError
from utils.files import atomic_folder
from utils.lpips import NETS

_COLOURS = {"white": (255, 255, 255), "black": (0, 0, 0)}


class _Parser(argparse.ArgumentParser):
    """Reports a faulty line as a `UserError` instead of printing the usage."""

    def error(self, message: str) -> NoReturn:
        unknown = re.fullmatch(r"unrecognized arguments: (\S+).*", message, re.DOTALL)
        if unknown:
            word = unknown[1].partition("=")[0]
            flags = [name for action in self._actions for name in action.option_strings]
            near = difflib.get_close_matches(word, flags, n=1)
            message = f"unknown flag {word}" + (f"; did you mean {near[0]}?" if near else "")
        raise UserError(f"{message.removeprefix('argument ')} (--help lists the flags)")


def parser() -> argparse.ArgumentParser:
    """The flags."""
    made = _Parser(
        prog="evaluate.py",
        description="Measures runs, or folders of images, against ground truth by a named "
        "protocol, and compares several.",
        epilog="A SOURCE is a run folder (its held-out views are rendered), a set that render_*.py "
        "wrote, such as <run>/test/ours_30000 (its pictures are read), or, with --gt, a folder of "
        "images, in which folders are cameras.",
        allow_abbrev=False,
    )
    made.add_argument("sources", nargs="*", type=Path, metavar="SOURCE", help="what to measure")
    _add_sources(made.add_argument_group("sources"))
    _add_measures(made.add_argument_group("measures"))
    _add_report(made.add_argument_group("report"))
    return made


def _add_sources(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--gt", type=Path, metavar="FOLDER", help="ground truth for folders of images"
    )
    group.add_argument(
        "--by_order",
        action="store_true",
        help="pair images with ground truth in order of name; default: by name",
    )
    group.add_argument(
        "--background",
        choices=tuple(_COLOURS),
        default="white",
        help="behind transparent images of folders (default: white)",
    )
    group.add_argument("--names", nargs="+", help="names of the sources in the report")
    group.add_argument(
        "--iteration", type=int, default=-1, help="of runs; -1: the last saved (default)"
    )
    group.add_argument("-s", "--source_path", help="where the runs' scene is now; default: theirs")
    group.add_argument(
        "--device", choices=DEVICES, default="auto", help=f"{DEVICE_HELP} (default: auto)"
    )
    group.add_argument("--threads", type=int, default=0, help="CPU threads; 0: PyTorch's default")


def _add_measures(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--protocol", help="default: that of the scene's data set; --list_protocols shows them"
    )
    group.add_argument(
        "--list_protocols", action="store_true", help="print the protocols and their sources"
    )
    group.add_argument(
        "--strict",
        action="store_true",
        help="refuse pictures that are not the protocol's (frames, cameras, size ...)",
    )
    group.add_argument(
        "--crop", type=int, default=0, help="pixels to leave out along every side (default: 0)"
    )
    group.add_argument(
        "--temporal",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="moving regions, flicker and tLPIPS; default: where a camera stands still",
    )
    group.add_argument(
        "--lpips",
        choices=("auto", "all", "none"),
        default="auto",
        help="auto: on a CPU as many views as half a minute allows, as render_*.py (default); all",
    )


def _add_report(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--out", type=Path, metavar="FOLDER", help="where the report is written")
    group.add_argument(
        "--worst", type=int, default=4, help="pictures of the lowest PSNR to show (default: 4)"
    )
    group.add_argument(
        "--plots",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="draw curves over the views, by matplotlib (default: yes)",
    )
    group.add_argument("--quiet", action="store_true", help="results only: no progress, no notes")


def evaluate_main(argv: Sequence[str] | None = None) -> int:
    """Evaluates as the command line says; returns the exit code."""
    options = parser().parse_args(argv)
    if options.list_protocols:
        print(protocol_table(), end="")
        return 0
    _check(options)
    _check_out(options.out, [*options.sources, *([options.gt] if options.gt else [])])
    if options.plots:
        refuse_without_matplotlib()
    if options.threads:
        torch.set_num_threads(options.threads)
    named = None if options.protocol is None else find_protocol(options.protocol)
    sources = _open(options)
    protocol = _protocol(named, sources, options.crop)
    _check_sources(sources, protocol, options)
    measured = _measure(sources, protocol, options)
    with atomic_folder(options.out) as folder:
        write_report(folder, measured, protocol, plots=options.plots)
    print(_as_text(headline_table(measured)))
    for m in measured:
        for text in m.deviations:
            print(f"{m.label}: not as protocol {protocol.name} has it: {text}")
        for text in m.reasons:
            print(f"{m.label}: {text}")
    print(options.out / "report.html")
    return 0


def _check(options: argparse.Namespace) -> None:
    if not options.sources:
        raise UserError("nothing to evaluate: name a run folder or a folder of images")
    if options.out is None:
        raise UserError("the report's folder is missing: give it with --out")
    for name, lowest in (("crop", 0), ("worst", 0), ("iteration", -1)):
        if getattr(options, name) < lowest:
            raise UserError(f"--{name} is {getattr(options, name)}; the lowest is {lowest}")
    check_range("threads", options.threads, 0, MOST_THREADS)
    if options.names is not None and len(options.names) != len(options.sources):
        raise UserError(f"--names has {len(options.names)} for {len(options.sources)} sources")
    if options.names is not None and len(set(options.names)) < len(options.names):
        raise UserError("--names: two sources have one name; give each its own")


def _check_out(out: Path, inputs: Sequence[Path]) -> None:
    """Refuses a folder whose content is not ours to replace."""
    here = out.resolve()
    for path in inputs:
        if here == path.resolve() or here in path.resolve().parents:
            raise UserError(f"--out {out} holds {path}, which is evaluated; give another folder")
        images = path.resolve() if not is_run(path) else None
        if images is not None and images in here.parents:
            raise UserError(f"--out {out} is among the pictures of {path}; give another folder")
    existing = next(path for path in (here, *here.parents) if path.exists())
    if not existing.is_dir():
        raise UserError(f"--out {out}: {existing} is a file, not a folder")
    if not os.access(existing if existing != here else here.parent, os.W_OK | os.X_OK):
        raise UserError(f"--out {out}: no permission to write to {existing}")
    if not out.exists():
        return
    names = {path.name for path in out.iterdir()}
    if names and (not _is_ours(out / RECORD) or names - set(FILES)):
        odd = sorted(names - set(FILES)) or sorted(names)
        raise UserError(f"--out {out} holds other things ({odd[0]}); give a new or empty folder")


def _is_ours(path: Path) -> bool:
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(record, dict) and {"format", "protocol", "sources"} <= record.keys()


def _open(options: argparse.Namespace) -> list[Source]:
    labels = options.names or _labels(options.sources)
    found = [
        _open_one(path, label, options) for path, label in zip(options.sources, labels, strict=True)
    ]
    if options.gt is not None and all(isinstance(source, RunSource) for source in found):
        raise UserError("--gt is for folders of images; runs have the ground truth of their scene")
    refuse_different_views(found)
    return found


def _open_one(path: Path, label: str, options: argparse.Namespace) -> Source:
    device = options.device
    if is_run(path):
        return open_run(
            path,
            label,
            iteration=options.iteration,
            device=device,
            source_path=options.source_path,
            quiet=options.quiet,
        )
    device = _picture_device(device)
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; give a run, or a folder of images and --gt")
    if options.gt is not None and is_rendered(path):
        raise UserError(
            f"{path} has its own ground truth: leave out --gt, or measure {path / 'renders'}"
        )
    if options.gt is not None:
        return open_folders(
            path,
            options.gt,
            label,
            by_order=options.by_order,
            backdrop=_COLOURS[options.background],
            device=device,
        )
    if is_rendered(path):
        return open_rendered(path, label, device)
    raise UserError(
        f"{path} is no run (no config.json) and no set that render_*.py wrote (no renders/ and "
        "gt/); to measure a folder of images give --gt"
    )


def _picture_device(name: str) -> str:
    """Where pictures are measured, which needs torch and SSIM's package there."""
    if name == "cpu":
        return name
    if torch.cuda.is_available() and "cuda" in photometric_loss.DEVICES:
        return "cuda"
    if name == "cuda":
        raise UserError(
            "--device cuda: this PyTorch sees no GPU, or photometric_loss was built without CUDA "
            "kernels; use --device cpu or auto"
        )
    return "cpu"


def _labels(paths: Sequence[Path]) -> list[str]:
    """The last parts of the paths, as many as tell them apart; a rendered set's are its run's."""
    whole = [path.resolve() for path in paths]
    runs = [path.parent.parent if is_rendered(path) else path for path in whole]
    for candidates in (runs, whole):
        for count in range(1, max(len(path.parts) for path in candidates)):
            labels = ["/".join(path.parts[-count:]) for path in candidates]
            if len(set(labels)) == len(labels):
                return labels
    raise UserError("a source is named twice; name each once")


def _protocol(named: Protocol | None, sources: Sequence[Source], crop: int) -> Protocol:
    kinds = {source.kind for source in sources if source.kind is not None}
    protocol = named or protocol_of_kind(min(kinds) if len(kinds) == 1 else "")
    return dataclasses.replace(protocol, crop=protocol.crop + crop)


def _check_sources(
    sources: Sequence[Source], protocol: Protocol, options: argparse.Namespace
) -> None:
    """Everything that needs no rendering."""
    for source in sources:
        refuse_small(source, protocol)
        if options.temporal and not any(item.clip for item in source.items):
            raise UserError(f"--temporal: {source.label}: {NO_CLIP}; leave the flag out")
        if options.strict:
            found = deviations(source, protocol, choose(source, protocol))
            if found:
                raise UserError(
                    f"--strict: {source.label} is not as protocol {protocol.name} has it: "
                    f"{'; '.join(found)}"
                )


def _measure(
    sources: list[Source], protocol: Protocol, options: argparse.Namespace
) -> list[Measured]:
    """Source by source; the frames of one are let go before the next."""
    measured: list[Measured] = []
    while sources:
        source = sources.pop(0)
        perceptual = Perceptual(NETS if options.lpips != "none" else (), source.device)
        meter = Meter(
            source,
            protocol,
            perceptual,
            in_time=options.temporal is not False,
            every_lpips=options.lpips == "all",
        )
        keep = [picture.name for picture in measured[0].worst] if measured else []
        measured.append(meter.measure(worst=options.worst, keep=keep, quiet=options.quiet))
    return measured


def _as_text(table) -> str:
    """The table, aligned."""
    rows = [list(table.heads), *(list(row) for row in table.rows)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = (
        "  ".join(
            [
                row[0].ljust(widths[0]),
                *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)),
            ]
        )
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)
