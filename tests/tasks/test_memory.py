"""The in-memory loader: the promises of `Task.loader`, over ranks, epochs and resumption."""

from typing import Any

import pytest
import torch
from torch import Tensor

from limbeck.core.errors import DataError, RecipeError
from limbeck.core.task import Batch, Split
from limbeck.tasks._augment import Crop, Flip, Shift
from limbeck.tasks._memory import Held, MemoryLoader, Norm, Shelf
from limbeck.tasks._preprocess import normalised

RAW = torch.randint(0, 256, (60, 2, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(60) % 4
NORM = Norm(255.0, torch.tensor([0.4, 0.5]).view(-1, 1, 1), torch.tensor([0.2, 0.3]).view(-1, 1, 1))
FLOAT = Held(NORM(RAW), LABELS, NORM(torch.zeros(1, 2, 1, 1)).view(-1), None)
BYTES = Held(RAW, LABELS, torch.zeros(2, dtype=torch.uint8), NORM)
ROWS = torch.arange(3, 53)  # 50 examples
AUGMENT = [Shift(pixels=1), Crop(padding=2), Flip()]


def loader(
    split: Split = "train", *, held: Held = FLOAT, batch_size: int = 8, seed: int = 0, rank: int = 0, world: int = 1, augment: bool = True, **how: Any
) -> MemoryLoader:
    return MemoryLoader(held, ROWS, split, batch_size=batch_size, seed=seed, rank=rank, world=world, augment=AUGMENT if augment else [], **how)


def same(a: Batch, b: Batch) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def ids(found: list[Batch]) -> Tensor:
    return torch.cat([batch["id"] for batch in found])


def test_a_batch() -> None:
    (batch, *_) = loader(augment=False).batches(0)
    assert list(batch) == ["input", "label", "id"]
    assert batch["input"].dtype == torch.float32 and batch["label"].dtype == batch["id"].dtype == torch.int64
    assert torch.equal(batch["input"], FLOAT.images[batch["id"]]) and torch.equal(batch["label"], LABELS[batch["id"]])


def test_training_is_shuffled_by_seed_and_epoch_and_drops_the_incomplete_round() -> None:
    epochs = [ids(list(loader().batches(epoch))) for epoch in (0, 1)]
    assert all(len(each) == 48 == len(set(each.tolist())) and set(each.tolist()) <= set(ROWS.tolist()) for each in epochs)
    assert not torch.equal(epochs[0], epochs[1])
    assert torch.equal(epochs[1], ids(list(loader().batches(1))))
    assert not torch.equal(epochs[0], ids(list(loader(seed=1).batches(0))))
    assert not torch.equal(epochs[1], ids(list(loader(seed=1).batches(0))))
    dropped = [set(ROWS.tolist()) - set(ids(list(loader().batches(epoch))).tolist()) for epoch in range(5)]
    assert len({frozenset(each) for each in dropped}) > 1  # not always the same ones


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("world", [1, 2])
def test_skip_gives_the_rest_to_the_bit(split: Split, world: int) -> None:
    made = loader(split, rank=world - 1, world=world)
    whole = list(made.batches(3))
    assert len(whole) == len(made)
    for skip in range(len(whole) + 2):
        rest = list(made.batches(3, skip=skip))
        assert len(rest) == max(0, len(whole) - skip) and all(same(a, b) for a, b in zip(rest, whole[skip:], strict=True))


def test_skip_gathers_nothing_that_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    gathered: list[int] = []

    class Spy:
        device = torch.device("cpu")

        def index_select(self, axis: int, rows: Tensor) -> Tensor:
            gathered.append(len(rows))
            return FLOAT.images.index_select(axis, rows)

    held = Held(Spy(), LABELS, FLOAT.fill, None)  # pyright: ignore[reportArgumentType]
    next(loader(held=held).batches(0, skip=4))
    assert gathered == [8]


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_one_global_batch(world: int) -> None:
    """Batch k over the ranks is batch k of one process with `world` times the batch size: same examples, same augmentation."""
    one = list(loader(batch_size=12).batches(2))
    parts = [list(loader(batch_size=12 // world, rank=rank, world=world).batches(2)) for rank in range(world)]
    assert all(len(part) == len(one) == 4 for part in parts)
    for k, batch in enumerate(one):
        joined = {key: torch.cat([part[k][key] for part in parts]) for key in batch}
        assert same(joined, batch)


@pytest.mark.parametrize("world", [1, 2, 3, 9])
def test_evaluation_is_whole_and_in_order(world: int) -> None:
    parts = [list(loader("test", rank=rank, world=world).batches(0)) for rank in range(world)]
    assert [len(part) for part in parts] == [len(loader("test", rank=rank, world=world)) for rank in range(world)]
    turns = [parts[k % world][k // world] for k in range(7)]
    assert sum(len(part) for part in parts) == 7
    assert ids(turns).tolist() == ROWS.tolist() and len(turns[-1]["id"]) == 2
    assert torch.equal(torch.cat([batch["input"] for batch in turns]), FLOAT.images[ROWS])  # not augmented


def test_augmentation_follows_the_epoch_and_the_example_not_the_batch() -> None:
    views = [
        {int(i): x for b in loader(batch_size=size).batches(epoch) for i, x in zip(b["id"], b["input"], strict=True)}
        for size, epoch in [(8, 1), (5, 1), (8, 2)]
    ]
    both = views[0].keys() & views[1].keys()
    assert len(both) > 40 and all(torch.equal(views[0][i], views[1][i]) for i in both)
    changed = [not torch.equal(views[0][i], views[2][i]) for i in views[0].keys() & views[2].keys()]
    assert sum(changed) > 0.8 * len(changed)
    assert any(not torch.equal(views[0][i], FLOAT.images[i]) for i in both)


@pytest.mark.parametrize("augment", [False, True])
def test_bytes_normalised_batch_by_batch_equal_floats_normalised_once(augment: bool) -> None:
    for a, b in zip(loader(augment=augment).batches(1), loader(held=BYTES, augment=augment).batches(1), strict=True):
        assert b["input"].dtype == torch.float32 and same(a, b)


def test_a_batch_of_ones_own_is_no_view_of_the_data() -> None:
    before = FLOAT.images.clone()
    for split in ("train", "test"):
        for batch in loader(split, augment=False).batches(0):
            batch["input"].fill_(9)
            batch["label"].fill_(9)
    assert torch.equal(FLOAT.images, before) and LABELS.max() == 3


def test_a_batch_of_one() -> None:
    assert [batch["input"].shape for batch in loader(batch_size=1).batches(0)] == [(1, 2, 6, 6)] * 50


def test_a_batch_size_that_cannot_be_filled() -> None:
    assert len(loader(batch_size=50)) == 1
    with pytest.raises(DataError, match="batch_size is 51, and the training split has 50 examples"):
        loader(batch_size=51)
    with pytest.raises(DataError, match="batch_size is 26 on each of 2 processes, and the training split has 50"):
        loader(batch_size=26, world=2)
    assert len(loader("test", batch_size=51)) == 1  # evaluation takes what there is
    with pytest.raises(RecipeError, match="batch_size is 0"):
        loader(batch_size=0)


def test_the_global_random_state_is_left_alone() -> None:
    state = torch.random.get_rng_state()
    list(loader().batches(0))
    assert torch.equal(state, torch.random.get_rng_state())


def test_normalised_leaves_its_argument_alone() -> None:
    raw = torch.ones(1, 2, 1, 1)
    out = normalised(raw, 2.0, torch.zeros(2, 1, 1), torch.ones(2, 1, 1))
    assert raw.unique().item() == 1 and out.unique().item() == 0.5


def test_views_repeat_their_augmentation_and_say_which_they_are() -> None:
    def seen(epoch: int, views: int | None) -> dict[int, Tensor]:
        batches = list(loader(views=views).batches(epoch))
        assert all(("view" in batch) == (views is not None) for batch in batches)
        assert views is None or all(batch["view"].eq(epoch % views).all() and batch["view"].shape == batch["id"].shape for batch in batches)
        return {int(one): image for batch in batches for one, image in zip(batch["id"], batch["input"], strict=True)}

    free, first, again = seen(1, None), seen(1, 3), seen(4, 3)
    both = first.keys() & again.keys()
    assert len(both) > 40
    assert all(first[one].equal(again[one]) and first[one].equal(free[one]) for one in both)
    assert list(first) != list(again)  # the order follows the epoch
    with pytest.raises(RecipeError, match="views is 0"):
        loader(views=0)


def test_the_whole_training_split_comes_in_order_and_augmented() -> None:
    whole = list(loader(whole=True).batches(1))
    assert torch.equal(ids(whole), ROWS)
    images = {int(one): image for batch in whole for one, image in zip(batch["id"], batch["input"], strict=True)}
    for batch in loader().batches(1):
        assert all(images[int(one)].equal(image) for one, image in zip(batch["id"], batch["input"], strict=True))


def test_a_shelf_moves_its_data_once_to_a_device_and_says_why_a_split_is_not_there() -> None:
    shelf = Shelf(FLOAT, {"train": ROWS, "test": torch.arange(3)}, augment=AUGMENT, absent={"validation": "there is no {validation}"})
    for batch, expected in zip(shelf.loader("train", batch_size=8, seed=2).batches(1), loader(seed=2).batches(1), strict=True):
        assert same(batch, expected)
    meta = torch.device("meta")
    shelf.loader("train", batch_size=2, device=meta)
    held = shelf._on[meta]
    shelf.loader("test", batch_size=2, device=meta)
    assert shelf._on[meta] is held and held.images.is_meta
    assert next(shelf.loader("test", batch_size=2).batches(0))["input"].device.type == "cpu"
    with pytest.raises(DataError, match=r"^there is no \{validation\}$"):
        shelf.loader("validation", batch_size=8)
