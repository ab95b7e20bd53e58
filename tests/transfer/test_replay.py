"""Replay: what is remembered, how it is found again, how it comes into the batches."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.core.artifact import Artifact, seal
from limbeck.core.errors import ArtifactError, MismatchError, RecipeError
from limbeck.core.lookup import build
from limbeck.core.task import Sequel
from limbeck.transfer._memory import Memory, herding, reservoir
from limbeck.transfer.replay import Replay


@pytest.fixture
def data(tmp_path: Path) -> dict[str, Any]:
    made = np.random.default_rng(0)
    labels = np.arange(300) % 6
    images = (made.normal(size=(300, 4, 4)) + labels[:, None, None]).astype(np.float32)
    np.savez(tmp_path / "toy.npz", x_train=images[:240], y_train=labels[:240], x_test=images[240:], y_test=labels[240:])
    return {"kind": "image", "data": "npz", "root": str(tmp_path / "toy.npz"), "validation": 0.0}


def task(data: dict[str, Any], now: int, **options: Any) -> Sequel:
    return build("tasks", "split", {"of": data, "tasks": [[0, 1], [2, 3], [4, 5]], "now": now, **options})


def model(classes: int) -> nn.Module:
    torch.manual_seed(classes)
    return build("models", "mlp", {"widths": [8], "dropout": 0.5}, in_shape=(1, 4, 4), classes=classes)


def left(folder: Path, replay: Replay, of: Sequel, made: nn.Module) -> Artifact:
    """An artifact with what `replay` leaves in it."""
    folder.mkdir()
    replay.leave(folder, of, made)
    (folder / "model.safetensors").write_bytes(b"weights")
    seal(folder, name="stage", kind="module", model="model.safetensors", stage_hash="0", spec={}, metrics={})
    return Artifact.open(folder)


def first(tmp_path: Path, data: dict[str, Any], **options: Any) -> Artifact:
    replay = Replay(**options)
    replay.loader(task(data, 0), batch_size=8, seed=5)
    return left(tmp_path / "first", replay, task(data, 0), model(2))


def test_a_reservoir_keeps_every_example_with_the_same_probability() -> None:
    size, count, rounds = 8, 40, 3000
    kept = torch.zeros(count)
    for with_key in range(rounds):
        held = torch.full((size,), -1)
        for number, slot in enumerate(reservoir(0, count, size, with_key).tolist()):
            if slot >= 0:
                held[slot] = number
        kept[held] += 1
    expected = size / count
    assert ((kept / rounds - expected).abs() < 4.5 * (expected * (1 - expected) / rounds) ** 0.5).all()


def test_a_reservoir_goes_on_where_it_stood() -> None:
    whole = reservoir(0, 50, 7, 3)
    assert torch.equal(torch.cat([reservoir(0, 20, 7, 3), reservoir(20, 30, 7, 3)]), whole)
    assert whole[:7].tolist() == list(range(7)) and whole.max() < 7


def herding_by_hand(features: Tensor, count: int) -> list[int]:
    """iCaRL's algorithm 4, written out."""
    rows = [row / row.norm() for row in features.double()]
    mean = sum(rows, torch.zeros_like(rows[0]))
    mean = mean / mean.norm()
    chosen: list[int] = []
    for k in range(1, count + 1):
        costs = {
            at: float((mean - (row + sum((rows[j] for j in chosen), torch.zeros_like(mean))) / k).norm()) for at, row in enumerate(rows) if at not in chosen
        }
        chosen.append(min(costs, key=lambda at: costs[at]))
    return chosen


def test_herding_is_icarl_s_algorithm() -> None:
    features = torch.randn(12, 5, generator=torch.Generator().manual_seed(1)) + 1
    assert herding(features, 6).tolist() == herding_by_hand(features, 6)
    assert sorted(herding(features, 99).tolist()) == list(range(12))
    best = F.normalize(features.double(), dim=1)
    gap = [(F.normalize(best.mean(0), dim=0) - best[rows].mean(0)).norm() for rows in (herding(features, 4), torch.arange(4))]
    assert gap[0] < gap[1]


