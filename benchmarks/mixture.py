"""Does a mixture beat its members? Trains every variant on every scene and tabulates the result.

    python benchmarks/mixture.py --data ../shared/data --out output/mixture --jobs 2
    python benchmarks/mixture.py --data ../shared/data --out output/mixture --table

A *cell* is one training run: a scene, a variant (which experts, which gate) and a seed. All cells
of a scene have the same recipe, iterations and limit of Gaussians, and one thread each; finished
cells are kept, so that a run that was stopped goes on where it was. ``--split val`` measures on
views that are neither trained on nor among the test views: design decisions are taken there, so
that the test views are looked at once.

PSNR is the mean over the held-out views, of the whole image and of the *moving region*: pixels of a
camera whose ground truth varies over the clip (standard deviation over time of any colour channel
above `MOVING`). Seconds are processor time of training.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

MOVING = 0.03  # standard deviation over time, of colours in [0, 1]
FEWEST_FRAMES = 5  # of a camera, to speak of a variance over time


@dataclass(frozen=True)
class Case:
    """A scene, how it is cut to size, and which cameras are held out."""

    name: str
    folder: str  # below --data, or below the repository if it is there
    recipe: str
    flags: list[str]
    seeds: int
    test_cameras: list[str] = field(default_factory=list)  # empty: the format's own split
    val_cameras: list[str] = field(default_factory=list)  # out of training for --split val
    extra: bool = False  # not part of the table


SHORT_RUN = (
    # the hash grids' tables would cost as much as all points
    "--grid_args canonical_num_levels=8 canonical_log2_hashmap_size=14 deform_num_levels=8 "
    "deform_log2_hashmap_size=14 "
    # the embedding would be faded in over 1000 iterations, which some of these runs do not have
    "--no-emb_use_anneal"
).split()
DNERF_FLAGS = (
    "--resolution 200 --batch_size 1 --iterations 1200 --coarse_iterations 200 "
    "--max_gaussians 6000 --max_points 4000 --densify_until_iter 800 --densify_from_iter 100 "
    "--pruning_from_iter 100 --loss l2 "  # under L1 an object that is mostly elsewhere fades away
    # squared errors have smaller gradients; in so few steps positions need longer ones
    "--densify_grad_threshold_coarse 5e-5 --densify_grad_threshold_fine_init 5e-5 "
    "--densify_grad_threshold_after 5e-5 --position_lr_init 1e-3 --position_lr_final 1e-5 "
    "--hash_time_smooth_weight 0.05 --hash_space_smooth_weight 0.05"
).split() + SHORT_RUN
PANOPTIC_FLAGS = (
    "--resolution 4 --duration 30 --iterations 2500 --coarse_iterations 500 --batch_size 1 "
    "--max_gaussians 8000 --densify_until_iter 1500 "
    "--lambda_dssim 0.2"  # L1 alone is content with fog before the cameras
).split() + SHORT_RUN
# The longer run of the best mixture and its best member: only when asked for by --scenes.
HALF_FLAGS = (
    "--resolution 2 --duration 30 --iterations 4000 --coarse_iterations 800 --batch_size 1 "
    "--max_gaussians 16000 --densify_until_iter 2400 --lambda_dssim 0.2"
).split() + SHORT_RUN
DEMO_FLAGS = (
    "--iterations 800 --coarse_iterations 200 --max_gaussians 7000 --no-emb_use_anneal "
    "--position_lr_init 1e-3 --position_lr_final 1e-5"
).split()

CASES = (
    Case("demo", "demo/scene", "demo/demo_hash.py", DEMO_FLAGS, 3, ["cam00"], ["cam04"]),
    *(
        Case(name, f"dnerf_mujoco/{name}", "dnerf/default_hash_cpu.py", DNERF_FLAGS, 3)
        for name in (
            "scene3_collision",
            "scene5_rapid_motion",
            "scene7_deformation",
            "scene10_texture",
        )
    ),
    Case(
        "panoptic_basketball",
        "panoptic_basketball",
        "panoptic/default_hash_cpu.py",
        PANOPTIC_FLAGS,
        1,
        ["0", "10", "15", "30"],
        ["5", "21"],
    ),
    Case(
        "panoptic_half",
        "panoptic_basketball",
        "panoptic/default_hash_cpu.py",
        HALF_FLAGS,
        1,
        ["0", "10", "15", "30"],
        ["5", "21"],
        extra=True,
    ),
)

# The warm-up that never ends: every gate is 1 / E, a plain average of the experts.
UNIFORM = "--warmup_gate uniform --gaiting_from_iter 1000000"
VARIANTS = {
    "hexplane": "--experts hexplane",
    "embedding": "--experts embedding",
    "hash": "--experts hash",
    "hexplane+embedding": "--experts hexplane embedding",
    "hexplane+hash": "--experts hexplane hash",
    "three": "--experts hexplane embedding hash --moe_top_k 0",
    "embedding, published gate": "--experts hexplane embedding --gate published",
    "embedding, plain sum": "--experts hexplane embedding --gate sum",
    "hash, published gate": "--experts hexplane hash --gate published",
    "hash, plain sum": "--experts hexplane hash --gate sum",
    "hash, uniform gates": f"--experts hexplane hash {UNIFORM}",
    "three, uniform gates": f"--experts hexplane embedding hash --moe_top_k 0 {UNIFORM}",
}
MEMBERS = {  # of the mixtures
    "hexplane+embedding": ("hexplane", "embedding"),
    "hexplane+hash": ("hexplane", "hash"),
    "three": ("hexplane", "embedding", "hash"),
}
CONTROLS = {  # the same experts without a router that learns -> with one
    "embedding, published gate": "hexplane+embedding",
    "embedding, plain sum": "hexplane+embedding",
    "hash, published gate": "hexplane+hash",
    "hash, plain sum": "hexplane+hash",
    "hash, uniform gates": "hexplane+hash",
    "three, uniform gates": "three",
}
CONTROL_SEEDS = 1  # compared with the same seeds of their mixture


# ---- one cell -----------------------------------------------------------------------------------


def train_and_measure(case: Case, arguments: argparse.Namespace, flags: list[str]) -> dict:
    """Trains in this process and measures the held-out views."""
    from training.launch import train_main

    scene_folder = _scene_folder(case, arguments)
    run = arguments.out / arguments.split / "runs" / file_name(arguments.cell)
    held_out = case.test_cameras + (case.val_cameras if arguments.split == "val" else [])
    command = ["-s", str(scene_folder), "--expname", str(run), "--overwrite", "--quiet"]
    command += ["--configs", str(ROOT / "arguments_MoDE" / case.recipe), "--threads", "1"]
    command += [*case.flags, *(["--test_cameras", *held_out] if held_out else []), *flags]
    started = time.process_time()
    train_main(command, "mixture.py", "", ("hexplane", "hash"))
    seconds = time.process_time() - started
    record = measure(run, case, arguments.split)
    ms = 1000 * seconds / record["iterations"]
    return {**record, "seconds": round(seconds, 1), "ms": round(ms, 1), "flags": flags}


def _scene_folder(case: Case, arguments: argparse.Namespace) -> Path:
    """The scene; for validation of a D-NeRF scene, a copy whose test views are its ``val`` ones."""
    own = ROOT / case.folder
    folder = own if own.is_dir() else arguments.data / case.folder
    if arguments.split == "test" or case.val_cameras:
        return folder
    linked = arguments.out / "val_scenes" / case.name
    linked.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        link = linked / path.name
        source = folder / "transforms_val.json" if path.name == "transforms_test.json" else path
        with contextlib.suppress(FileExistsError):  # of an earlier cell, or one that runs now
            link.symlink_to(source.resolve())
    return linked


def measure(run: Path, case: Case, split: str) -> dict:
    """PSNR of the held-out views of a trained run, whole image and moving region; its count."""
    import torch

    from scene.datasets import load_scene
    from training.checkpoint import load_run
    from training.evaluation import ViewRenderer, target_of
    from utils.metrics import psnr

    trained = load_run(run)
    scene = load_scene(trained.config.model)
    views = scene.test
    if split == "val" and case.val_cameras:
        rows = [_row(camera, scene.camera_names) for camera in case.val_cameras]
        views = [view for view in views if view.camera_index in rows]
    masks = moving_masks([*scene.train, *scene.test])
    render = ViewRenderer(trained.model, scene, trained.iteration)
    whole, moving, skipped = [], [], 0
    for view in views:
        image, target = render(view).clamp(0, 1), target_of(view, "cpu")
        whole.append(psnr(image, target).item())
        mask = masks.get(pose_key(view))
        if mask is None or not bool(mask.any()):
            skipped += 1
            continue
        error = (image - target)[:, mask].square().mean()
        moving.append(-10 * torch.log10(error.clamp_min(1e-10)).item())
    return {
        "psnr": statistics.fmean(whole),
        "moving": statistics.fmean(moving),
        "views": len(whole),
        "views_without_moving_region": skipped,
        "gaussians": len(trained.model.gaussians),
        "iterations": trained.config.opt.iterations + trained.config.opt.coarse_iterations,
    }


def _row(camera: str, names: list[str]) -> int:
    return names.index(camera) if camera in names else int(camera)


def pose_key(view) -> tuple:
    """Equal for views from one place: in D-NeRF scenes a camera is a row per frame."""
    return tuple(round(x, 3) for x in view.camera.world_view_transform.flatten().tolist())


def moving_masks(views: list) -> dict:
    """Pose -> (H, W) pixels whose colour changes over the clip; only poses with enough frames."""
    import torch

    grouped = defaultdict(list)
    for view in views:
        grouped[pose_key(view)].append(view)
    masks = {}
    for key, group in grouped.items():
        if len(group) < FEWEST_FRAMES:
            continue
        frames = torch.stack([view.image() for view in group]).float() / 255  # (T, H, W, 3)
        masks[key] = (frames.std(0) > MOVING).any(-1)
    return masks


# ---- all cells ----------------------------------------------------------------------------------


def cells(arguments: argparse.Namespace) -> list[tuple[str, str, int]]:
    """(scene, variant, seed) in the order in which they are run: first seeds first."""
    named = arguments.scenes or [case.name for case in CASES if not case.extra]
    chosen = [case for case in CASES if case.name in named]
    variants = arguments.variants or list(VARIANTS)
    every = [
        (case.name, variant, seed)
        for case in chosen
        for variant in variants
        for seed in range(arguments.seeds or _seeds(case, variant))
    ]
    return sorted(every, key=lambda cell: cell[2])


def _seeds(case: Case, variant: str) -> int:
    return min(case.seeds, CONTROL_SEEDS) if variant in CONTROLS else case.seeds


def cell_name(scene: str, variant: str, seed: int) -> str:
    """Name of the cell's result and run folder."""
    return f"{scene}/{variant}/{seed}"


