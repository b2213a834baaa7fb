"""COLMAP's steps, by the package pycolmap or by a program that the user names.

Everything here takes whole folders and leaves whole folders; what is in the database is read back
with Python's own sqlite3, so that both ways are alike to those who call.
"""

from __future__ import annotations

import sqlite3
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from scene.cameras import Camera
from scene.point_cloud import PointCloud
from utils.errors import UserError, brief

INSTALL = "pip install -r requirements-preprocess.txt"
BA_TOLERANCE = 1e-6  # of point_triangulator's bundle adjustment, as published for N3V
SEED = 0


@dataclass(frozen=True)
class Features:
    """How features are found.

    Attributes:
        max_image_size: longer sides are reduced before; SIFT on 2704 x 2028 takes gigabytes.
        max_num: per image.
        threads: -1: all.
    """

    max_image_size: int = 1600
    max_num: int = 8192
    threads: int = -1


@dataclass(frozen=True)
class PosedImage:
    """A file in the folder of images, and the pinhole that took it."""

    name: str
    camera: Camera  # at the size of the file


class Tools(Protocol):
    """What can be asked of COLMAP. Paths are of databases, folders of images and of models."""

    has_cuda: bool

    def extract(self, database: Path, images: Path, names: Sequence[str], lens: str) -> None:
        """Adds features; ``lens`` is PINHOLE's parameters, separated by commas."""

    def match(self, database: Path, pairs: Path | None = None) -> None:
        """Matches all pairs, or those in a file (two names a line), and verifies them."""

    def triangulate(self, database: Path, images: Path, model: Path, out: Path) -> None:
        """Points from matches and the known poses of ``model`` to a model in ``out``."""

    def undistort(self, images: Path, model: Path, out: Path) -> None:
        """A workspace for dense stereo."""

    def stereo(self, workspace: Path, fused: Path) -> None:
        """Depth maps, and from them the cloud ``fused``."""


def find_tools(binary: str | None, features: Features, log: Path) -> Tools:
    """The program ``binary`` if one is named, else pycolmap.

    Args:
        log: where a program's output goes.

    Raises:
        UserError: neither is there.
    """
    if binary:
        return ColmapProgram(binary, features, log)
    require_pycolmap(", or name a COLMAP program with --colmap_bin")
    return Pycolmap(features)


def require_pycolmap(otherwise: str = "") -> None:
    """Passes where pycolmap can be imported.

    Raises:
        UserError: it is not installed; the line ends with ``otherwise``.
    """
    try:
        import pycolmap  # noqa: F401
    except ImportError:
        raise UserError(f"pycolmap is not installed: {INSTALL}{otherwise}") from None


class Pycolmap:
    """COLMAP as a Python package."""

    def __init__(self, features: Features) -> None:
        """Silences COLMAP's log below warnings."""
        import pycolmap

        self._colmap = pycolmap
        pycolmap.logging.minloglevel = 2  # errors only: it reports every image at lower levels
        self.features = features
        self.has_cuda = bool(pycolmap.has_cuda)

    def extract(self, database: Path, images: Path, names: Sequence[str], lens: str) -> None:
        """See `Tools`."""
        options = self._colmap.FeatureExtractionOptions()
        options.max_image_size = self.features.max_image_size
        options.num_threads = self.features.threads
        options.sift.max_num_features = self.features.max_num
        reader = self._colmap.ImageReaderOptions()
        reader.camera_model, reader.camera_params = "PINHOLE", lens
        self._colmap.extract_features(
            database,
            images,
            image_names=list(names),
            camera_mode=self._colmap.CameraMode.PER_IMAGE,
            reader_options=reader,
            extraction_options=options,
        )

    def match(self, database: Path, pairs: Path | None = None) -> None:
        """See `Tools`."""
        self._colmap.set_random_seed(SEED)
        options = self._colmap.FeatureMatchingOptions()
        options.num_threads = self.features.threads
        if pairs is None:
            self._colmap.match_exhaustive(database, matching_options=options)
            return
        listed = self._colmap.ImportedPairingOptions()
        listed.match_list_path = str(pairs)
        self._colmap.match_image_pairs(database, matching_options=options, pairing_options=listed)

    def triangulate(self, database: Path, images: Path, model: Path, out: Path) -> None:
        """See `Tools`."""
        known = self._colmap.Reconstruction(model)
        options = self._colmap.IncrementalPipelineOptions()
        options.ba_global_function_tolerance = BA_TOLERANCE
        options.triangulation.ignore_two_view_tracks = False  # few cameras: pairs are half of all
        options.random_seed = SEED
        out.mkdir(parents=True, exist_ok=True)
        self._colmap.triangulate_points(known, database, images, out, options=options)

    def undistort(self, images: Path, model: Path, out: Path) -> None:
        """See `Tools`."""
        self._colmap.undistort_images(out, model, images)

    def stereo(self, workspace: Path, fused: Path) -> None:
        """See `Tools`."""
        self._colmap.patch_match_stereo(workspace)
        self._colmap.stereo_fusion(fused, workspace, output_type="ply")  # with normals
        Path(f"{fused}.vis").unlink()  # which cameras see each point: of no use here


