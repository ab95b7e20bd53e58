"""What every transfer set over a task's own loader must keep: purity, an exact skip, views, ranks, devices' ids."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.lookup import build
from limbeck.core.task import Batch, Loader, Task
from limbeck.tasks.classify import Classify

SETS: dict[str, tuple[str, dict[str, Any]]] = {
    "noise": ("noise", {"deviation": 0.3, "jitter": 0.2}),
    "mixup": ("mixed", {"alpha": 0.5, "portion": 0.7}),
    "cutmix": ("mixed", {"method": "cutmix", "labels": "dominant"}),
    "unlabelled": ("unlabelled", {"labelled": 20}),
    "proportioned": ("unlabelled", {"labelled": 0.1, "per_batch": 6}),
    "left_out": ("left_out", {"classes": [3, "7"]}),
}
every = pytest.mark.parametrize("name", SETS)


def task(**options: Any) -> Task:
    return build("tasks", "image", {"data": "digits", "subset": 200, "augment": [{"kind": "shift", "pixels": 1}], **options})


def loader(name: str, of: Task | None = None, **how: Any) -> Loader:
    kind, options = SETS[name]
    return build("transfer", kind, options).loader(of or task(), **{"batch_size": 16, "seed": 3, **how})


def same(ours: Sequence[Batch], theirs: Sequence[Batch]) -> bool:
    return len(ours) == len(theirs) and all(
        one.keys() == other.keys() and all(torch.equal(one[field], other[field]) for field in one) for one, other in zip(ours, theirs, strict=True)
    )


@every
def test_it_is_a_pure_function_of_seed_and_epoch(name: str) -> None:
    made = loader(name)
    first = [*made.batches(1)]
    assert [*made.batches(0)]
    torch.manual_seed(99)
    assert same([*made.batches(1)], first) and same([*loader(name).batches(1)], first)
    assert not same([*made.batches(2)], first)
    assert not same([*loader(name, seed=4).batches(1)], first)


@every
def test_it_has_as_many_batches_as_it_says_of_the_size_asked_for(name: str) -> None:
    made = loader(name)
    for epoch in range(5):
        batches = [*made.batches(epoch)]
        assert len(batches) == len(made)
        assert all(value.shape[0] == 16 for batch in batches for value in batch.values())


@every
def test_a_skip_is_exact(name: str) -> None:
    made = loader(name)
    whole = [*made.batches(4)]
    for skip in (0, 1, 5, len(whole)):
        assert same([*made.batches(4, skip=skip)], whole[skip:])


@every
def test_processes_share_the_examples(name: str) -> None:
    alone = torch.cat([batch["id"] for batch in loader(name, batch_size=16).batches(0)])
    parts = [[*loader(name, batch_size=8, rank=rank, world=2).batches(0)] for rank in range(2)]
    assert len(parts[0]) == len(parts[1])
    if name == "proportioned":
        return
    together = torch.cat([torch.cat([one["id"], other["id"]]) for one, other in zip(*parts, strict=True)])
    assert torch.equal(together[: len(alone)], alone[: len(together)])


@pytest.mark.parametrize("name", ["noise", "unlabelled", "proportioned", "left_out"])
def test_views_come_again(name: str) -> None:
    made = loader(name, views=2)
    seen: dict[tuple[int, int], torch.Tensor] = {}
    for epoch in range(4):
        for batch in made.batches(epoch):
            assert (batch["view"] == epoch % 2).all()
            for row, (example, view) in enumerate(zip(batch["id"].tolist(), batch["view"].tolist(), strict=True)):
                assert torch.equal(seen.setdefault((example, view), batch["input"][row]), batch["input"][row])
    assert len(seen) > 200


@pytest.mark.parametrize("name", ["noise", "unlabelled", "left_out"])
def test_a_whole_pass_shows_what_an_epoch_shows_in_order(name: str) -> None:
    shuffled = {example: row for batch in loader(name).batches(2) for example, row in zip(batch["id"].tolist(), batch["input"], strict=True)}
    whole = [*loader(name, whole=True, batch_size=30).batches(2)]
    ids = [example for batch in whole for example in batch["id"].tolist()]
    assert len(whole) == len(loader(name, whole=True, batch_size=30)) and len({*ids}) == len(ids)
    rows = {example: row for batch in whole for example, row in zip(batch["id"].tolist(), batch["input"], strict=True)}
    assert {*shuffled} <= {*rows} and all(torch.equal(rows[example], row) for example, row in shuffled.items())
    split = [[*loader(name, whole=True, batch_size=30, rank=rank, world=2).batches(2)] for rank in range(2)]
    assert same([split[number % 2][number // 2] for number in range(len(whole))], whole)
    assert [len(part) for part in split] == [len(loader(name, whole=True, batch_size=30, rank=rank, world=2)) for rank in range(2)]


@pytest.mark.parametrize("name", ["mixup", "cutmix", "proportioned"])
def test_what_cannot_be_recorded_is_refused(name: str) -> None:
    with pytest.raises(MismatchError, match=r"cannot be recorded|a pass in order was asked for"):
        loader(name, whole=True)
    if name != "proportioned":
        with pytest.raises(MismatchError, match="cannot be recorded"):
            loader(name, views=3)


@every
def test_a_batch_without_ids_is_refused(name: str) -> None:
    plain = Classify({"train": [{"input": torch.randn(16, 1, 8, 8), "label": torch.arange(16) % 10}]}, classes=10)
    with pytest.raises(MismatchError, match="needs the field 'id', and the batch has input, label: give mappings with `id`"):
        next(loader(name, plain).batches(0))


@every
def test_it_teaches(name: str) -> None:
    from limbeck.schemes.offline import Offline

    made = task()
    example = next(loader(name, made).batches(0))
    student, teacher = (build("models", "mlp", {"widths": [4]}, in_shape=(1, 8, 8), classes=10) for _ in range(2))
    kd = Offline(student, teacher, [build("objectives", kind, {}) for kind in ("response.kd", "supervised")], made, example)
    kd(example).loss.backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in student.parameters())


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("noise", {"deviation": 0.0}, "one must be above zero"), ("noise", {"deviation": -1.0}, "neither may be negative"),
        ("noise", {"deviation": float("nan")}, "neither may be negative"), ("mixed", {"alpha": 0.0}, "alpha is 0"),
        ("mixed", {"portion": 1.5}, "portion is 1.5"),
        ("unlabelled", {}, "needs the option 'labelled'"), ("unlabelled", {"labelled": 2.5}, "labelled is 2.5: a whole number"),
        ("unlabelled", {"labelled": -1}, "labelled is -1"), ("unlabelled", {"labelled": 5, "per_batch": 0}, "per_batch is 0"),
        ("left_out", {"classes": []}, "leaves no class out"),
    ],
)  # fmt: skip
def test_options_that_cannot_be_meant(kind: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        build("transfer", kind, options)