def file_name(cell: str) -> str:
    """A cell's name as a path."""
    return cell.replace(" ", "_").replace(",", "")


def result_path(arguments: argparse.Namespace, cell: str) -> Path:
    """Where a cell's numbers are kept."""
    return arguments.out / arguments.split / "results" / f"{file_name(cell)}.json"


def run_all(arguments: argparse.Namespace) -> None:
    """Runs the cells that have no result yet, ``--jobs`` at a time."""
    todo = [c for c in cells(arguments) if not result_path(arguments, cell_name(*c)).is_file()]
    print(f"{len(todo)} of {len(cells(arguments))} cells to run", flush=True)
    with ThreadPoolExecutor(arguments.jobs) as pool:
        list(pool.map(lambda cell: _run_cell(cell, arguments), todo))


def _run_cell(cell: tuple[str, str, int], arguments: argparse.Namespace) -> None:
    name, started = cell_name(*cell), time.time()
    command = [sys.executable, __file__, "--data", str(arguments.data), "--out"]
    command += [str(arguments.out), "--split", arguments.split, "--cell", name]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    path = result_path(arguments, name)
    if done.returncode or not path.is_file():
        print(f"{name}: failed\n{done.stderr[-2000:]}", flush=True)
        return
    record = json.loads(path.read_text())
    print(
        f"{name}: {record['psnr']:.2f} whole, {record['moving']:.2f} moving, "
        f"{record['gaussians']} Gaussians, {time.time() - started:.0f} s",
        flush=True,
    )


