"""Point clouds and the PLY files they come in.

The reader takes ascii and both binary byte orders, any scalar properties in any order, and skips
list properties and other elements. Every size that a header claims is checked against the size of
the file before anything is allocated, so a hostile header costs nothing.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

from utils.errors import UserError, brief
from utils.files import atomic_file

_TYPES = {
    "char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1",
    "short": "i2", "int16": "i2", "ushort": "u2", "uint16": "u2",
    "int": "i4", "int32": "i4", "uint": "u4", "uint32": "u4",
    "float": "f4", "float32": "f4", "double": "f8", "float64": "f8",
}  # fmt: skip
_NAMES = {"i1": "char", "u1": "uchar", "i2": "short", "u2": "ushort", "i4": "int", "u4": "uint"}
_NAMES |= {"f4": "float", "f8": "double"}
_BYTE_ORDERS = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}
_HEADER_BUDGET = 1 << 18  # bytes; a Gaussian cloud with a few hundred properties needs 10 kB
FINEST = 1e-18  # of a cloud's longest side: finer voxels cannot be counted in 64 bits
_MOST = np.iinfo(np.int64).max
_UNIT = 1.5  # rounding and resampling lift colours above 1; of 255 it would all be black
_FARTHEST = 1e12  # coordinate, world units: squares of it and of differences fit float32
_COLOURS = (
    ("red", "green", "blue"),
    ("r", "g", "b"),
    ("diffuse_red", "diffuse_green", "diffuse_blue"),
)


@dataclass
class PointCloud:
    """Coloured points.

    Attributes:
        xyz: (N, 3) float32, world units.
        rgb: (N, 3) uint8.
    """

    xyz: np.ndarray
    rgb: np.ndarray

    def __len__(self) -> int:
        return len(self.xyz)

    @property
    def bbox(self) -> np.ndarray:
        """(2, 3): lowest and highest coordinates."""
        return np.stack([self.xyz.min(axis=0), self.xyz.max(axis=0)])


@dataclass
class _Property:
    name: str
    dtype: str  # numpy's code without byte order
    count_dtype: str | None = None  # of a list's length; None for a scalar


@dataclass
class _Element:
    name: str
    count: int
    properties: list[_Property] = field(default_factory=list)

    @property
    def has_lists(self) -> bool:
        return any(p.count_dtype for p in self.properties)


def read_ply(path: str | Path) -> PointCloud:
    """Reads points and their colours (grey where the file has none).

    Raises:
        UserError: the file is missing, damaged, holds no point, or holds NaN coordinates.
    """
    vertices = read_vertices(path)
    missing = [axis for axis in "xyz" if axis not in vertices]
    if missing:
        raise UserError(f"{path}: has no vertex property {missing[0]!r}; it is not a point cloud")
    with np.errstate(over="ignore"):  # what overflows becomes infinite, which is refused
        xyz = np.stack([vertices[axis] for axis in "xyz"], axis=1).astype(np.float32)
    return checked_cloud(path, xyz, colours_of(vertices, len(xyz)))


def checked_cloud(path: str | Path, xyz: np.ndarray, rgb: np.ndarray) -> PointCloud:
    """A cloud that can be trained from.

    Raises:
        UserError: it holds no point, or coordinates that are not finite; the line names ``path``.
    """
    if not len(xyz):
        raise UserError(
            f"{path}: holds no points; make it again, for example from COLMAP's dense cloud, "
            "thinned to some 100,000 points"
        )
    bad = int((~np.isfinite(xyz).all(axis=1)).sum())
    if bad:
        raise UserError(f"{path}: {bad} of {len(xyz)} points are not finite; remove them")
    far = int((np.abs(xyz) > _FARTHEST).any(axis=1).sum())
    if far:
        raise UserError(
            f"{path}: {far} of {len(xyz)} points have coordinates above {_FARTHEST:g}; remove them"
        )
    return PointCloud(xyz, rgb)


def colours_of(vertices: dict[str, np.ndarray], count: int) -> np.ndarray:
    """(N, 3) uint8 from integer colours, or from floats in [0, 1]; grey where there are none.

    Args:
        vertices: as `read_vertices` returns them.
        count: N.
    """
    for names in _COLOURS:
        if all(name in vertices for name in names):
            rgb = np.stack([vertices[name] for name in names], axis=1)
            return colours_to_uint8(rgb)
    return np.full((count, 3), 128, np.uint8)


def colours_to_uint8(rgb: np.ndarray) -> np.ndarray:
    """uint8 of colours in [0, 1] (floats), [0, 255] (floats or 8 bit) or [0, 65535] (16 bit).

    Floats up to `_UNIT` are meant to be in [0, 1]; NaN becomes grey.
    """
    if rgb.dtype == np.uint8:
        return rgb
    if rgb.dtype == np.uint16:
        return (rgb // 257).astype(np.uint8)
    highest = np.fmax.reduce(rgb, axis=None, initial=0)
    scale = 255.0 if rgb.dtype.kind == "f" and highest <= _UNIT else 1.0
    values = np.nan_to_num(rgb.astype(np.float64) * scale, nan=128.0)
    return np.rint(values).clip(0, 255).astype(np.uint8)


def read_vertices(path: str | Path) -> dict[str, np.ndarray]:
    """Reads the scalar properties of the element ``vertex``.

    Returns:
        Property name -> (N,) array of the file's own type, native byte order.

    Raises:
        UserError: the file is missing, no PLY file, or shorter than its header claims.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            order, elements = _read_header(path, file)
            read = _read_ascii if order == "" else _read_binary
            return read(path, file, order, elements)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); restore the file") from None


