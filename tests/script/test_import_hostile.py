"""Published run folders made to harm: nothing in them runs, and each is refused in one line."""

from __future__ import annotations

import os
import pickle
import struct
import time
import tracemalloc
import zipfile
from pathlib import Path

import pytest
import torch

import published
from script.import_checkpoint import main
from utils.errors import cli

NET = "point_cloud/iteration_14000/deformation.pth"
PLY = "point_cloud/iteration_14000/point_cloud.ply"


@pytest.fixture
def root(tmp_path) -> Path:
    published.write_4dgs(tmp_path / "theirs")
    return tmp_path / "theirs"


def refused(root: Path, capsys, *flags: str) -> str:
    """The one line of the refusal, which came quickly, cheaply, and left nothing behind."""
    before = sorted(root.parent.iterdir())
    start = time.perf_counter()
    tracemalloc.start()
    with pytest.raises(SystemExit) as stop:
        cli(lambda _: main([str(root), str(root.parent / "ours"), *flags]))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    said = capsys.readouterr()
    assert stop.value.code == 2 and not said.out
    assert said.err.startswith("error: ") and said.err.count("\n") == 1 and len(said.err) < 1500
    assert time.perf_counter() - start < 10 and peak < 50_000_000
    assert sorted(root.parent.iterdir()) == before
    return said.err