def run_one(arguments: argparse.Namespace) -> None:
    """Runs the cell named by ``--cell`` and writes its result."""
    scene, variant, seed = arguments.cell.split("/")
    case = next(case for case in CASES if case.name == scene)
    flags = [*VARIANTS[variant].split(), "--seed", seed]
    record = train_and_measure(case, arguments, flags)
    path = result_path(arguments, arguments.cell)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    temporary.write_text(json.dumps(record, indent=1))
    temporary.replace(path)


# ---- the table ----------------------------------------------------------------------------------


def load_results(arguments: argparse.Namespace) -> dict[tuple[str, str], list[dict]]:
    """(scene, variant) -> the records of its seeds, of the cells that are done."""
    done = defaultdict(list)
    for scene, variant, seed in cells(arguments):
        path = result_path(arguments, cell_name(scene, variant, seed))
        if path.is_file():
            done[scene, variant].append({**json.loads(path.read_text()), "seed": seed})
    return done


def mean(records: list[dict], key: str) -> float:
    """Mean over seeds."""
    return statistics.fmean(record[key] for record in records)


def spread(records: list[dict], key: str) -> float:
    """Standard deviation over seeds; 0 where there is one."""
    values = [record[key] for record in records]
    return statistics.stdev(values) if len(values) > 1 else 0.0


