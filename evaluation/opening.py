"""From what the command line names to sources: runs, what `render_*.py` wrote, folders of images.

Everything that can be wrong with them shows here, before anything is rendered or measured.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from arguments_MoDE.cli import parse_rendering
from evaluation.sources import FolderSource, Item, MoESource, RunSource, Source
from scene import load_scene
from scene.experts import REGISTRY
from training.checkpoint import load_run
from training.launch import choose_device, set_precision
from training.moe.files import check_scene, device_of, load_moe, read_settings
from utils.errors import UserError
from utils.images import SUFFIXES, check_image, natural_key

# Mean difference, levels of 255: decoders round differently, neighbouring frames differ by more.
SAME_PICTURE = 0.25


def open_run(
    folder: Path, label: str, *, iteration: int, device: str, source_path: str | None, quiet: bool
) -> RunSource:
    """A trained run and its scene.

    Raises:
        UserError: it is none, is damaged, or holds out no views.
    """
    if (folder / "moe.json").is_file():
        return _open_moe(folder, label, iteration, device, source_path, quiet)
    argv = ["--model_path", str(folder), "--iteration", str(iteration), "--device", device]
    argv += ["--source_path", source_path] if source_path else []
    arguments = parse_rendering(argv, "evaluate.py", "", tuple(REGISTRY))
    chosen = choose_device(device, arguments.config, quiet=quiet)
    set_precision(arguments.config)
    run = load_run(arguments.model_path, iteration, chosen)
    scene = load_scene(arguments.config.model)
    if not scene.test:
        raise UserError(f"{scene.source_path} holds out no views, so that {folder} has no test set")
    return RunSource(label, run, scene)


def _open_moe(
    folder: Path, label: str, iteration: int, device: str, source_path: str | None, quiet: bool
) -> MoESource:
    run = load_moe(folder, iteration)
    run.model.to(device_of(device, run.runs, quiet=quiet))
    set_precision(run.config)
    settings = run.config.model
    settings.source_path = str(Path(source_path or settings.source_path).expanduser().absolute())
    scene = load_scene(settings)
    check_scene(run.runs, scene)
    if not scene.test:
        raise UserError(f"{scene.source_path} holds out no views, so that {folder} has no test set")
    return MoESource(label, run, scene)


def open_rendered(folder: Path, label: str, device: str) -> FolderSource:
    """What `render_*.py` left of a set: ``renders/``, ``gt/`` and ``metrics.json``.

    Raises:
        UserError: it is not whole, or was measured with masks, which pictures do not carry.
    """
    record = _record(folder / "metrics.json")
    if record.get("masked"):
        raise UserError(
            f"{folder}: measured with masks, which its pictures do not carry; give the run folder"
        )
    source = open_folders(folder / "renders", folder / "gt", label, device=device)
    views = record.get("per_view")
    if not isinstance(views, dict) or len(views) != len(source.items):
        raise UserError(
            f"{folder}: metrics.json does not list its {len(source.items)} pictures; "
            "render the run again"
        )
    names = list(views)
    if [item.name for item in source.items] != [f"{i:05d}" for i in range(len(names))]:
        raise UserError(f"{folder / 'renders'}: not 00000.png and so on; render the run again")
    source.items = _named(source.items, names)
    source.views = record.get("set")
    source.facts = {
        "rendered": str(folder),
        "set": source.views,
        "iteration": record.get("iteration"),
    }
    used = record.get("experts_used")
    if isinstance(used, list):
        source.facts["experts_used"] = used
        every = _experts_of(folder.resolve().parent.parent)
        if used != every:
            others = f", of {', '.join(every)}" if every else ""
            source.notes.append(f"rendered with the experts {', '.join(map(str, used))}{others}")
    return source


def _experts_of(folder: Path) -> list[str] | None:
    """The experts of the MoE whose folder this is; None: it is none, or cannot be read."""
    try:
        return [member.name for member in read_settings(folder)[1]]
    except UserError:
        return None


def _record(path: Path) -> dict:
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not readable ({error}); render the run again") from None
    if not isinstance(record, dict):
        raise UserError(f"{path}: holds no metrics; render the run again")
    return record


def _named(items: Sequence[Item], names: Sequence[str]) -> list[Item]:
    """The items with the names of views, ``<camera>/<frame>``."""
    cameras = [name.rpartition("/")[0] for name in names]
    several = {camera for camera, count in Counter(cameras).items() if count > 1}
    return [
        Item(name, camera, camera if camera in several else None, index, item.size)
        for index, (item, name, camera) in enumerate(zip(items, names, cameras, strict=True))
    ]


def open_folders(
    renders: Path,
    truth: Path,
    label: str,
    *,
    by_order: bool = False,
    backdrop: tuple[int, int, int] = (255, 255, 255),
    device: str = "cpu",
) -> FolderSource:
    """Two folders of images of the same names; folders in them are cameras.

    Args:
        by_order: pairs by order of name in place of names.
        backdrop: colour behind transparent pixels.

    Raises:
        UserError: numbers, names or sizes of pictures differ, or a file is damaged.
    """
    ours, theirs = _pictures(renders), _pictures(truth)
    _refuse_difference(renders, truth, ours, theirs, by_order)
    if by_order:
        theirs = dict(zip(ours, theirs.values(), strict=True))
    files = [(ours[name], theirs[name]) for name in ours]
    sizes = [_common_size(*pair) for pair in files]
    facts = {"renders": str(renders), "ground_truth": str(truth)}
    return FolderSource(label, _items(list(ours), sizes), files, facts, [], backdrop, device)


def _pictures(folder: Path) -> dict[str, Path]:
    """Name without suffix, with the folder it is in -> file; in natural order."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give a run, or a folder of images and --gt")
    paths = [
        *folder.iterdir(),
        *(p for sub in folder.iterdir() if sub.is_dir() for p in sub.iterdir()),
    ]
    paths = [path for path in paths if path.suffix.lower() in SUFFIXES and path.is_file()]
    found: dict[str, Path] = {}
    for path in sorted(paths, key=lambda p: natural_key(p.relative_to(folder).as_posix())):
        name = path.relative_to(folder).with_suffix("").as_posix()
        if name in found:
            raise UserError(f"{path} and {found[name].name} have one name; remove one of them")
        found[name] = path
    if not found:
        raise UserError(f"{folder}: holds no images ({', '.join(SUFFIXES)})")
    return found