def _fault(path: Path, what: str) -> UserError:
    return UserError(f"{path}: {what}; the PLY file is damaged, make or copy it again")


def _read_header(path: Path, file: BinaryIO) -> tuple[str, list[_Element]]:
    """Byte order ("" is ascii) and the elements in file order; leaves the file at the data."""
    if file.readline(8).strip() != b"ply":
        raise _fault(path, "does not begin with 'ply'")
    order, elements, budget = None, [], _HEADER_BUDGET
    while budget > 0:
        line = file.readline(budget)
        budget -= len(line)
        words = line.decode("ascii", "replace").split()
        if not line or not words:
            if not line:
                break
            continue
        if words[0] == "end_header":
            if order is None:
                break
            return order, elements
        if words[0] == "format":
            order = _BYTE_ORDERS.get(words[1] if len(words) > 1 else "")
        elif words[0] == "element":
            elements.append(_parse_element(path, words))
        elif words[0] == "property":
            _parse_property(path, words, elements)
    raise _fault(path, "has no complete header")


def _parse_element(path: Path, words: list[str]) -> _Element:
    if len(words) != 3 or not words[2].isdigit() or len(words[2]) > 18:
        raise _fault(path, f"header line {brief(' '.join(words), 60)!r} is not understood")
    return _Element(words[1], int(words[2]))


def _parse_property(path: Path, words: list[str], elements: list[_Element]) -> None:
    is_list = len(words) == 5 and words[1] == "list"
    types = words[2:4] if is_list else words[1:2]
    if not elements or len(words) != (5 if is_list else 3) or any(t not in _TYPES for t in types):
        raise _fault(path, f"header line {brief(' '.join(words), 60)!r} is not understood")
    codes = [_TYPES[t] for t in types]
    count_dtype = codes[0] if is_list else None
    if count_dtype and count_dtype.startswith("f"):
        raise _fault(path, f"header line {brief(' '.join(words), 60)!r} counts with fractions")
    elements[-1].properties.append(_Property(words[-1], codes[-1], count_dtype))


def _check_names(path: Path, element: _Element) -> None:
    names = [p.name for p in element.properties]
    if len(set(names)) != len(names):
        raise _fault(path, f"declares a property of {element.name} twice")


def _read_binary(
    path: Path, file: BinaryIO, order: str, elements: list[_Element]
) -> dict[str, np.ndarray]:
    data = np.fromfile(file, np.uint8)  # as long as the file is, whatever the header says
    offset = 0
    for element in elements:
        _check_names(path, element)
        if element.has_lists:
            rows, offset = _walk_lists(path, data, offset, order, element)
        else:
            rows, offset = _fixed_rows(path, data, offset, order, element)
        if element.name == "vertex":
            if element is elements[-1] and data[offset:].tobytes().strip():
                raise _fault(path, f"goes on for {len(data) - offset} bytes after the last row")
            return {name: np.ascontiguousarray(rows[name]) for name in rows}
    raise _fault(path, "has no element 'vertex'")