def tables(arguments: argparse.Namespace) -> str:
    """Everything as Markdown: all numbers, then the comparisons that matter."""
    done = load_results(arguments)
    scenes = list(dict.fromkeys(scene for scene, _ in done))
    variants = [v for v in VARIANTS if any((scene, v) in done for scene in scenes)]
    parts = [_numbers(done, scenes, variants, key) for key in ("psnr", "moving")]
    parts += [_costs(done, scenes, variants)]
    parts += [_gains(done, scenes, v) for v in variants if v in MEMBERS]
    parts += [_against(done, scenes, v) for v in variants if v in CONTROLS]
    return "\n\n".join(parts)


def _markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _numbers(done: dict, scenes: list[str], variants: list[str], key: str) -> str:
    title = {"psnr": "whole image", "moving": "moving region"}[key]
    rows = []
    for variant in variants:
        have = [done[scene, variant] for scene in scenes if (scene, variant) in done]
        row = [_with_spread(done.get((scene, variant)), key) for scene in scenes]
        average = statistics.fmean(mean(records, key) for records in have)
        rows.append([variant, *row, f"{average:.2f}" if len(have) == len(scenes) else "-"])
    return _markdown([f"PSNR, {title}", *scenes, "mean"], rows)


def _with_spread(records: list[dict] | None, key: str) -> str:
    if not records:
        return "-"
    if len(records) == 1:
        return f"{mean(records, key):.2f}"
    return f"{mean(records, key):.2f} ± {spread(records, key):.2f}"


def _costs(done: dict, scenes: list[str], variants: list[str]) -> str:
    rows = [
        [
            variant,
            *(
                f"{mean(done[s, variant], 'gaussians'):.0f} / {mean(done[s, variant], 'ms'):.0f}"
                if (s, variant) in done
                else "-"
                for s in scenes
            ),
        ]
        for variant in variants
    ]
    return _markdown(["Gaussians / ms per iteration", *scenes], rows)


def _gains(done: dict, scenes: list[str], mixture: str) -> str:
    """A mixture against the best of its members, which is chosen for each scene and column."""
    differences = {}
    for scene in scenes:
        members = [done[scene, m] for m in MEMBERS[mixture] if (scene, m) in done]
        if (scene, mixture) in done and len(members) == len(MEMBERS[mixture]):
            differences[scene] = [
                mean(done[scene, mixture], key) - max(mean(records, key) for records in members)
                for key in ("psnr", "moving")
            ]
    return _differences(f"{mixture} - its best member", differences)


def _against(done: dict, scenes: list[str], control: str) -> str:
    """The same experts with our router against a control, over the seeds that both have."""
    pair = {}
    for scene in scenes:
        routed, other = (
            {record["seed"]: record for record in done.get((scene, v), [])}
            for v in (CONTROLS[control], control)
        )
        common = routed.keys() & other.keys()
        if common:
            pair[scene] = [
                statistics.fmean(routed[seed][key] - other[seed][key] for seed in common)
                for key in ("psnr", "moving")
            ]
    return _differences(f"{CONTROLS[control]} - {control}", pair)


def _differences(title: str, differences: dict[str, list[float]]) -> str:
    if not differences:
        return f"{title}: not measured"
    means = [statistics.fmean(column) for column in zip(*differences.values(), strict=True)]
    columns = {**differences, "mean": means}
    rows = [
        [name, *(f"{pair[i]:+.2f}" for pair in columns.values())]
        for i, name in enumerate(("whole image", "moving region"))
    ]
    return _markdown([title, *columns], rows)


def main() -> None:
    """Runs or tabulates."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--out", type=Path, default=ROOT / "output" / "mixture")
    parser.add_argument("--split", choices=("val", "test"), default="test")
    parser.add_argument("--scenes", nargs="+", choices=[case.name for case in CASES])
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS))
    parser.add_argument("--seeds", type=int, help="seeds per cell; default: the scene's own number")
    parser.add_argument("--jobs", type=int, default=2, help="cells at a time, one thread each")
    parser.add_argument("--table", action="store_true", help="only tabulate what is done")
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.cell:
        run_one(arguments)
        return
    if not arguments.table:
        run_all(arguments)
    print(tables(arguments))


if __name__ == "__main__":
    main()
