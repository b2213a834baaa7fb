"""Imports a published checkpoint into a run folder that can be rendered and measured here.

python script/import_checkpoint.py <published run> <run folder>
python script/import_checkpoint.py <published run> <run folder> --source_path <scene>

Published runs are those of 4DGaussians (4dgs), E-D3DGS (ed3dgs), Grid4D (grid4d) and MoDE (mode),
as their training wrote them: cfg_args, point_cloud/iteration_<n>/ and, for hash grids,
deform/iteration_<n>/. Nothing in them is executed: settings are read as literals, tensors by a
restricted reader. What becomes of everything is printed and written to import.json. docs/import.md
says what maps, and what does not.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from arguments_MoDE.saved import save_config
from arguments_MoDE.values import validate
from scene.experts import REGISTRY
from script.importing.families import FAMILIES, account, build, open_source
from script.importing.listing import Listing
from training.checkpoint import save_model
from utils.errors import UserError, cli
from utils.files import atomic_folder, write_json


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(
        prog="import_checkpoint.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("source", type=Path, help="published run folder; it is only read")
    parser.add_argument("destination", type=Path, help="run folder to make; it must not exist")
    parser.add_argument("--family", choices=tuple(FAMILIES), help="default: by the files")
    parser.add_argument(
        "--iteration", default="-1", help="a number, or best (Grid4D); -1, the default: the last"
    )
    parser.add_argument(
        "--configs", type=Path, help="the recipe it was trained with, laid over its cfg_args"
    )
    parser.add_argument(
        "--source_path", "-s", help="where the scene is now; default: where it was trained"
    )
    parser.add_argument(
        "--time_convention",
        choices=("published", "full"),
        help="time of frame i of F: i/F (published) or i/(F-1) (full); default: published, but "
        "full for 4DGaussians and Grid4D where the scene is HyperNeRF's",
    )
    parser.add_argument(
        "--allow_partial",
        action="store_true",
        help="import although pictures will differ from the published ones, as the listing says",
    )
    arguments = parser.parse_args(argv)
    if arguments.destination.is_symlink() or arguments.destination.exists():
        raise UserError(f"{arguments.destination} is there already; name a folder to be made")
    scene = arguments.source_path
    if scene is not None and not os.path.isdir(os.path.expanduser(scene)):
        what = "is a file" if os.path.isfile(os.path.expanduser(scene)) else "no such folder"
        raise UserError(f"--source_path {scene}: {what}; give the scene's folder, or leave it out")
    return arguments


def main(argv: Sequence[str] | None = None) -> None:
    """Reads, converts, writes."""
    arguments = parse(argv)
    listing = Listing()
    source = open_source(
        arguments.source, arguments.family, arguments.iteration, arguments.configs, listing
    )
    model, config = build(source, arguments.source_path, arguments.time_convention)
    account(source)
    try:
        validate(config, tuple(REGISTRY))
    except UserError as error:
        raise UserError(f"{arguments.source}: {error}; it cannot be imported") from None
    if listing.wrong and not arguments.allow_partial:
        raise UserError(
            f"{arguments.source} cannot be represented here, its pictures would be wrong: "
            f"{'; '.join(listing.wrong)} (--allow_partial imports it nevertheless)"
        )
    with atomic_folder(arguments.destination) as folder:
        save_config(config, folder / "config.json")
        save_model(model, folder, source.iteration, 0.0)
        write_json(folder / "import.json", _record(source.family, source.iteration, listing))
    print("\n".join(listing.lines()))
    program = "render_hash.py" if "hash" in config.hidden.experts else "render_emb.py"
    print(f"{arguments.destination}: {source.family}, iteration {source.iteration}; render it with")
    print(f"python {program} --model_path {shlex.quote(str(arguments.destination))}")


def _record(family: str, iteration: int, listing: Listing) -> dict[str, Any]:
    return {"format": 1, "family": family, "iteration": iteration, **vars(listing)}


if __name__ == "__main__":
    cli(main)