def _fixed_rows(
    path: Path, data: np.ndarray, offset: int, order: str, element: _Element
) -> tuple[dict[str, np.ndarray], int]:
    """Rows of scalars only: one view of the bytes."""
    dtype = np.dtype([(p.name, order + p.dtype) for p in element.properties])
    end = offset + element.count * dtype.itemsize
    if end > len(data):
        raise _fault(path, f"claims {element.count} {element.name} rows but ends before them")
    if not dtype.names:
        return {}, offset
    rows = data[offset:end].view(dtype)
    return {n: rows[n].astype(rows[n].dtype.newbyteorder("=")) for n in dtype.names}, end


def _walk_lists(
    path: Path, data: np.ndarray, offset: int, order: str, element: _Element
) -> tuple[dict[str, np.ndarray], int]:
    """Rows whose lists make them differ in length: walked one by one, lists skipped."""
    if element.count > len(data) - offset:  # every row takes a byte at least
        raise _fault(path, f"claims {element.count} {element.name} rows but ends before them")
    raw = data.tobytes()
    scalars: dict[str, list[float]] = {p.name: [] for p in element.properties if not p.count_dtype}
    layout = [
        (p.name, np.dtype(order + p.dtype), p.count_dtype and np.dtype(order + p.count_dtype))
        for p in element.properties
    ]
    try:
        for _ in range(element.count):
            for name, dtype, count_dtype in layout:
                if count_dtype is None:
                    scalars[name].append(np.frombuffer(raw, dtype, 1, offset)[0])
                    offset += dtype.itemsize
                else:
                    length = int(np.frombuffer(raw, count_dtype, 1, offset)[0])
                    offset += count_dtype.itemsize + max(length, 0) * dtype.itemsize
    except ValueError:
        raise _fault(path, f"ends inside the {element.name} rows") from None
    if offset > len(raw):
        raise _fault(path, f"ends inside the {element.name} rows")
    types = {p.name: p.dtype for p in element.properties}
    return {n: np.array(v, dtype=types[n]) for n, v in scalars.items()}, offset


def _read_ascii(
    path: Path, file: BinaryIO, order: str, elements: list[_Element]
) -> dict[str, np.ndarray]:
    for element in elements:
        _check_names(path, element)
        wanted = element.name == "vertex"
        rows = []
        for index in range(element.count):
            line = file.readline()
            if not line:
                raise _fault(path, f"ends after {index} of {element.count} {element.name} rows")
            if wanted:
                rows.append(_parse_row(path, line.split(), element))
        if wanted:
            scalars = [p for p in element.properties if not p.count_dtype]
            table = np.array(rows, dtype=np.float64).reshape(len(rows), len(scalars))
            if element is elements[-1] and any(line.strip() for line in file):
                raise _fault(path, f"goes on after {element.count} vertex rows")
            return {p.name: _typed(path, table[:, i], p) for i, p in enumerate(scalars)}
    raise _fault(path, "has no element 'vertex'")


def _typed(path: Path, values: np.ndarray, wanted: _Property) -> np.ndarray:
    """Numbers that were read as float64 as the type that the header declares."""
    dtype = np.dtype(wanted.dtype)
    if dtype.kind in "iu" and len(values):
        low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
        if not ((values >= low) & (values <= high)).all():
            raise _fault(path, f"has values of {wanted.name} that are no {_NAMES[wanted.dtype]}")
    with np.errstate(over="ignore"):  # becomes infinite, which is refused where it matters
        return values.astype(dtype)


def _parse_row(path: Path, words: list[bytes], element: _Element) -> list[float]:
    """The scalars of one ascii row; lists are stepped over."""
    values, position = [], 0
    try:
        for p in element.properties:
            if p.count_dtype:
                position += 1 + int(words[position])
            else:
                values.append(float(words[position]))
                position += 1
    except (ValueError, IndexError):
        raise _fault(path, f"row {b' '.join(words)[:60]!r} is not understood") from None
    return values


