"""Folds, validation and subset: what stratified means, counted."""

import pytest
import torch

from limbeck.core.errors import DataError, RecipeError
from limbeck.tasks._split import Splitting, carve, fold_rows, subset_rows

LABELS = torch.tensor([0] * 53 + [1] * 24 + [2] * 2 + [3] * 21)[torch.randperm(100, generator=torch.Generator().manual_seed(3))]
ROWS = torch.arange(100)


@pytest.mark.parametrize("folds", [2, 3, 5, 10])
def test_folds_part_the_data_and_keep_the_mix(folds: int) -> None:
    cut = [fold_rows(LABELS, ROWS, folds, fold, 7) for fold in range(folds)]
    assert torch.cat([test for _, test in cut]).sort().values.tolist() == ROWS.tolist()
    for train, test in cut:
        assert torch.cat([train, test]).sort().values.tolist() == ROWS.tolist()
        assert train.diff().gt(0).all() and test.diff().gt(0).all()
        assert set(LABELS[train].tolist()) == {0, 1, 2, 3}  # no fold takes the whole of a class, of two examples either
    counts = torch.stack([LABELS[test].bincount(minlength=4) for _, test in cut])
    assert (counts.max(0).values - counts.min(0).values <= 1).all()
    assert counts.sum(1).max() - counts.sum(1).min() <= 1


def test_folds_depend_on_the_seed_alone() -> None:
    one, again, other = (fold_rows(LABELS, ROWS, 5, 0, seed)[1] for seed in (0, 0, 1))
    assert torch.equal(one, again) and not torch.equal(one, other)


def test_a_class_of_one_example_has_no_folds() -> None:
    with pytest.raises(DataError, match="class 1 has one example"):
        fold_rows(torch.tensor([0, 0, 1, 2, 2]), torch.arange(5), 2, 0, 0)
    with pytest.raises(RecipeError, match="folds is 9, and there are 4 examples"):
        fold_rows(torch.tensor([0, 0, 1, 1]), torch.arange(4), 9, 0, 0)


@pytest.mark.parametrize("fraction", [0.05, 0.1, 0.25, 0.5])
def test_carve_takes_its_share_of_each_class(fraction: float) -> None:
    kept, taken = carve(LABELS, ROWS, fraction, 0)
    assert len(taken) == round(100 * fraction)
    assert torch.cat([kept, taken]).sort().values.tolist() == ROWS.tolist()
    share = LABELS.bincount() * fraction
    assert ((LABELS[taken].bincount(minlength=4) - share).abs() < 1).all()
    assert set(LABELS[kept].tolist()) == {0, 1, 2, 3}


def test_carve_of_some_rows_stays_within_them() -> None:
    rows = ROWS[::2]
    kept, taken = carve(LABELS, rows, 0.2, 0)
    assert torch.cat([kept, taken]).sort().values.tolist() == rows.tolist() and len(taken) == 10


def test_a_class_of_one_example_stays_in_training() -> None:
    labels = torch.tensor([0] * 10 + [1] + [2] * 10 + [3])
    kept, taken = carve(labels, torch.arange(22), 0.5, 0)
    assert labels[taken].bincount(minlength=4).tolist() == [6, 0, 5, 0]  # 11 of 22, none of them a class of its own
    assert 10 in kept and 21 in kept


def test_a_share_of_nothing_is_refused() -> None:
    with pytest.raises(DataError, match=r"validation=0\.1 of 4 training examples is none"):
        carve(torch.tensor([0, 0, 1, 1]), torch.arange(4), 0.1, 0)
    with pytest.raises(DataError, match="is none"):
        carve(torch.tensor([0, 1, 2]), torch.arange(3), 0.5, 0)  # one each: none can be spared


def test_subsets_nest() -> None:
    small, large = (set(subset_rows(ROWS, count, 0).tolist()) for count in (10, 40))
    assert len(small) == 10 and len(large) == 40 and small < large
    assert set(subset_rows(ROWS, 10, 1).tolist()) != small
    assert subset_rows(ROWS, 100, 0).tolist() == ROWS.tolist()
    with pytest.raises(DataError, match="subset is 101, and the training split has 100 examples"):
        subset_rows(ROWS, 101, 0)


def test_a_test_split_of_their_own_stays_as_it_is_and_the_rest_is_carved_and_thinned() -> None:
    rows = Splitting(validation=0.25, seed=3, subset=20).rows(LABELS, 40, own="these have one")
    train, validation = carve(LABELS, ROWS[:60], 0.25, 3)
    assert list(rows) == ["train", "validation", "test"]
    assert rows["test"].tolist() == list(range(60, 100)) and rows["validation"].equal(validation) and rows["train"].equal(subset_rows(train, 20, 3))


def test_data_without_a_test_split_are_cut_in_folds() -> None:
    splitting = Splitting(validation=0, folds=4, fold=2, seed=3)
    train, test = fold_rows(LABELS, ROWS, 4, 2, 3)
    rows = splitting.rows(LABELS, 0, own="these have one")
    assert tuple(rows) == splitting.splits() == ("train", "test") and rows["train"].equal(train) and rows["test"].equal(test)


@pytest.mark.parametrize("how", [{"fold": 1}, {"folds": 4}])
def test_folds_of_data_with_a_test_split_are_refused(how: dict[str, int]) -> None:
    with pytest.raises(RecipeError, match="data without a test split, and these have one: leave them out"):
        Splitting(validation=0.1, seed=0, **how).rows(LABELS, 40, own="these have one")


def test_the_options_of_splits_stand_in_fingerprints_in_one_order() -> None:
    assert Splitting(subset=9, seed=7, fold=1, folds=4, validation=0.2).options == (0.2, 4, 1, 7, 9)
