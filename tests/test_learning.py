"""The whole, from a scene folder to the metrics of a camera never seen: motion is learned."""

from __future__ import annotations

import json
from pathlib import Path

import builders
import pytest

import render_emb
import train_emb

RECIPE = """
ModelParams = dict(white_background=False, sh_degree=0, test_cameras=["cam02"])
OptimizationParams = dict(
    iterations=250, coarse_iterations=50, batch_size=2, batch_same_time=True,
    scale_lr_by_extent=False, grid_lr_init=2e-2, grid_lr_final=2e-3,
    deformation_lr_init=2e-3, deformation_lr_final=2e-4,
    embnet_lr_init=2e-3, embnet_lr_final=2e-4,
    position_lr_max_steps=0, weight_lr_max_steps=0, embnet_lr_max_steps=0,
    densify_from_iter=20, densify_until_iter=150, densification_interval=20,
    max_gaussians=800, opacity_reset_interval=10000,
)
ModelHiddenParams = dict(
    kplanes_config={"output_coordinate_dim": 8, "resolution": [16, 16, 16, 9]},
    multires=[1], net_width=32, zero_init_heads=True, MoE_scale=True,
)
ModelEmbParams = dict(
    emb_net_width=32, emb_temporal_embedding_dim=16, emb_gaussian_embedding_dim=8,
    emb_min_embeddings=9, emb_max_embeddings=9, emb_no_coarse_deform=True,
    emb_use_anneal=False, emb_no_c2f_temporal_embedding=True,
)
"""


def held_out_psnr(scene: Path, out: Path, recipe: Path, *more: str) -> float:
    """Trains, loads from disk, renders the held-out camera; the mean PSNR that was written."""
    quiet = ["--quiet", "--device", "cpu", "--threads", "1"]
    arguments = ["-s", str(scene), "--expname", str(out), "--configs", str(recipe)]
    assert train_emb.main([*arguments, *quiet, *more]) == 0
    sets = ["--skip_train", "--skip_video", "--no-lpips"]
    assert render_emb.main(["--model_path", str(out), *sets, *quiet]) == 0
    return json.loads((out / "metrics.json").read_text())["psnr"]


@pytest.mark.slow
def test_a_mixture_follows_what_a_static_model_cannot(tmp_path):
    builders.n3v_scene(tmp_path / "scene", cameras=6, frames=9, layout="images")
    recipe = tmp_path / "recipe.py"
    recipe.write_text(RECIPE)
    moving = held_out_psnr(tmp_path / "scene", tmp_path / "moving", recipe)
    static = held_out_psnr(tmp_path / "scene", tmp_path / "static", recipe, "--static")
    assert moving > static + 5, (moving, static)
