"""Ground truth on its way to the device, results on their way back."""

from __future__ import annotations

import dataclasses
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import tiny
import training.transfers
from training.checkpoint import load_state
from training.transfers import (
    Download,
    StreamedTargetLoader,
    TargetLoader,
    target_loader,
)
from utils.errors import UserError


class Pretended(StreamedTargetLoader):
    """The loader for a GPU with everything but the GPU: its thread hands the frames over."""

    def __init__(self) -> None:
        self._thread, self._coming = ThreadPoolExecutor(1), {}
        self.fetched: list[str] = []

    def _fetch(self, view):
        self.fetched.append(view.name)
        return view.image(), view.mask()

    def _received(self, copies):
        return copies


LOADERS = {"host": TargetLoader, "streamed": Pretended}


@pytest.fixture(params=LOADERS)
def loader(request):
    return LOADERS[request.param]()


def test_a_cpu_has_nothing_to_copy():
    assert type(target_loader("cpu")) is TargetLoader
    view = tiny.scene().train[0]
    (image,) = TargetLoader().take([view]).images
    assert torch.equal(image, view.image())


@pytest.mark.parametrize("expected", [True, False])
def test_a_batch_is_its_views_in_their_order(loader, expected):
    views = [tiny.scene().train[i] for i in (5, 0, 3)]
    if expected:
        loader.expect(views[::-1])
    images, masks = loader.take(views)
    assert torch.equal(images, torch.stack([v.image() for v in views])) and masks is None
    assert images.dtype == torch.uint8


def test_views_without_a_mask_count_whole(loader):
    views = tiny.scene().train[:2]
    mask = torch.rand(tiny.HEIGHT, tiny.WIDTH) > 0.5
    one = dataclasses.replace(views[0], store=MaskedStore(mask))
    masks = loader.take([one, views[1]]).masks
    assert masks.shape == (2, 1, tiny.HEIGHT, tiny.WIDTH) and masks.dtype == torch.bool
    assert torch.equal(masks[0, 0], mask) and masks[1].all()


class MaskedStore(tiny.Images):
    def __init__(self, mask):
        super().__init__()
        self.only = mask

    def mask(self, camera, frame):
        return self.only


def test_a_view_of_a_path_is_not_fetched_ahead(loader):
    loader.expect([dataclasses.replace(tiny.scene().train[0], store=None)])


# ---- ahead of time -------------------------------------------------------------------------------


def test_what_is_expected_is_fetched_before_it_is_asked_for_and_once():
    loader, views = Pretended(), tiny.scene().train
    loader.expect(views[:3])
    loader._thread.shutdown(wait=True)  # whatever comes after this finds what is there
    assert loader.fetched == [v.name for v in views[:3]]
    loader.take(views[:2]), loader.take(views[1:3])
    loader.expect(views[1:3])
    assert len(loader.fetched) == 3


def test_what_is_no_longer_expected_is_forgotten():
    loader, views = Pretended(), tiny.scene().train
    loader.expect(views[:2])
    loader.expect(views[2:4])
    assert list(loader._coming) == views[2:4]
    loader.take(views[:1])
    assert loader.fetched.count(views[0].name) == 2


class Damaged(tiny.Images):
    def get(self, camera, frame):
        raise UserError("frame is damaged")


def test_a_damaged_frame_is_an_error_where_it_is_used_and_not_before():
    loader, views = Pretended(), tiny.scene().train
    bad = dataclasses.replace(views[0], store=Damaged())
    loader.expect([bad, views[1]])
    assert torch.equal(loader.take([views[1]]).images[0], views[1].image())
    with pytest.raises(UserError, match="frame is damaged"):
        loader.take([bad])


# ---- in training ---------------------------------------------------------------------------------


def run(trainer, until: int) -> list[list[str]]:
    """Trains to iteration ``until`` of the coarse stage; the batches that were seen."""
    seen, take = [], trainer.targets.take

    def noted(views):
        seen.append([view.name for view in views])
        return take(views)

    trainer.targets.take = noted
    trainer.model.train()
    while trainer.progress.iteration < until:
        trainer.iterate()
    return seen


def test_training_sees_the_same_batches_and_gives_the_same_bits(tmp_path):
    found = []
    for make in LOADERS.values():
        trainer = tiny.trainer(tmp_path)
        trainer.targets = make()
        seen = run(trainer, 8)
        found.append((seen, [p.detach().clone() for p in trainer.model.parameters()]))
    assert found[0][0] == found[1][0]
    assert all(torch.equal(a, b) for a, b in zip(found[0][1], found[1][1], strict=True))


