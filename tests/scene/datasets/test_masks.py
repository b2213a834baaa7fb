"""scene/datasets/masks.py: which file is whose mask, and what is wrong with it."""

from __future__ import annotations

from dataclasses import replace

import builders
import numpy as np
import pytest
import torch

from arguments_MoDE.config import ModelParams
from scene.datasets import n3v
from scene.datasets.masks import add_masks
from utils.errors import UserError

LEFT = np.zeros(builders.SIZE[::-1], np.uint8)
LEFT[:, : builders.SIZE[0] // 2] = 255


def masked(views) -> list[str]:
    """Names of the views that have a mask."""
    return [view.name for view in views if view.mask() is not None]


@pytest.mark.parametrize("layout", ["images", "nested"])
@pytest.mark.parametrize("name", ["cam02/0001.png.png", "cam02/0001.png"])
def test_a_mask_is_named_like_its_image(tmp_path, layout, name, capfd):
    builders.n3v_scene(tmp_path, layout=layout)
    builders.save(tmp_path / "masks" / name, LEFT)
    scene = builders.load(tmp_path)
    assert masked(scene.train + scene.test) == ["cam02/0001"]
    mask = next(v for v in scene.train if v.name == "cam02/0001").mask()
    assert torch.equal(mask, torch.from_numpy(LEFT > 0))
    assert capfd.readouterr().err == (
        f"note: {tmp_path}: 1 of 20 images have a mask; what is black there does not count\n"
    )


def test_masks_shrink_with_their_images(tmp_path):
    builders.n3v_scene(tmp_path, layout="images")
    builders.save(tmp_path / "masks" / "cam01.png", LEFT)
    view = builders.load(tmp_path, resolution=2).train[0]
    assert view.mask().shape == view.image().shape[:2] == (24, 32)
    assert view.mask().float().mean() == 0.5


@pytest.mark.parametrize("layout", ["video", "images", "nested"])
def test_one_mask_serves_a_whole_camera(tmp_path, layout):
    builders.n3v_scene(tmp_path, layout=layout)
    builders.save(tmp_path / "masks" / "cam00.png", LEFT)
    builders.save(tmp_path / "masks" / "cam02.png", LEFT)
    scene = builders.load(tmp_path)
    assert masked(scene.test) == [v.name for v in scene.test]
    assert masked(scene.train) == [f"cam02/{i:04d}" for i in range(5)]


def test_an_image_s_own_mask_goes_before_its_camera_s(tmp_path):
    builders.n3v_scene(tmp_path, layout="images")
    builders.save(tmp_path / "masks" / "cam01.png", LEFT)
    builders.save(tmp_path / "masks" / "cam01" / "0002.png", 255 - LEFT)
    views = builders.load(tmp_path).train[:5]
    assert [bool(view.mask()[0, 0]) for view in views] == [True, True, False, True, True]


@pytest.mark.parametrize(
    "build", [builders.blender_scene, builders.panoptic_scene, builders.colmap_scene]
)
def test_masks_of_other_formats(tmp_path, build):
    build(tmp_path)
    scene = builders.load(tmp_path)
    path = scene.train[0].store.sources[scene.train[0].slot[0]].paths[scene.train[0].slot[1]]
    folder = tmp_path / ("images" if build is builders.colmap_scene else "ims")
    inside = path.relative_to(folder if folder in path.parents else tmp_path)
    for written in (f"{inside}.png", str(inside.with_suffix(".png"))):
        builders.save(tmp_path / "masks" / written, LEFT)
        assert masked(builders.load(tmp_path).train) == [scene.train[0].name]
        (tmp_path / "masks" / written).unlink()


def test_masks_of_a_clip_s_other_frames_are_no_strangers(tmp_path, capfd):
    builders.n3v_scene(tmp_path, layout="images")
    for i in range(5):
        builders.save(tmp_path / "masks" / "cam01" / f"{i:04d}.png", LEFT)
    builders.load(tmp_path, duration=2)
    assert "no such image" not in capfd.readouterr().err


def test_a_mask_of_an_unknown_image_is_noted(tmp_path, capfd):
    builders.n3v_scene(tmp_path, layout="video")
    builders.save(tmp_path / "masks" / "cam00.png", LEFT)
    builders.save(tmp_path / "masks" / "cam09.png", LEFT)
    builders.save(tmp_path / "masks" / "cam01" / "0000.png", LEFT)  # a video has no images
    (tmp_path / "masks" / ".thumbnails").write_text("")
    builders.load(tmp_path)
    notes = capfd.readouterr().err.splitlines()
    assert "5 of 20 images have a mask" in notes[0]
    assert "and 1 more: the scene has no such image or camera; a mask is named" in notes[1]


def test_a_mask_of_another_size_is_refused(tmp_path):
    builders.n3v_scene(tmp_path, layout="images")
    builders.save(tmp_path / "masks" / "cam01" / "0003.png", LEFT[:-1])
    with pytest.raises(UserError, match=r"0003.png: is 64 x 47 where its image is 64 x 48; make"):
        builders.load(tmp_path)


def test_a_damaged_mask_is_refused(tmp_path):
    builders.n3v_scene(tmp_path, layout="images")
    path = tmp_path / "masks" / "cam01.png"
    builders.save(path, LEFT)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"cam01.png: not a whole image .*restore"):
        builders.load(tmp_path)


def test_black_masks_are_refused_where_nothing_else_is_left(tmp_path):
    builders.n3v_scene(tmp_path, cameras=3, layout="images")
    for camera in (1, 2):
        builders.save(tmp_path / "masks" / f"cam0{camera}.png", 0 * LEFT)
    with pytest.raises(UserError, match=r"cam01.png: .*black.*invert"):
        builders.load(tmp_path)
    builders.save(tmp_path / "masks" / "cam02" / "0004.png", LEFT)  # an image is enough
    scene = builders.load(tmp_path)
    assert sum(bool(view.mask().any()) for view in scene.train) == 1


def test_a_reader_s_own_masks_are_kept_and_checked(tmp_path):
    builders.n3v_scene(tmp_path, layout="images")
    builders.save(tmp_path / "elsewhere.png", LEFT)
    builders.save(tmp_path / "masks" / "cam01.png", 255 - LEFT)
    capture = n3v.load(tmp_path, ModelParams(source_path=str(tmp_path)))
    own = (tmp_path / "elsewhere.png",)
    capture.sources[1] = replace(capture.sources[1], masks=own)
    add_masks(capture, tmp_path, "images")
    assert [source.masks for source in capture.sources] == [(), own, (), ()]
    builders.save(own[0], LEFT[1:])
    with pytest.raises(UserError, match="elsewhere.png: is 64 x 47"):
        add_masks(capture, tmp_path, "images")


def test_a_scene_without_masks_is_silent(tmp_path, capfd):
    builders.n3v_scene(tmp_path)
    builders.load(tmp_path)
    assert "mask" not in capfd.readouterr().err


@pytest.mark.parametrize("name", ["cam01.png", "cam02/0001.png", "cam02/0001.png.png"])
def test_a_folder_in_the_place_of_a_mask_is_refused(tmp_path, name):
    builders.n3v_scene(tmp_path, layout="images")
    (tmp_path / "masks" / name).mkdir(parents=True)
    with pytest.raises(UserError, match=f"{name}: "):
        builders.load(tmp_path)
