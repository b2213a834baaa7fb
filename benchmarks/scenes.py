"""The scenes that the rasteriser is measured on: a real one from a file, and a seeded one.

`garden` is a cloud of 138,766 points of a garden, at 648x420: `means3d` (N, 3), `colors` (N, 3)
uint8, `viewmats` (V, 4, 4), `Ks` (V, 3, 3), `width` and `height`. Scales are the root mean squared
distance to the three nearest neighbours, opacity is 0.6.

`n3v` is what a trained scene of the Neural 3D Video kind looks like to a rasteriser, without being
one: a room in front of an arc of cameras, most Gaussians flat on its surfaces, long-tailed sizes,
opacities either high or low. `python benchmarks/scenes.py` prints its statistics; of the default
200,000 Gaussians at 1352x1014, over the four cameras:

    85 % of the Gaussians are seen by a camera, and touch 14 tiles of 16x16 pixels each;
    431 Gaussians in the list of each tile (garden: 322); no pixel is empty

That is the order of what trained scenes have; it is not a measurement of one.

Gaussians are in spatial order, as models keep them; `--order given` leaves them as the file or the
random numbers have them.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from diff_gaussian_rasterization import rasterize
from diff_gaussian_rasterization.reference import SH_C0
from scene.spatial_order import spatial_order

NEAR, FAR = 0.01, 100.0
TILE = 16  # pixels along a side of the squares that rasterisers sort by
SCENES = ("garden", "n3v")
ORDERS = ("spatial", "given")

N3V_COUNT = 200_000
N3V_SIZE = (1352, 1014)
N3V_VIEWS = 4
ROOM = np.array([3.0, 1.9, 2.5])  # half sizes; its centre is 3.6 before the middle camera
ROOM_DEPTH = 3.6
LARGEST_OPACITY = 0.985  # renderers clamp at 0.99 or at 0.999: below both, they can be compared


@dataclass(frozen=True)
class Scene:
    """Activated Gaussians and the cameras that look at them."""

    name: str
    gaussians: dict[str, Tensor]  # arguments of `rasterize`, each (1, N, ...)
    world_to_camera: Tensor  # (V, 4, 4)
    focal: Tensor  # (V, 2) pixels; the principal point is the middle
    width: int
    height: int

    @property
    def count(self) -> int:
        """How many Gaussians there are."""
        return self.gaussians["means3D"].shape[1]

    @property
    def device(self) -> torch.device:
        """Where the Gaussians are."""
        return self.gaussians["means3D"].device

    def to(self, device: torch.device | str) -> Scene:
        """The same elsewhere; its Gaussians are new leaves that want gradients."""
        moved = {k: t.detach().to(device).requires_grad_() for k, t in self.gaussians.items()}
        size = (self.width, self.height)
        return Scene(
            self.name, moved, self.world_to_camera.to(device), self.focal.to(device), *size
        )

    def in_spatial_order(self) -> Scene:
        """The same Gaussians in the order in which `GaussianModel` keeps them."""
        order = spatial_order(self.gaussians["means3D"][0])
        moved = {k: t.detach()[:, order].requires_grad_() for k, t in self.gaussians.items()}
        return replace(self, gaussians=moved)

    def cameras(self) -> list[dict[str, Tensor]]:
        """Each camera as the camera arguments of `rasterize`."""
        found = []
        for w2c, focal in zip(self.world_to_camera.double(), self.focal.double(), strict=True):
            size = torch.tensor([self.width, self.height], device=w2c.device)
            projection = torch.zeros(4, 4, dtype=w2c.dtype, device=w2c.device)
            projection[0, 0], projection[1, 1] = 2 * focal / size
            projection[2, 2] = FAR / (FAR - NEAR)
            projection[2, 3] = -FAR * NEAR / (FAR - NEAR)
            projection[3, 2] = 1
            tensors = dict(
                viewmatrices=w2c.T,
                projmatrices=(projection @ w2c).T,
                camposs=torch.linalg.inv(w2c)[:3, 3],
                tanfov=size / (2 * focal),
            )
            found.append({k: t.float().contiguous()[None] for k, t in tensors.items()})
        return found

    def shared(self, sh_degree: int = 3) -> dict:
        """The arguments of `rasterize` that all cameras share."""
        black = torch.zeros(3, device=self.device)
        return dict(width=self.width, height=self.height, sh_degree=sh_degree, background=black)


# ---- garden -------------------------------------------------------------------------------------


def garden(path: Path, size: tuple[int, int] | None = None, count: int | None = None) -> Scene:
    """The scene of a file, drawn at `size` or at its own; every k-th point if `count` is given."""
    with np.load(path, allow_pickle=False) as file:
        data = dict(file)
    own = (int(data["width"]), int(data["height"]))
    width, height = size or own
    scale = np.array([width / own[0], height / own[1]])
    focal = np.stack([data["Ks"][:, 0, 0], data["Ks"][:, 1, 1]], -1) * scale
    return Scene(
        "garden",
        _garden_gaussians(data, count),
        torch.tensor(data["viewmats"], dtype=torch.float32),
        torch.tensor(focal, dtype=torch.float32),
        width,
        height,
    )


def _garden_gaussians(data: dict[str, np.ndarray], count: int | None) -> dict[str, Tensor]:
    from scipy.spatial import cKDTree

    step = 1 if count is None else max(1, len(data["means3d"]) // count)
    means = data["means3d"][::step].astype(np.float32)
    distances, _ = cKDTree(means).query(means, k=4)
    scale = np.sqrt((distances[:, 1:] ** 2).mean(1)).clip(1e-4).astype(np.float32)
    n = len(means)
    shs = torch.zeros(n, 16, 3)
    shs[:, 0] = (torch.from_numpy(data["colors"][::step]).float() / 255 - 0.5) / SH_C0
    shs[:, 1:] = 0.05 * torch.randn(n, 15, 3, generator=torch.Generator().manual_seed(0))
    tensors = dict(
        means3D=torch.from_numpy(means),
        opacities=torch.full((n, 1), 0.6),
        scales=torch.from_numpy(scale)[:, None].repeat(1, 3),
        rotations=torch.tensor([[1.0, 0.0, 0.0, 0.0]]).repeat(n, 1),
        shs=shs,
    )
    return {name: tensor[None].requires_grad_() for name, tensor in tensors.items()}


# ---- n3v ----------------------------------------------------------------------------------------


def n3v(
    count: int = N3V_COUNT,
    size: tuple[int, int] = N3V_SIZE,
    views: int = N3V_VIEWS,
    seed: int = 0,
) -> Scene:
    """A room before an arc of cameras; the same numbers for the same arguments, on any machine."""
    rng = np.random.default_rng(seed)
    means, normals = _room_points(rng, count)
    arrays = dict(
        means3D=means,
        opacities=_opacities(rng, count)[:, None],
        scales=_scales(rng, count),
        rotations=_facing(rng, normals),
        shs=_harmonics(rng, means),
    )
    gaussians = {
        name: torch.from_numpy(array.astype(np.float32))[None].requires_grad_()
        for name, array in arrays.items()
    }
    focal = torch.full((views, 2), 0.54 * size[0])  # 86 degrees across, as those cameras have
    return Scene("n3v", gaussians, _arc(views), focal, *size)


def _room_points(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Points (N, 3) and the normals there: walls, things that stand in the room, and the air."""
    kinds = rng.choice(3, count, p=[0.55, 0.37, 0.08])
    points = rng.uniform(-1, 1, (count, 3)) * ROOM
    normals = _unit(rng.normal(size=(count, 3)))
    # walls, floor and ceiling, all but the side on which the cameras stand
    axis, side = np.array([(0, -1), (0, 1), (1, -1), (1, 1), (2, 1), (2, 1)]).T
    wall = rng.integers(0, len(axis), count)
    on_wall = np.flatnonzero(kinds == 0)
    axis, side = axis[wall[on_wall]], side[wall[on_wall]]
    rough = rng.normal(scale=0.01, size=len(on_wall))
    points[on_wall, axis] = side * ROOM[axis] + rough
    normals[on_wall] = np.eye(3)[axis]
    # things: ellipsoids
    centres = rng.uniform(-0.7, 0.7, (40, 3)) * ROOM
    radii = rng.uniform(0.1, 0.5, (40, 3))
    on_thing = np.flatnonzero(kinds == 1)
    thing = rng.integers(0, 40, len(on_thing))
    direction = normals[on_thing]
    points[on_thing] = centres[thing] + radii[thing] * direction
    normals[on_thing] = _unit(direction / radii[thing])
    return points + [0, 0, ROOM_DEPTH], normals


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def _opacities(rng: np.random.Generator, count: int) -> np.ndarray:
    """(N,) high for a little more than half, low for the others, as after training."""
    high, low = rng.beta(8, 1.5, count), rng.beta(1.2, 8, count)
    return np.where(rng.random(count) < 0.55, high, low).clip(0.005, LARGEST_OPACITY)