@pytest.mark.parametrize("stop", [1, 3, 4, 5])  # an epoch of 8 views in batches of 2 has 4
def test_a_checkpoint_knows_nothing_of_what_was_only_fetched(tmp_path, stop):
    straight = tiny.trainer(tmp_path / "a")
    expected = run(straight, 8)
    first = tiny.trainer(tmp_path / "b")
    first.targets = Pretended()
    seen = run(first, stop)
    folder = first.save_checkpoint()
    second = tiny.trainer(tmp_path / "b")
    second.targets = Pretended()
    second.restore(*load_state(folder))
    assert seen + run(second, 8) == expected


def test_the_next_batch_is_fetched_while_one_is_computed_with(tmp_path):
    trainer = tiny.trainer(tmp_path)
    trainer.targets = Pretended()
    original, during = trainer._loss_terms, []

    def noted(*given):
        coming = [view.name for view in trainer.sampler.coming()]
        barrier = threading.Event()
        trainer.targets._thread.submit(barrier.set)
        assert barrier.wait(10)  # the thread is through with all it was told
        during.append(set(coming) <= set(trainer.targets.fetched))
        return original(*given)

    trainer._loss_terms = noted
    run(trainer, 5)
    assert during == [True] * 5


class Recorded:
    """Stands for a stream and its event; notes what is asked of it."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log = name, log

    def record_event(self):
        self.log.append(f"{self.name} records")
        return "event"

    def wait_event(self, event):
        self.log.append(f"{self.name} waits for {event}")

    def __enter__(self):
        self.log.append(f"on {self.name}")

    def __exit__(self, *_):
        self.log.append(f"off {self.name}")


def test_streams_are_handed_over_in_the_order_that_keeps_memory_safe(monkeypatch):
    """On the side stream: copies, then the event. On the other: wait, then claim the memory."""
    log: list[str] = []
    side, main = Recorded("side", log), Recorded("main", log)

    def noted(tensor, device):
        log.append("copy")
        return tensor.clone()

    def claimed(tensor, stream):
        log.append(f"claimed for {stream.name}")

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: side)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: main)
    monkeypatch.setattr(torch.Tensor, "record_stream", claimed)
    monkeypatch.setattr(training.transfers, "upload", noted)
    view = tiny.scene().train[0]
    view.store.masks = torch.ones((3, 4, tiny.HEIGHT, tiny.WIDTH), dtype=torch.bool)
    images, _ = target_loader("cuda").take([view])
    assert torch.equal(images[0], view.image())
    queued = ["on side", "copy", "copy", "side records", "off side"]
    assert log == [*queued, "main waits for event", "claimed for main", "claimed for main"]


# ---- on a GPU ------------------------------------------------------------------------------------


@pytest.mark.gpu
def test_a_gpu_gets_the_frames_that_the_store_holds_whatever_it_computes_meanwhile():
    """Frames of 4 MB, each used late by a busy stream while the next ones are copied."""
    device = torch.device("cuda")
    loader, views = StreamedTargetLoader(device), tiny.scene().train
    store = BigStore()
    views = [dataclasses.replace(view, store=store) for view in views]
    load = torch.randn(2048, 2048, device=device)
    sums = []
    for step in range(200):
        now, then = views[step % len(views)], views[(step + 1) % len(views)]
        loader.expect([now, then])
        images = loader.take([now]).images
        for _ in range(4):
            load = (load @ load).tanh()
        sums.append(images.long().sum())
        del images
    expected = [store.get(*views[s % len(views)].slot).long().sum().item() for s in range(200)]
    assert torch.stack(sums).tolist() == expected


class BigStore(tiny.Images):
    def get(self, camera, frame):
        return torch.full((1014, 1352, 3), 10 * camera + frame + 1, dtype=torch.uint8)


@pytest.mark.gpu
def test_fetching_and_taking_do_not_wait_for_a_gpu():
    loader, views = StreamedTargetLoader(torch.device("cuda")), tiny.scene().train
    loader.take(views[:4])
    torch.cuda.set_sync_debug_mode("error")
    try:
        loader.expect(views[4:8])
        images = loader.take(views[4:8]).images
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(images.cpu(), torch.stack([v.image() for v in views[4:8]]))


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_downloads_arrive_whole(device):
    source = [torch.arange(10.0), torch.randint(256, (40, 50, 3), dtype=torch.uint8)]
    download = Download(*(tensor.to(device) for tensor in source))
    got = download.wait()
    assert all(t.device.type == "cpu" for t in got)
    assert all(torch.equal(a, b) for a, b in zip(source, got, strict=True))
    assert Download().wait() == []