def test_without_an_earlier_stage_the_batches_are_the_task_s_own(data: dict[str, Any]) -> None:
    of = task(data, 0)
    ours, theirs = Replay().loader(of, batch_size=8, seed=1), of.loader("train", batch_size=8, seed=1)
    assert len(ours) == len(theirs)
    assert all(torch.equal(a["id"], b["id"]) for a, b in zip(ours.batches(0), theirs.batches(0), strict=True))


def test_a_batch_is_new_examples_and_remembered_ones_and_resumes_exactly(tmp_path: Path, data: dict[str, Any]) -> None:
    source, of = first(tmp_path, data, size=10), task(data, 1)
    held = Memory.read(source, of)
    loader = Replay(source, share=0.25).loader(of, batch_size=16, seed=2)
    batches = list(loader.batches(1))
    assert len(batches) == len(loader) == 80 // 12
    for batch in batches:
        assert (batch["label"][:12] >= 2).all() and (batch["label"][12:] < 2).all()
        assert len(set(batch["id"].tolist())) == 16 or len(held) < 4
    drawn = torch.cat([batch["id"][12:] for batch in batches])
    counts = torch.stack([(drawn == one).sum() for one in held.ids])
    assert counts.sum() == len(drawn) and counts.max() - counts.min() <= 1
    assert all(torch.equal(a["input"], b["input"]) for a, b in zip(batches[2:], loader.batches(1, skip=2), strict=True))
    ranks = [list(Replay(source, share=0.5).loader(of, batch_size=8, seed=2, rank=rank, world=2).batches(0)) for rank in range(2)]
    whole = list(Replay(source, share=0.5).loader(of, batch_size=16, seed=2).batches(0))
    for a, b, both in zip(*ranks, whole, strict=True):
        assert sorted([*a["id"].tolist(), *b["id"].tolist()]) == sorted(both["id"].tolist())


@pytest.mark.parametrize("keep", ["ids", "examples"])
def test_what_is_left_is_found_again(tmp_path: Path, data: dict[str, Any], keep: str) -> None:
    source = first(tmp_path, data, size=10, keep=keep)
    whole = next(iter(task(data, 2, joint=True).loader("train", batch_size=240, whole=True).batches(0)))
    held = Memory.read(source, task(data, 1))
    for one, label, image in zip(held.ids.tolist(), held.labels.tolist(), held.inputs, strict=True):
        row = whole["id"].tolist().index(one)
        assert torch.equal(image, whole["input"][row]) and label == whole["label"][row]
    size = (source.path / "memory" / "memory.safetensors").stat().st_size
    assert (size > 10 * 16 * 4) == (keep == "examples")


def test_a_reservoir_goes_on_over_the_tasks(tmp_path: Path, data: dict[str, Any]) -> None:
    source, of = first(tmp_path, data, size=12), task(data, 1)
    replay = Replay(source, size=12)
    replay.loader(of, batch_size=8, seed=5)
    memory = replay.remember(of, model(4))
    assert (len(memory), memory.seen) == (12, 160)
    assert (memory.labels < 2).any() and (memory.labels >= 2).any()
    old = set(Memory.read(source, of).ids.tolist())
    assert set(memory.ids[memory.labels < 2].tolist()) <= old
    fewer = Replay(source, size=5).remember(of, model(4))
    assert len(fewer) == 5
    with pytest.raises(RecipeError, match="a reservoir of 12 of 80 examples cannot become one of 20"):
        Replay(source, size=20).remember(of, model(4))


