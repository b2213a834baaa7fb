"""What all tests share: third-party data, seeds, and the skipping of tests that need a GPU."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import utils.threads  # noqa: F401  isort: skip  (before torch)

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent


def pytest_configure(config: pytest.Config) -> None:
    """One torch thread for each pytest-xdist worker, and Ctrl-C as in a terminal.

    With several threads, workers would fight over the cores. Shells start what runs in the
    background with SIGINT ignored, and programs inherit that: those that the tests interrupt would
    go on for ever.
    """
    if "PYTEST_XDIST_WORKER" in os.environ:
        torch.set_num_threads(1)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips the tests marked ``gpu`` where torch has no CUDA device."""
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device, torch sees none")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test starts from the same random state, whatever ran before it."""
    torch.manual_seed(0)
    np.random.seed(0)


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's folder."""
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of third-party test data, which is not part of the repository.

    ``$MOEGS_TEST_DATA``, else ``shared/data`` beside the checkout; without it the test is skipped.
    """
    given = os.environ.get("MOEGS_TEST_DATA")
    folder = Path(given) if given else ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"third-party data is not there: {folder} (name it with MOEGS_TEST_DATA)")
    return folder


@pytest.fixture(scope="module")
def source(root, tmp_path_factory) -> Path:
    """The demo scene with three cameras."""
    folder = tmp_path_factory.mktemp("scene") / "scene"
    folder.mkdir()
    for name in ("cam00.mp4", "cam01.mp4", "cam02.mp4", "points3D_downsample.ply"):
        shutil.copy(root / "demo" / "scene" / name, folder / name)
    np.save(folder / "poses_bounds.npy", np.load(root / "demo/scene/poses_bounds.npy")[:3])
    return folder