def write_ply(path: str | Path, cloud: PointCloud) -> None:
    """Writes binary PLY with zero normals, which other readers of the field insist on."""
    zeros = np.zeros(len(cloud), np.float32)
    columns = {axis: cloud.xyz[:, i].astype(np.float32) for i, axis in enumerate("xyz")}
    columns |= {"nx": zeros, "ny": zeros, "nz": zeros}
    columns |= {name: cloud.rgb[:, i].astype(np.uint8) for i, name in enumerate(_COLOURS[0])}
    write_vertices(path, columns)


def write_vertices(path: str | Path, columns: dict[str, np.ndarray]) -> None:
    """Writes equally long 1-D arrays as the element ``vertex``, binary little endian, atomically.

    Raises:
        ValueError: the arrays differ in length or have a type that PLY lacks.
    """
    arrays = {name: np.asarray(values) for name, values in columns.items()}
    lengths = {a.shape for a in arrays.values()}
    codes = {name: a.dtype.str[1:] for name, a in arrays.items()}
    if len(lengths) != 1 or any(code not in _NAMES for code in codes.values()):
        raise ValueError(f"PLY columns need one length and a PLY type: {lengths}, {codes}")
    (count,) = lengths.pop()
    rows = np.empty(count, dtype=[(name, "<" + code) for name, code in codes.items()])
    for name, values in arrays.items():
        rows[name] = values
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {count}"]
    header += [f"property {_NAMES[code]} {name}" for name, code in codes.items()]
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        file.write(("\n".join([*header, "end_header"]) + "\n").encode("ascii"))
        rows.tofile(file)


def thin(points: PointCloud, max_points: int, seed: int = 0) -> PointCloud:
    """At most ``max_points`` of the points, evenly spread: one random point per occupied voxel.

    The voxel is the smallest, to a few per cent, whose occupied cells are few enough. A warning
    says so where that leaves less than half of ``max_points``.
    """
    if len(points) <= max_points:
        return points
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(points))
    xyz = points.xyz[shuffled].astype(np.float64)  # float32 is too coarse beside a point far off
    xyz -= xyz.min(axis=0)
    span = float(xyz.max())
    small, large = span * 1e-6, span * 1.01  # one voxel holds everything at the upper end
    first = np.zeros(1, np.int64)
    if span > 0 and len(fine := _first_in_cells(xyz, small)) <= max_points:
        small, large, first = span * FINEST, small, fine  # few points far off make the span
    while large > small * 1.02:
        size = float(np.sqrt(small * large))
        found = _first_in_cells(xyz, size)
        if len(found) <= max_points:
            large, first = size, found
        else:
            small = size
    if 2 * len(first) < max_points:
        print(
            f"warning: --max_points {max_points} leaves {len(first)} of {len(points)} points, too "
            f"many lie in the same places; 0 keeps all",
            file=sys.stderr,
        )
    chosen = shuffled[np.sort(first)]
    return PointCloud(points.xyz[chosen], points.rgb[chosen])


def _first_in_cells(xyz: np.ndarray, size: float) -> np.ndarray:
    return np.unique(cells(xyz, size), return_index=True)[1]


def cells(xyz: np.ndarray, size: float) -> np.ndarray:
    """(N,) int64: a number of the voxel that each point lies in.

    Args:
        xyz: (N, 3), none below 0.
        size: side of the voxels, from `FINEST` of the highest coordinate.
    """
    index = (xyz / size).astype(np.int64)
    shape = [int(highest) + 1 for highest in index.max(axis=0)]
    if math.prod(shape) <= _MOST:
        return (index[:, 0] * shape[1] + index[:, 1]) * shape[2] + index[:, 2]
    number = index[:, 0]
    for axis in (1, 2):  # only what is occupied is numbered: products then fit
        number = np.unique(number, return_inverse=True)[1]
        along = np.unique(index[:, axis], return_inverse=True)[1]
        number = number * (along.max() + 1) + along
    return number


def random_cloud(low: np.ndarray, high: np.ndarray, count: int, seed: int = 0) -> PointCloud:
    """Uniformly random points in a box, with near-grey random colours."""
    rng = np.random.default_rng(seed)
    xyz = rng.uniform(low, high, (count, 3)).astype(np.float32)
    return PointCloud(xyz, rng.integers(96, 160, (count, 3), dtype=np.uint8))
