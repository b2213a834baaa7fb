"""A run that is cut in two ends in the same bits as one that is not."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

import tiny
from scene.experts import embedding
from training.checkpoint import load_state

COARSE, FINE = 20, 40
SCHEDULE = {  # densification, pruning and opacity resets fall on both sides of every cut
    "coarse_iterations": COARSE,
    "iterations": FINE,
    "densification_interval": 4,
    "pruning_interval": 5,
    "opacity_reset_interval": 16,
    "max_world_scale": 0.3,  # prunes once opacities have been reset
    "gaiting_from_iter": 15,
    "max_gaussians": 150,
    "camera_color": True,
}


def settings(family: str, **changed):
    return tiny.family(family, **(SCHEDULE | changed))


def run(trainer, stop: tuple[str, int] | None = None) -> list[tuple[str, int, dict]]:
    """Trains to the end, or through iteration ``stop``; returns where the density changed."""
    trainer.model.train()
    changes = []
    while (p := trainer.progress) and stop != (p.stage, p.iteration):
        ended = p.iteration == trainer.stage_length(p.stage)
        if ended and p.stage == "fine":
            break
        before = trainer.model.gaussians.opacity.detach().sigmoid().max().item()
        numbers = trainer._end_coarse() if ended else trainer.iterate()
        after = trainer.model.gaussians.opacity.detach().sigmoid().max().item()
        kinds = {k: v for k, v in numbers.items() if k in ("cloned", "split", "pruned") and v}
        if after <= 0.011 < before:
            kinds["reset"] = 1
        if kinds:
            changes.append((p.stage, p.iteration, kinds))
    return changes


def everything(trainer) -> tuple[dict[str, torch.Tensor], dict]:
    """All that a checkpoint holds, and the learning rates; without the times taken."""
    tensors, info = load_state(trainer.save_checkpoint())
    info["progress"].pop("seconds")
    info.pop("sha256"), info.pop("reported_bytes")
    rates = {group["name"]: group["lr"] for group in trainer.optimizer.adam.param_groups}
    named = {f"model/{n}": p.detach().clone() for n, p in trainer.model.named_parameters()}
    return tensors | named, info | {"rates": rates}


def assert_same(ours, theirs) -> None:
    (tensors, info), (other_tensors, other_info) = ours, theirs
    assert tensors.keys() == other_tensors.keys()
    bad = [n for n in tensors if tensors[n].numpy().tobytes() != other_tensors[n].numpy().tobytes()]
    assert bad == []
    assert {k: v for k, v in info.items() if v != other_info.get(k)} == {}
    assert info.keys() == other_info.keys()


def resumed(tmp_path, config, cut: tuple[str, int], **how):
    """A trainer that goes on from ``cut`` with nothing of the one that came so far but its file."""
    first = tiny.trainer(tmp_path / "first", config, **how)
    run(first, cut)
    folder = first.save_checkpoint()
    del first
    second = tiny.trainer(tmp_path / "second", config, **how)
    torch.manual_seed(99)  # the checkpoint must bring its own random state
    second.sampler.generator.manual_seed(99)
    second.restore(*load_state(folder))
    return second


@pytest.mark.parametrize("family", ["emb", "hash"])
def test_the_schedule_has_every_change_on_both_sides_of_the_middle(tmp_path, family):
    """Else the test below would prove less than it says."""
    changes = run(tiny.trainer(tmp_path, settings(family)))
    done = [(i + (COARSE if stage == "fine" else 0), kinds) for stage, i, kinds in changes]
    for kind in ("split", "pruned", "reset"):
        when = [step for step, kinds in done if kind in kinds]
        assert min(when) < 30 < max(when), (kind, when)


# At the ends of a stage, between an opacity reset and the pruning that follows from it, in the
# router's warm-up and after it.
CUTS = [("coarse", 0), ("coarse", 17), ("coarse", COARSE)]
CUTS += [("fine", 0), ("fine", 10), ("fine", 18), ("fine", 31)]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("family", ["emb", "hash"])
def test_sixty_steps_are_thirty_and_thirty(tmp_path, family, threads):
    """Whatever they leave: parameters, moments, rates, random states, sampler, statistics."""
    config, before = settings(family), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        straight = tiny.trainer(tmp_path / "straight", config)
        run(straight)
        expected = everything(straight)
        for stage, iteration in CUTS:
            second = resumed(tmp_path, config, (stage, iteration))
            assert (second.progress.stage, second.progress.iteration) == (stage, iteration)
            run(second)
            assert_same(expected, everything(second))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("family", ["emb", "hash"])
def test_resuming_is_exact_where_threads_share_the_work(tmp_path, family):
    """With so many Gaussians torch splits its sums between threads, and their order matters."""
    config = settings(family, coarse_iterations=2, iterations=8, max_gaussians=5000)
    config.opt.gaiting_from_iter, before = 3, torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        straight = tiny.trainer(tmp_path / "straight", config, points=3000)
        run(straight)
        second = resumed(tmp_path, config, ("fine", 4), points=3000)
        run(second)
        assert_same(everything(straight), everything(second))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("cut", [("coarse", 17), ("fine", 9), ("fine", 10), ("fine", 31)])
def test_sets_and_spread_centres_are_resumed_exactly(tmp_path, cut):
    """What experts change outside of gradients and what they draw for new Gaussians."""
    config = settings("emb")
    config.hidden.experts = ["keyframe", "polynomial"]
    config.motion.keyframe_sets = config.motion.keyframe_opacity = config.motion.trbf_spread = True
    config.motion.keyframe_extract_interval, config.motion.keyframe_extract_share = 5, 0.1
    straight = tiny.trainer(tmp_path / "straight", config)
    run(straight)
    dynamic = straight.model.gaussians["keyframe_dynamic"]
    assert 0.2 < dynamic.mean() < 0.8 and set(dynamic.unique().tolist()) == {0.0, 1.0}
    second = resumed(tmp_path, config, cut)
    run(second)
    assert_same(everything(straight), everything(second))


# Before there are any, and around iterations after which the Gaussians become others: 20 (both
# kinds), 35 (pruning), 36 (densification).
@pytest.mark.parametrize("cut", [("coarse", 17), *(("fine", i) for i in (9, 20, 31, 35, 36, 38))])
def test_neighbours_of_embeddings_are_resumed_exactly(tmp_path, monkeypatch, cut):
    """They are those of where the Gaussians were when they last changed, not of where they are."""
    monkeypatch.setattr(embedding, "SMOOTHNESS_SHARPNESS", 1.0)  # these are far from each other
    config = settings("emb", position_lr_init=1e-2)
    config.emb.emb_smooth_weight = 1.0
    straight = tiny.trainer(tmp_path / "straight", config)
    run(straight)
    second = resumed(tmp_path, config, cut)
    run(second)
    assert_same(everything(straight), everything(second))


def test_saving_changes_nothing(tmp_path):
    straight = tiny.trainer(tmp_path / "a")
    for _ in range(6):
        straight.iterate()
    saving = tiny.trainer(tmp_path / "b")
    for _ in range(6):
        saving.iterate()
        saving.save_checkpoint()
    assert_same(everything(straight), everything(saving))


@pytest.mark.parametrize("family", ["emb", "hash"])
def test_training_draws_from_nothing_but_what_a_checkpoint_holds(tmp_path, family):
    """The random states of Python and NumPy are not saved: nobody may use them."""
    before = random.getstate(), np.random.get_state()
    run(tiny.trainer(tmp_path, settings(family)))
    after = random.getstate(), np.random.get_state()
    assert before[0] == after[0]
    assert all(np.array_equal(a, b) for a, b in zip(before[1], after[1], strict=True))


@pytest.mark.parametrize("lost", ["rng/torch", "rng/sampler", "density", "optimizer", "queue"])
def test_what_is_compared_shows_what_a_checkpoint_lacks(tmp_path, lost):
    """A part that is taken out of a checkpoint makes the comparison above fail."""
    config = settings("emb")
    straight = tiny.trainer(tmp_path / "straight", config)
    run(straight)
    first = tiny.trainer(tmp_path / "first", config)
    run(first, ("fine", 22))
    tensors, info = load_state(first.save_checkpoint())
    second = tiny.trainer(tmp_path / "second", config)
    torch.manual_seed(99)
    fresh, _ = load_state(tiny.trainer(tmp_path / "third", config).save_checkpoint())
    if lost == "queue":
        info["queue"] = info["queue"][::-1]
    else:
        tensors = {k: v for k, v in tensors.items() if not k.startswith(lost)}
        tensors |= {k: v for k, v in fresh.items() if k == lost}
    second.restore(tensors, info)
    run(second)
    with pytest.raises(AssertionError):
        assert_same(everything(straight), everything(second))


@pytest.mark.parametrize("same_time", [False, True])
@pytest.mark.parametrize("kept", [slice(0, 4), slice(2, None)])
def test_a_run_of_other_views_begins_an_epoch(tmp_path, kept, same_time):
    """The batches that were left name views by their number."""
    config = settings("emb", batch_size=2, batch_same_time=same_time)
    first = tiny.trainer(tmp_path / "first", config)
    run(first, ("coarse", 1))
    folder = first.save_checkpoint()
    assert load_state(folder)[1]["queue"]
    other = tiny.trainer(tmp_path / "other", config)
    other.scene.train = other.sampler.views = other.scene.train[kept]
    other.restore(*load_state(folder))
    seen: list[str] = []
    while len(seen) < len(other.scene.train):
        seen += [view.name for view in other.sampler.next()]
    assert sorted(seen) == sorted(view.name for view in other.scene.train)
    run(other, ("coarse", 6))