class _Runs:
    """Unpickling it touches a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


CODE = [
    "Namespace(a=__import__('os').system('touch {trace}'))",
    "__import__('os').system('touch {trace}')",
    "Namespace(a=1) if __import__('os').system('touch {trace}') else 2",
    "Namespace(**__import__('os').environ)",
    "Namespace(a=[x for x in open('{trace}', 'w')])",
    "Namespace(a=(lambda: open('{trace}', 'w'))())",
    'Namespace(a=f\'{{open("{trace}", "w")}}\')',
    'exec(\'open("{trace}", "w")\')',
    "Namespace(a=10**10**10)",
    "Namespace(a='x' * 10**12)",
]


@pytest.mark.parametrize("code", CODE)
def test_code_in_the_settings_is_text(root, capsys, tmp_path, code):
    trace = tmp_path / "trace"
    (root / "cfg_args").write_text(code.format(trace=trace))
    assert "cfg_args" in refused(root, capsys)
    assert not trace.exists()


@pytest.mark.parametrize(
    "text",
    [
        "Namespace(a=" + "[" * 50_000 + "]" * 50_000 + ")",
        "Namespace(a=" + "-" * 200_000 + "1)",
        "Namespace(a=" + "{'b':" * 5_000 + "1" + "}" * 5_000 + ")",
        "Namespace(a=" + "(" * 150 + "1" + ",)" * 150 + ", b=" + "1+" * 100_000 + "1)",
        "Namespace(a=" + "9" * 100_000 + ")",
        "Namespace(" * 3_000,
        "Namespace(a=1, a=2)",
        "Namespace(1)",
        "Namespace(a='\0')",
        "x" * 3_000_000,
        "",
    ],
    ids=lambda text: text[:30] or "empty",
)
def test_settings_that_no_program_printed(root, capsys, text):
    (root / "cfg_args").write_text(text)
    assert "cfg_args" in refused(root, capsys)


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("packed", ["pickle", "torch.save"])
def test_a_pickle_that_runs_a_command_runs_nothing(root, capsys, tmp_path, packed, protocol):
    trace = tmp_path / "trace"
    harm = {"deformation_net.grid.aabb": _Runs(trace)}
    if packed == "pickle":
        (root / NET).write_bytes(pickle.dumps(harm, protocol=protocol))
    else:
        torch.save(harm, root / NET, pickle_protocol=max(protocol, 2))
    assert "deformation.pth" in refused(root, capsys)
    assert not trace.exists()


def test_a_pickle_in_any_file_of_tensors(tmp_path, capsys):
    trace = tmp_path / "trace"
    for write, name, family in (
        (published.write_grid4d, "deform/iteration_20000/deform.pth", {}),
        (published.write_mode, "deform/iteration_30000/deform.pth", {"hashed": True}),
        (published.write_mode, "point_cloud/iteration_30000/embnet.pth", {"hashed": False}),
        (published.write_4dgs, "point_cloud/iteration_14000/deformation_table.pth", {}),
    ):
        root = tmp_path / f"{write.__name__}{len(family)}{name[:2]}{family.get('hashed')}"
        write(root, **family)
        torch.save(({"a": _Runs(trace)}, {}), root / name)
        assert Path(name).name in refused(root, capsys)
    assert not trace.exists()


def _repacked(path: Path, method: int, extra: bytes | None = None) -> None:
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    if extra is not None:
        name = next(n for n in members if "/data/" in n)
        members[name] = extra
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def test_a_zip_bomb_is_not_unpacked(root, capsys):
    _repacked(root / NET, zipfile.ZIP_DEFLATED, bytes(200_000_000))
    assert (root / NET).stat().st_size < 1_000_000
    assert "claims more bytes than it has" in refused(root, capsys)


def test_a_zip_whose_members_lie_on_top_of_each_other(root, capsys):
    """Many entries for the same bytes: small as a file, large as what it holds."""
    data = bytearray((root / NET).read_bytes())
    end = data.rindex(b"PK\x05\x06")
    count, _, size, offset = struct.unpack("<HHII", data[end + 8 : end + 20])
    entries = bytes(data[offset : offset + size])
    copies = 60
    tail = struct.pack("<HHIIH", count * copies, count * copies, size * copies, offset, 0)
    head = b"PK\x05\x06" + bytes(4)
    (root / NET).write_bytes(bytes(data[:offset]) + entries * copies + head + tail)
    assert "deformation.pth" in refused(root, capsys)


@pytest.mark.parametrize("kind", ["expanded", "sparse", "nan", "text", "list", "complex"])
def test_tensors_that_are_none(root, capsys, kind):
    values = {
        "expanded": torch.zeros(1).expand(10**12),  # 4 bytes on disk, 4 TB as claimed
        "sparse": torch.sparse_coo_tensor([[0]], [1.0], (10**12,)),
        "nan": torch.full((2, 3), torch.nan),
        "text": "aabb",
        "list": [torch.zeros(3)] * 2,
        "complex": torch.zeros(2, 3, dtype=torch.complex64),
    }
    state = torch.load(root / NET, weights_only=True)
    torch.save(state | {"deformation_net.grid.aabb": values[kind]}, root / NET)
    assert "deformation.pth" in refused(root, capsys)


@pytest.mark.parametrize("content", [b"", b"PK\x05\x06" + bytes(18), b"\x80\x02.", b"x" * 5000])
def test_files_that_are_no_archive(root, capsys, content):
    (root / NET).write_bytes(content)
    assert "deformation.pth" in refused(root, capsys)


def test_truncations_are_one_line(root, capsys):
    whole = (root / NET).read_bytes()
    for length in range(0, len(whole), len(whole) // 25):
        (root / NET).write_bytes(whole[:length])
        assert "deformation.pth" in refused(root, capsys)


def test_a_ply_that_claims_a_million_million_gaussians(root, capsys):
    data = (root / PLY).read_bytes()
    (root / PLY).write_bytes(data.replace(b"vertex 40\n", b"vertex 1000000000000\n"))
    assert "claims 1000000000000 vertex rows" in refused(root, capsys)


def test_gaussians_that_are_not_finite(root, capsys):
    c = published.canonical()
    c["opacity"][3] = float("nan")
    published.write_ply(root / PLY, c)
    assert "1 Gaussians have opacity that is not finite" in refused(root, capsys)


@pytest.mark.parametrize("name", ["cfg_args", NET, PLY])
def test_links_to_files_elsewhere(root, capsys, tmp_path, name):
    (root / name).rename(tmp_path / "elsewhere")
    (root / name).symlink_to(tmp_path / "elsewhere")
    assert "is a symbolic link" in refused(root, capsys)


def test_a_link_in_the_place_of_the_destination(root, tmp_path, capsys):
    target = tmp_path / "target"
    (tmp_path / "ours").symlink_to(target)
    assert "is there already" in refused(root, capsys)
    assert not target.exists()


def test_paths_in_the_settings_lead_nowhere(root, tmp_path):
    """Nothing is read from or written to a place that the source names."""
    names = {"model_path": str(tmp_path / "evil"), "expname": "../../evil", "images": "../../x"}
    published.write_settings(root, **published.hexplane_settings(**names, source_path="../../etc"))
    before = {p for p in tmp_path.rglob("*") if root not in p.parents}
    main([str(root), str(tmp_path / "ours")])
    made = {p for p in tmp_path.rglob("*") if root not in p.parents} - before
    assert all((tmp_path / "ours") in (p, *p.parents) for p in made)


@pytest.mark.parametrize("wanted", ["../../x", "7/../14000", "-2", "1e4", "best", ""])
def test_iterations_that_are_paths(root, capsys, wanted):
    assert "--iteration" in refused(root, capsys, f"--iteration={wanted}")


@pytest.mark.parametrize(
    "change",
    [
        {"warm_up": "x"},
        {"grid_args": {"bound": 0}},
        {"grid_args": {"bound": "1.6"}},
        {"scale_xyz": -1},
        {"network_args": {"width": 8, "depth": 0}},
        {"network_args": 3},
        {"sh_degree": True},
        {"resolution": "2"},
    ],
    ids=str,
)
def test_settings_of_no_such_network(tmp_path, capsys, change):
    published.write_grid4d(tmp_path / "theirs", **change)
    assert "cfg_args" in refused(tmp_path / "theirs", capsys)


@pytest.mark.parametrize(
    "name, value",
    [
        ("offsets", torch.tensor([0, 2**31 - 1], dtype=torch.int32)),
        ("offsets", torch.tensor([0], dtype=torch.int32)),
        ("base_resolution", torch.tensor([2**30] * 3, dtype=torch.int32)),
        ("base_resolution", torch.zeros(3, dtype=torch.int32)),
        ("per_level_scale", torch.full((3,), 1e30)),
        ("per_level_scale", torch.full((3,), -1.0)),
        ("per_level_scale", torch.full((3,), 20.0)),
    ],
)
def test_grids_that_claim_more_than_they_hold(tmp_path, capsys, name, value):
    published.write_grid4d(tmp_path / "theirs")
    path = tmp_path / "theirs/deform/iteration_20000/deform.pth"
    grid, net = torch.load(path, weights_only=True)
    grid[f"xyt_encoding.{name}"] = value
    torch.save((grid, net), path)
    assert "deform.pth (grids): xyt" in refused(tmp_path / "theirs", capsys)