def test_herding_keeps_as_many_of_each_class_the_best_first(tmp_path: Path, data: dict[str, Any]) -> None:
    source, of = first(tmp_path, data, size=12, choose="herding"), task(data, 1)
    before = Memory.read(source, of)
    assert before.labels.bincount().tolist() == [6, 6]
    net = model(4)
    after = Replay(source, size=12, choose="herding").remember(of, net)
    assert after.labels.bincount().tolist() == [3, 3, 3, 3]
    for label in (0, 1):
        assert torch.equal(after.ids[after.labels == label], before.ids[before.labels == label][:3])
    fresh = Replay(source).fresh(of)
    rows = (fresh.labels == 2).nonzero().flatten()
    net.eval()
    features = net.get_submodule("layer1")(fresh.inputs[rows].flatten(1))
    assert fresh.ids[rows[herding_by_hand(features.detach(), 3)]].tolist() == after.ids[after.labels == 2].tolist()
    with pytest.raises(RecipeError, match="a memory of 3 has no room for an exemplar of each of 4 classes: size is 4 at least"):
        Replay(source, size=3, choose="herding").remember(of, net)


def test_kept_logits_are_of_the_moment_and_have_no_classes_that_came_later(tmp_path: Path, data: dict[str, Any]) -> None:
    source, of = first(tmp_path, data, size=12, logits=True), task(data, 1)
    before, net = Memory.read(source, of), model(4).train()
    assert before.logits is not None and before.logits.shape == (12, 2)
    assert torch.allclose(before.logits, model(2).eval()(before.inputs), atol=1e-6)
    after = Replay(source, size=12, logits=True).remember(of, net)
    assert net.training and after.logits is not None
    old = after.labels < 2
    assert after.logits[old, 2:].isnan().all() and torch.allclose(after.logits[~old], net.eval()(after.inputs[~old]), atol=1e-6)
    place = {one: at for at, one in enumerate(before.ids.tolist())}
    assert torch.equal(after.logits[old, :2], before.logits[[place[one] for one in after.ids[old].tolist()]])


def test_a_memory_counts_as_what_a_later_stage_can_see(tmp_path: Path, data: dict[str, Any]) -> None:
    one = first(tmp_path / "a", data, size=10) if (tmp_path / "a").mkdir() is None else None
    other = first(tmp_path / "b", data, size=9) if (tmp_path / "b").mkdir() is None else None
    assert one is not None and other is not None and one.digest != other.digest


def test_what_cannot_be_replayed_is_refused(tmp_path: Path, data: dict[str, Any]) -> None:
    source, of = first(tmp_path, data, size=10), task(data, 1)
    other = {**data, "root": str(tmp_path / "other.npz")}
    np.savez(other["root"], x_train=np.zeros((12, 4, 4), np.float32), y_train=np.arange(12) % 6, x_test=np.zeros((6, 4, 4), np.float32), y_test=np.arange(6))
    with pytest.raises(MismatchError, match="of the 10 examples that are remembered by id are not among the training data"):
        Replay(source).loader(task(other, 1), batch_size=4)
    with pytest.raises(MismatchError, match=r"of the 10 examples that .* remembers by id have another label in this task"):
        Replay(source).loader(build("tasks", "split", {"of": data, "tasks": [[1, 0], [2, 3]]}), batch_size=4)
    with pytest.raises(RecipeError, match="share is 1; it is the part of a batch"):
        Replay(share=1.0)
    with pytest.raises(RecipeError, match="size is 0"):
        Replay(size=0)
    with pytest.raises(RecipeError, match=r"share 0.01 of a batch of 8 is 0 remembered examples and 8 new ones"):
        Replay(source, share=0.01).loader(of, batch_size=8)
    with pytest.raises(MismatchError, match="replay cannot give 'view'"):
        next(iter(Replay(source).loader(of, batch_size=8, views=2).batches(0)))
    (source.path / "memory" / "memory.safetensors").write_bytes(b"no")
    with pytest.raises(ArtifactError, match="is damaged"):
        Replay(source).loader(of, batch_size=8)
    bare = tmp_path / "bare"
    bare.mkdir()
    with pytest.raises(ArtifactError, match="has no memory"):
        Replay(Artifact(bare, source.manifest)).loader(of, batch_size=8)