class ColmapProgram:
    """COLMAP as a program; its output goes to a log, the end of which is shown when it fails."""

    def __init__(self, binary: str, features: Features, log: Path) -> None:
        """Asks the program what it is.

        Args:
            binary: its path, or its name on the search path.
            features: how they are found.
            log: what its output is added to; outside of the folders that a failure takes away.

        Raises:
            UserError: it cannot be run, or is no COLMAP.
        """
        self.binary = binary
        self.features = features
        self.log = log
        banner = self._banner()
        self.has_cuda = "with CUDA" in banner and "without CUDA" not in banner
        self._gpu = "1" if self.has_cuda else "0"

    def _banner(self) -> str:
        try:
            text = self._said("help")
        except (OSError, subprocess.TimeoutExpired) as error:
            raise UserError(f"--colmap_bin {self.binary}: cannot be run ({error})") from None
        if "COLMAP" not in text:
            raise UserError(f"--colmap_bin {self.binary}: is no COLMAP; name its program")
        return text

    def _said(self, *words: str) -> str:
        done = subprocess.run(
            [self.binary, *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=60,
            check=False,
        )
        return done.stdout.decode(errors="replace")

    def _run(self, command: str, **options: object) -> None:
        """``colmap <command> --key value …``; a dot in an option's name is written as two lines."""
        words = [self.binary, command]
        for name, value in options.items():
            words += [f"--{name.replace('__', '.')}", str(value)]
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as file:
            file.write(f"\n$ {' '.join(words)}\n".encode())
            file.flush()
            start = file.tell()
            done = subprocess.run(words, stdout=file, stderr=subprocess.STDOUT, check=False)
        if done.returncode:
            lines = self.log.read_bytes()[start:].decode(errors="replace").strip().splitlines()
            last = brief(lines[-1]) if lines else "it said nothing"
            raise UserError(
                f"{self.binary} {command}: failed with exit code {done.returncode} ({last}); "
                f"its output is in {self.log}"
            )

    def _named(self, command: str, groups: Sequence[str], **values: object) -> dict[str, object]:
        """Options under the group's name that the program has them in.

        Since 3.12 COLMAP has moved them, some at a time, from the last group to the first; the
        help of the command tells where they are.
        """
        known = self._said(command, "-h")
        found = {}
        for name, value in values.items():
            group = next((g for g in groups if f"--{g}.{name} " in known), groups[-1])
            found[f"{group}__{name}"] = value
        return found

    def extract(self, database: Path, images: Path, names: Sequence[str], lens: str) -> None:
        """See `Tools`."""
        listed = database.parent / "image_list.txt"
        listed.write_text("\n".join(names) + "\n", encoding="utf-8")
        self._run(
            "feature_extractor",
            database_path=database,
            image_path=images,
            image_list_path=listed,
            ImageReader__camera_model="PINHOLE",
            ImageReader__camera_params=lens,
            ImageReader__single_camera_per_image=1,
            **self._named(
                "feature_extractor",
                ("FeatureExtraction", "SiftExtraction"),
                max_num_features=self.features.max_num,
                max_image_size=self.features.max_image_size,
                use_gpu=self._gpu,
                num_threads=self.features.threads,
            ),
        )
        listed.unlink()

    def match(self, database: Path, pairs: Path | None = None) -> None:
        """See `Tools`."""
        options = self._named(
            "exhaustive_matcher" if pairs is None else "matches_importer",
            ("FeatureMatching", "SiftMatching"),
            use_gpu=self._gpu,
            num_threads=self.features.threads,
        )
        if pairs is None:
            self._run("exhaustive_matcher", database_path=database, **options)
        else:
            options |= {"match_list_path": pairs, "match_type": "pairs"}
            self._run("matches_importer", database_path=database, **options)

    def triangulate(self, database: Path, images: Path, model: Path, out: Path) -> None:
        """See `Tools`."""
        out.mkdir(parents=True, exist_ok=True)
        self._run(
            "point_triangulator",
            database_path=database,
            image_path=images,
            input_path=model,
            output_path=out,
            Mapper__ba_global_function_tolerance=BA_TOLERANCE,
            Mapper__tri_ignore_two_view_tracks=0,
        )

    def undistort(self, images: Path, model: Path, out: Path) -> None:
        """See `Tools`."""
        self._run(
            "image_undistorter",
            image_path=images,
            input_path=model,
            output_path=out,
            output_type="COLMAP",
        )

    def stereo(self, workspace: Path, fused: Path) -> None:
        """See `Tools`."""
        self._run("patch_match_stereo", workspace_path=workspace)
        try:
            self._run("stereo_fusion", workspace_path=workspace, output_path=fused)
        finally:  # which cameras see each point: of no use here
            Path(f"{fused}.vis").unlink(missing_ok=True)


def triangulated_model(
    tools: Tools,
    posed: Sequence[PosedImage],
    images: Path,
    folder: Path,
    pairs: Sequence[tuple[int, int]] | None = None,
) -> Path:
    """Features, matches and points of images whose poses are known.

    Leaves in ``folder``: ``input.db``, ``manual/`` (the known model, as text, without points) and
    ``distorted/sparse`` (the model with points, which is returned).

    Args:
        pairs: rows of ``posed`` that are matched; None: all with all.
    """
    database, manual, sparse = folder / "input.db", folder / "manual", folder / "distorted/sparse"
    for lens, names in _by_lens(posed).items():
        tools.extract(database, images, names, lens)
    tools.match(database, None if pairs is None else _write_pairs(folder, posed, pairs))
    write_known_model(manual, posed, database)
    tools.triangulate(database, images, manual, sparse)
    return sparse


def _write_pairs(
    folder: Path, posed: Sequence[PosedImage], pairs: Sequence[tuple[int, int]]
) -> Path:
    path = folder / "pairs.txt"
    lines = [f"{posed[a].name} {posed[b].name}\n" for a, b in pairs]
    path.write_text("".join(lines), encoding="utf-8")
    return path


def _by_lens(posed: Sequence[PosedImage]) -> dict[str, list[str]]:
    """Names of the images by their PINHOLE parameters: one call for each set of intrinsics."""
    groups: dict[str, list[str]] = {}
    for image in posed:
        groups.setdefault(_parameters(image.camera, ","), []).append(image.name)
    return groups


def _parameters(camera: Camera, separator: str) -> str:
    return separator.join(repr(float(v)) for v in (camera.fx, camera.fy, camera.cx, camera.cy))


def write_known_model(folder: Path, posed: Sequence[PosedImage], database: Path) -> None:
    """A model of poses without points, with the numbers that the database gave.

    Raises:
        UserError: an image is not in the database.
    """
    numbers = _numbers(database)
    missing = [image.name for image in posed if image.name not in numbers]
    if missing:
        raise UserError(f"{database}: COLMAP could not read {', '.join(missing)}; restore them")
    write_model(folder, posed, numbers)


def write_model(
    folder: Path,
    posed: Sequence[PosedImage],
    numbers: dict[str, tuple[int, int]],
    cloud: PointCloud | None = None,
) -> None:
    """A model as text; points, if any, have no tracks.

    Args:
        numbers: name -> numbers of the image and of its camera.
    """
    folder.mkdir(parents=True, exist_ok=True)
    cameras, images = [], []
    for image in sorted(posed, key=lambda image: numbers[image.name]):
        number, lens = numbers[image.name]
        camera = image.camera
        size = f"{camera.width} {camera.height}"
        cameras.append(f"{lens} PINHOLE {size} {_parameters(camera, ' ')}\n")
        pose = " ".join(repr(v) for v in _pose(camera))
        images.append(f"{number} {pose} {lens} {image.name}\n\n")
    points = [] if cloud is None else zip(cloud.xyz.tolist(), cloud.rgb.tolist(), strict=True)
    lines = [f"{i} {_words(xyz)} {_words(rgb)} 0\n" for i, (xyz, rgb) in enumerate(points, 1)]
    (folder / "cameras.txt").write_text("".join(cameras), encoding="utf-8")
    (folder / "images.txt").write_text("".join(images), encoding="utf-8")
    (folder / "points3D.txt").write_text("".join(lines), encoding="utf-8")


def _words(values: Sequence[float]) -> str:
    return " ".join(f"{v:.9g}" for v in values)


def _numbers(database: Path) -> dict[str, tuple[int, int]]:
    """Name -> (image, camera) as numbered in the database."""
    connection = sqlite3.connect(database)
    try:
        rows = connection.execute("SELECT name, image_id, camera_id FROM images").fetchall()
    finally:
        connection.close()
    return {name: (image, camera) for name, image, camera in rows}


def _pose(camera: Camera) -> list[float]:
    """Quaternion wxyz and translation, world to camera."""
    matrix = camera.world_to_camera.double().numpy()
    return [*quaternion(matrix[:3, :3]), *(float(v) for v in matrix[:3, 3])]


def quaternion(rotation: np.ndarray) -> list[float]:
    """wxyz of a rotation matrix (3, 3), w >= 0: the eigenvector of Bar-Itzhack (2000), which also
    is the nearest quaternion when the matrix is only nearly a rotation."""
    m = rotation
    k = np.array(
        [
            [m[0, 0] - m[1, 1] - m[2, 2], 0, 0, 0],
            [m[0, 1] + m[1, 0], m[1, 1] - m[0, 0] - m[2, 2], 0, 0],
            [m[0, 2] + m[2, 0], m[1, 2] + m[2, 1], m[2, 2] - m[0, 0] - m[1, 1], 0],
            [m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1], m[0, 0] + m[1, 1] + m[2, 2]],
        ]
    )
    x, y, z, w = np.linalg.eigh(k)[1][:, -1]
    q = np.array([w, x, y, z])
    return [float(v) for v in (q if w >= 0 else -q)]
