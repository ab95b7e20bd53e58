"""Batches of rows: every row once, the same from every start, and on every world."""

from typing import Any

import pytest
import torch

from limbeck.core.errors import DataError, RecipeError
from limbeck.tasks._text_loader import RowsLoader

FIELDS = {"input": torch.arange(40, dtype=torch.int32).view(20, 2), "label": torch.arange(20, dtype=torch.int32)}
ROWS = torch.arange(3, 17)


def loader(split: Any = "train", size: int = 4, **how: Any) -> RowsLoader:
    return RowsLoader(FIELDS, ROWS, split, **{"batch_size": size, "seed": 0, "rank": 0, "world": 1, **how})


def ids(made: RowsLoader, epoch: int = 0, skip: int = 0) -> list[list[int]]:
    return [batch["id"].tolist() for batch in made.batches(epoch, skip=skip)]


def test_fields_follow_their_ids_as_int64() -> None:
    for batch in loader().batches(2):
        assert {value.dtype for value in batch.values()} == {torch.int64}
        assert torch.equal(batch["label"], batch["id"])
        assert torch.equal(batch["input"][:, 0], 2 * batch["id"])


def test_training_is_shuffled_by_seed_and_epoch_and_resumes_anywhere() -> None:
    made = loader()
    first = ids(made)
    assert len(made) == len(first) == 3, "14 rows are three batches of 4"
    flat = [one for batch in first for one in batch]
    assert len(set(flat)) == 12
    assert flat != sorted(flat)
    assert set(flat) <= set(ROWS.tolist())
    assert ids(made, 1) != first
    assert ids(loader(seed=1)) != first
    assert ids(made) == first == ids(loader())
    assert ids(made, 0, skip=2) == first[2:]
    assert ids(made, 0, skip=3) == []


def test_other_splits_and_whole_come_in_order() -> None:
    for made in (loader("test"), loader("train", whole=True)):
        assert [one for batch in ids(made, 5) for one in batch] == ROWS.tolist()
        assert len(made) == 4


@pytest.mark.parametrize("split", ["train", "test"])
def test_ranks_share_what_one_process_has(split: Any) -> None:
    one, two = ids(loader(split, 4)), [ids(loader(split, 2, rank=rank, world=2)) for rank in range(2)]
    assert [len(part) for part in two] == [len(loader(split, 2, rank=rank, world=2)) for rank in range(2)]
    together = [batch for pair in zip(*two, strict=False) for batch in pair] + [batch for part in two for batch in part[min(map(len, two)) :]]
    assert [one for batch in together for one in batch] == [one for batch in one for one in batch]


def test_what_changes_a_batch_is_told_seed_and_view() -> None:
    def change(batch: dict[str, torch.Tensor], seed: int, view: int) -> dict[str, torch.Tensor]:
        return {**batch, "told": torch.full_like(batch["id"], 100 * seed + view)}

    def told(epoch: int, split: Any = "train", **how: Any) -> dict[str, torch.Tensor]:
        return dict(next(iter(loader(split, seed=2, change=change, **how).batches(epoch))))

    assert told(5)["told"].unique().item() == 205
    assert "view" not in told(5)
    assert told(5, views=3)["told"].unique().item() == 202 == 200 + told(5, views=3)["view"].unique().item()
    assert told(5, "test", views=3)["told"].unique().item() == 200


def test_what_cannot_be_meant_is_refused() -> None:
    with pytest.raises(RecipeError, match="batch_size is 0"):
        loader(size=0)
    with pytest.raises(RecipeError, match="views is 0"):
        loader(views=0)
    with pytest.raises(DataError, match=r"batch_size is 8 on each of 2 processes, and the training split has 14 rows"):
        loader(size=8, world=2)
    assert len(loader("test", 100)) == 1