def _scales(rng: np.random.Generator, count: int) -> np.ndarray:
    """(N, 3) log-normal, unequal along the surface and thin across it (the last axis)."""
    size = rng.normal(math.log(0.014), 0.8, (count, 1))
    shape = rng.normal([0, 0, -1.2], [0.5, 0.5, 0.6], (count, 3))
    return np.exp(size + shape).clip(1e-4, 0.6)


def _facing(rng: np.random.Generator, normals: np.ndarray) -> np.ndarray:
    """Quaternions wxyz (N, 4) that turn the z axis to the normals, at random about them."""
    w = 1 + normals[:, 2]
    turn = np.stack([w, -normals[:, 1], normals[:, 0], np.zeros_like(w)], -1)
    turn[w < 1e-6] = [0, 1, 0, 0]  # straight back
    turn = _unit(turn)
    half = rng.uniform(0, math.pi, len(normals))
    c, s = np.cos(half)[:, None], np.sin(half)[:, None]
    # the product of `turn` and a rotation about z
    a, b, d, e = (turn[:, i : i + 1] for i in range(4))
    return np.concatenate([a * c - e * s, b * c + d * s, d * c - b * s, e * c + a * s], -1)


def _harmonics(rng: np.random.Generator, means: np.ndarray) -> np.ndarray:
    """(N, 16, 3) colours that change smoothly over the room, with grain, and a weak shine."""
    waves = rng.normal(size=(3, 3)) * 2
    colours = 0.5 + 0.3 * np.sin(means @ waves) + rng.normal(scale=0.08, size=means.shape)
    shs = rng.normal(scale=0.04, size=(len(means), 16, 3))
    shs[:, 0] = (colours.clip(0.02, 0.98) - 0.5) / SH_C0
    return shs