def _refuse_difference(
    renders: Path, truth: Path, ours: dict[str, Path], theirs: dict[str, Path], by_order: bool
) -> None:
    if len(ours) != len(theirs):
        odd = _first_alone(ours, theirs)
        raise UserError(
            f"{renders} holds {len(ours)} pictures, --gt {truth} {len(theirs)}{odd}; "
            "give folders with a picture each for the same views"
        )
    if not by_order and set(ours) != set(theirs):
        odd = _first_alone(ours, theirs)
        raise UserError(
            f"{renders} and --gt {truth} name their pictures differently{odd}; "
            "rename them, or pair them in order of name with --by_order"
        )


def _first_alone(ours: dict[str, Path], theirs: dict[str, Path]) -> str:
    """Names the first picture without a partner."""
    alone = [name for name in ours if name not in theirs]
    alone = alone or [name for name in theirs if name not in ours]
    return f" ({alone[0]} has no partner)" if alone else ""


def _common_size(render: Path, truth: Path) -> tuple[int, int]:
    size, other = check_image(render), check_image(truth)
    if size != other:
        raise UserError(
            f"{render} is {size[0]}x{size[1]} and {truth} {other[0]}x{other[1]} pixels; "
            "render at the size of the ground truth"
        )
    return size


def _items(names: Sequence[str], sizes: Sequence[tuple[int, int]]) -> list[Item]:
    """A folder's pictures are a clip if there are several and all of their names have numbers."""
    folders = [name.rpartition("/")[0] for name in names]
    members = {
        folder: [n for n, f in zip(names, folders, strict=True) if f == folder]
        for folder in folders
    }
    clips = {
        folder: folder or "."
        for folder, inside in members.items()
        if len(inside) > 1 and _are_numbered([name.rpartition("/")[2] for name in inside])
    }
    return [
        Item(name, folder or ".", clips.get(folder), index, size)
        for index, (name, folder, size) in enumerate(zip(names, folders, sizes, strict=True))
    ]


def _are_numbered(stems: Sequence[str]) -> bool:
    """Whether names differ in numbers alone, which then are moments."""
    return (
        all(re.search(r"[0-9]", s) for s in stems)
        and len({re.sub(r"[0-9]+", "#", s) for s in stems}) == 1
    )


def is_run(folder: Path) -> bool:
    """Whether it looks like a run folder."""
    return any((folder / name).is_file() for name in ("config.json", "moe.json"))


def is_rendered(folder: Path) -> bool:
    """Whether it looks like a set that `render_*.py` wrote."""
    return (folder / "renders").is_dir() and (folder / "gt").is_dir()


def refuse_different_views(sources: Sequence[Source]) -> None:
    """Sources are compared on the same pictures or not at all.

    Raises:
        UserError: names, numbers or sizes of their pictures differ, or the ground truth does.
    """
    first = sources[0]
    for other in sources[1:]:
        mine = {item.name: item.size for item in first.items}
        theirs = {item.name: item.size for item in other.items}
        if mine == theirs:
            _refuse_different_truth(first, other)
            continue
        odd = next((n for n in [*mine, *theirs] if mine.get(n) != theirs.get(n)), "their order")
        sizes = [s.get(odd) for s in (mine, theirs)]
        shown = " and ".join(f"{s[0]}x{s[1]}" if s else "missing" for s in sizes)
        raise UserError(
            f"{first.label} and {other.label} have different test views: {odd} is {shown}; "
            "evaluate them one by one"
        )


def _refuse_different_truth(first: Source, other: Source) -> None:
    """Names say the position in a clip, and not which frames of which scene these are.

    The first two moments of a camera tell clips apart that begin elsewhere or leave out frames.
    """
    rows = {item.name: index for index, item in enumerate(other.items)}
    camera = first.items[0].camera
    order = sorted(
        range(len(first.items)),
        key=lambda i: (first.items[i].camera != camera, first.items[i].moment),
    )
    for index in order[:2]:
        name = first.items[index].name
        apart = (first.peek(index).float() - other.peek(rows[name]).float()).abs().mean()
        if apart > SAME_PICTURE:
            raise UserError(
                f"{first.label} and {other.label} have different ground truth: {name} is of "
                "another frame or scene, or over another background; evaluate them one by one"
            )