def _arc(views: int) -> Tensor:
    """(V, 4, 4) world to camera: on an arc around the middle of the room, looking at it."""
    poses = []
    for angle in np.linspace(-0.35, 0.35, views) if views > 1 else [0.0]:
        c, s = math.cos(angle), math.sin(angle)
        rotation = np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])
        centre = np.array([0, 0, ROOM_DEPTH])
        pose = np.eye(4)
        pose[:3, :3] = rotation
        pose[:3, 3] = centre - rotation @ centre
        poses.append(pose)
    return torch.tensor(np.stack(poses), dtype=torch.float32)


# ---- both ---------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that choose a scene."""
    parser.add_argument("--scene", choices=SCENES, default="garden")
    parser.add_argument("--data", type=Path, help="path of garden.npz, for --scene garden")
    parser.add_argument("--size", type=size_of, help="WxH pixels; default: the scene's own")
    parser.add_argument("--count", type=int, help="about this many Gaussians; default: all")
    parser.add_argument(
        "--order", choices=ORDERS, default="spatial", help="of the Gaussians; default: spatial"
    )


def size_of(text: str) -> tuple[int, int]:
    """``"648x420"`` -> (648, 420)."""
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise argparse.ArgumentTypeError(f"{text} is not WxH, for example 648x420")
    return int(width), int(height)


def chosen(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> Scene:
    """The scene that the flags name; a usage error where its file is not named."""
    scene = _named(parser, arguments)
    return scene.in_spatial_order() if arguments.order == "spatial" else scene


def _named(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> Scene:
    if arguments.scene == "n3v":
        return n3v(arguments.count or N3V_COUNT, arguments.size or N3V_SIZE)
    if arguments.data is None:
        parser.error("--scene garden needs --data, the path of garden.npz")
    if not arguments.data.is_file():
        parser.error(f"--data {arguments.data}: there is no such file")
    return garden(arguments.data, arguments.size, arguments.count)


@torch.no_grad()
def statistics(scene: Scene) -> dict[str, float]:
    """How much work the scene is, as means over its cameras.

    `pairs_per_pixel`: Gaussians in the list of a pixel's tile, by the 3 sigma square;
    `tiles_per_gaussian`: of those that are seen; `covered`: share of the pixels with alpha > 0.5.
    """
    rows = []
    for camera in scene.cameras():
        out = rasterize(**scene.gaussians, **camera, **scene.shared())
        tiles = _tiles(scene, camera, out.radii[0])
        seen = int((tiles > 0).sum())
        tile_count = math.ceil(scene.width / TILE) * math.ceil(scene.height / TILE)
        rows.append(
            dict(
                seen=seen / scene.count,
                tiles_per_gaussian=float(tiles.sum()) / max(seen, 1),
                pairs_per_pixel=float(tiles.sum()) / tile_count,
                covered=float((out.alpha > 0.5).float().mean()),
            )
        )
    return {key: round(sum(row[key] for row in rows) / len(rows), 3) for key in rows[0]}


def _tiles(scene: Scene, camera: dict[str, Tensor], radii: Tensor) -> Tensor:
    """(N,) tiles that the square of each Gaussian's radius touches."""
    means = scene.gaussians["means3D"][0]
    ones = torch.ones_like(means[:, :1])
    clip = torch.cat([means, ones], -1) @ camera["projmatrices"][0]
    size = torch.tensor([scene.width, scene.height], device=means.device)
    centre = ((clip[:, :2] / clip[:, 3:] + 1) * size - 1) / 2  # (N, 2) pixels
    last = (size + TILE - 1) // TILE
    low = ((centre - radii[:, None]) / TILE).floor().clamp(min=0).minimum(last)
    high = ((centre + radii[:, None] + TILE) / TILE).floor().clamp(min=0).minimum(last)
    return torch.where(radii > 0, (high - low).prod(-1), 0)


def main() -> None:
    """Prints the statistics of a scene as one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser)
    parser.set_defaults(scene="n3v")
    scene = chosen(parser, parser.parse_args())
    about = dict(scene=scene.name, gaussians=scene.count, width=scene.width, height=scene.height)
    print(json.dumps(about | statistics(scene)))


if __name__ == "__main__":
    main()
