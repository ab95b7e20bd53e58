"""Classification over a user's own loaders: what a batch and an output may be, the loss, and loaders of every kind."""

from collections import UserDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, IterableDataset, TensorDataset

from limbeck.core.errors import DataError, LimbeckError, MismatchError, RecipeError
from limbeck.core.knowledge import Dense, Knowledge
from limbeck.core.task import default_task
from limbeck.tasks.classify import Classify

X, Y = torch.randn(10, 4, generator=torch.Generator().manual_seed(0)), torch.arange(10) % 3
DATA = TensorDataset(X, Y)
NET = nn.Linear(4, 3)


def test_it_is_the_default_task() -> None:
    task = default_task()
    assert isinstance(task, Classify) and task.splits() == ()


class Features(UserDict[str, Tensor]):
    """What Hugging Face's processors give: a mapping that is no dict."""


@pytest.mark.parametrize(
    "raw",
    [
        (X, Y),
        [X, Y],
        (X, Y.int()),
        (X, Y.to(torch.uint8)),
        {"input": X, "label": Y},
        {"image": X, "target": Y, "input_extra": Y},
        {"pixel_values": X, "labels": Y},
        Features(pixel_values=X, labels=Y),
    ],
)
def test_a_batch_with_labels(raw: Any) -> None:
    batch = Classify(input="image", label="target").batch(raw)
    assert set(batch) == {"input", "label"} and batch["input"] is X
    assert batch["label"].dtype == torch.int64 and torch.equal(batch["label"], Y)


def test_a_batch_of_inputs_alone_and_with_ids() -> None:
    task = Classify()
    for raw in (X, (X,), [X], {"input": X}):
        assert set(task.batch(raw)) == {"input"}
    batch = task.batch({"input": X, "label": Y, "id": torch.arange(10, dtype=torch.int32)})
    assert batch["id"].dtype == torch.int64 and task.batch(batch) == dict(batch)  # what is one already stays as it is


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        ((X, Y, Y), "this one is a tuple of 3"),
        ((), "this one is a tuple of 0"),
        ("text", "this one is a str"),
        ({"a": X, "b": Y}, r"fields a, b has no input: name it, Classify\(input=...\)"),
        ({}, r"fields \(none\)"),
        ((X.numpy(), Y), "input of a batch is a ndarray"),
        ((torch.tensor(1.0), Y), "must be a tensor"),
        ((X, Y.float()), "label of a batch is torch.float32"),
        ((X, Y[:, None]), r"label of a batch is torch.int64 \[10, 1\]; it must be a tensor of whole numbers of shape \[10\]"),
        ((X, Y[:9]), "shape"),
        ((X, Y > 0), "torch.bool"),
        ((X, Y.tolist()), "label of a batch is list"),
        ({"input": X, "id": ["a"] * 10}, "id of a batch is list"),
        ({"input": X, "attention_mask": X}, "attention_mask"),
    ],
)
def test_no_batch(raw: Any, told: str) -> None:
    with pytest.raises(MismatchError, match=told):
        Classify().batch(raw)


@dataclass
class Record:
    logits: Tensor
    loss: Tensor | None = None


class Pair(NamedTuple):
    logits: Tensor
    hidden: Tensor


class Saying(nn.Module):
    def __init__(self, say: Any) -> None:
        super().__init__()
        self.say = say

    def forward(self, x: Tensor) -> Any:
        return self.say(NET(x))


def hugging_face(logits: Tensor) -> Any:
    from transformers.modeling_outputs import ImageClassifierOutput

    return ImageClassifierOutput(logits=logits)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    "say",
    [lambda z: z, lambda z: (z, 1), lambda z: [z], lambda z: {"logits": z}, Record, lambda z: Pair(z, z + 1), hugging_face],
    ids=["tensor", "tuple", "list", "mapping", "record", "named", "transformers"],
)
def test_what_a_model_may_give(say: Any) -> None:
    if say is hugging_face:
        pytest.importorskip("transformers")
    said = Classify().forward(Saying(say), {"input": X})
    assert isinstance(said.main, Dense) and said.main.link == "softmax" and torch.equal(said.main.logits, NET(X)) and said.mask is None


@pytest.mark.parametrize(
    ("say", "told"),
    [
        (lambda z: None, "gives a NoneType without logits"),
        (lambda z: (), "gives a tuple without logits"),
        (lambda z: {"scores": z}, "gives a dict without logits"),
        (lambda z: ("a", z), "without logits"),
        (lambda z: z[:5], r"shape \[5, 3\] for 10 examples"),
        (lambda z: z[:, :1], r"shape \[10, 1\] .* C of 2 or more"),
        (lambda z: z[:, 0], r"shape \[10\]"),
        (lambda z: z[:, :, None], r"shape \[10, 3, 1\]"),
    ],
)
def test_what_a_model_may_not_give(say: Any, told: str) -> None:
    with pytest.raises(MismatchError, match=told):
        Classify().forward(Saying(say), {"input": X})


def known(logits: Tensor) -> Knowledge:
    return Knowledge({"main": Dense(logits)})


LOGITS = torch.randn(10, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("weight", [None, [0.5, 0.0, 2.0]])
def test_loss_equals_its_formula(weight: list[float] | None) -> None:
    found = Classify(class_weight=weight).loss(known(LOGITS), {"input": X, "label": Y})
    for n in range(10):
        w = 1.0 if weight is None else weight[int(Y[n])]
        assert float(found[n]) == pytest.approx(w * (LOGITS[n].exp().sum().log() - LOGITS[n, Y[n]]).item(), abs=1e-12)


def test_scores() -> None:
    scores = Classify().scores(known(LOGITS), {"input": X, "label": Y})
    assert scores["accuracy"].tolist() == [float(max(range(3), key=lambda c: float(LOGITS[n, c])) == int(Y[n])) for n in range(10)]
    assert 0 < scores["accuracy"].mean() < 1 and scores["loss"].shape == (10,)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(dtype: torch.dtype) -> None:
    peaky = torch.tensor([[60000.0, 0.0], [0.0, 30.0]], dtype=dtype)
    loss = Classify().loss(known(peaky), {"label": torch.tensor([0, 1])})
    assert loss.dtype == torch.float32 and loss.isfinite().all() and loss[0] == 0


@pytest.mark.parametrize("bad", [3, -1, -100])
def test_a_label_out_of_range_is_named(bad: int) -> None:
    batch = {"input": X, "label": torch.cat([Y[:9], torch.tensor([bad])])}
    with pytest.raises(DataError, match=rf"label {bad} is out of range: there are 3 classes, 0\.\.2"):
        Classify().loss(known(LOGITS), batch)
    with pytest.raises(DataError, match=f"label {bad} is out of range"):
        Classify({"train": [(X, batch["label"])]}, classes=3).facts()


def test_no_labels_and_wrong_weights_are_named() -> None:
    with pytest.raises(MismatchError, match=r"has no labels \(fields input\)"):
        Classify().loss(known(LOGITS), {"input": X})
    with pytest.raises(MismatchError, match="class_weight has 2 weights, and the model gives 3 logits"):
        Classify(class_weight=[1.0, 2.0]).loss(known(LOGITS), {"label": Y})


def test_loss_traces_whole() -> None:
    task = Classify(class_weight=[1.0, 2.0, 3.0])
    traced = torch.compile(lambda z: task.loss(known(z), {"label": Y}), backend="aot_eager", fullgraph=True)
    assert torch.allclose(traced(LOGITS), task.loss(known(LOGITS), {"label": Y}))


def test_facts_of_a_data_loader_and_of_a_list() -> None:
    task = Classify({"train": DataLoader(DATA, 4), "test": DataLoader(DATA, 4)}, classes=3)
    facts = task.facts()
    assert (facts.in_shape, facts.classes, facts.class_names, facts.examples, facts.labelled) == ((4,), 3, ("0", "1", "2"), 10, True)
    assert task.facts() is facts and task.splits() == ("train", "test")
    listed = Classify({"train": [X, X]}, class_names=["a", "b"]).facts()
    assert (listed.class_names, listed.examples, listed.labelled) == (("a", "b"), 20, False)
    assert Classify({"train": [(X[:5], Y[:5]), (X[5:], Y[5:])]}, classes="count").facts().classes == 3
    assert Classify({"train": [(X, Y)]}, class_weight=[1.0] * 5).facts().classes == 5


def test_facts_need_to_be_told_the_classes() -> None:
    with pytest.raises(DataError, match="nothing says how many classes there are"):
        Classify({"train": [(X, Y)]}).facts()
    with pytest.raises(DataError, match="there is no train loader; there are: none"):
        Classify(classes=3).facts()


@pytest.mark.parametrize("own", [True, False])
def test_facts_leave_the_order_of_training_as_it_was(own: bool) -> None:
    def order(look: bool) -> Tensor:
        torch.manual_seed(3)
        generator = torch.Generator().manual_seed(5) if own else None
        task = Classify({"train": DataLoader(DATA, 5, shuffle=True, generator=generator)}, classes="count")
        if look:
            task.facts()
        return torch.cat([batch["input"] for batch in task.loader("train", batch_size=5).batches(0)])

    assert torch.equal(order(False), order(True))


class Growing:
    """A loader of one's own: it can be iterated again and again."""

    def __init__(self, count: int) -> None:
        self.count, self.drawn = count, 0

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for k in range(self.count):
            self.drawn += 1
            yield torch.full((2, 4), float(k)), torch.tensor([0, 1])


def firsts(batches: Any) -> list[float]:
    return [batch["input"].flatten()[0].item() for batch in batches]


def test_a_loader_of_ones_own() -> None:
    loader = Classify({"train": Growing(5)}, classes=2).loader("train", batch_size=99, seed=7)
    assert len(loader) == 5 and firsts(loader.batches(0)) == firsts(loader.batches(1)) == [0, 1, 2, 3, 4]
    assert firsts(loader.batches(0, skip=3)) == [3, 4] and firsts(loader.batches(0, skip=9)) == []
    moved = next(Classify({"train": Growing(1)}).loader("train", batch_size=1, device=torch.device("meta")).batches(0))
    assert set(moved) == {"input", "label"} and all(value.is_meta for value in moved.values())


@pytest.mark.parametrize("world", [2, 3])
def test_evaluation_goes_round_the_processes(world: int) -> None:
    task = Classify({"train": Growing(1), "test": Growing(5)})
    loaders = [task.loader("test", batch_size=1, rank=rank, world=world) for rank in range(world)]
    assert [firsts(loader.batches(0)) for loader in loaders] == [[k for k in range(5) if k % world == rank] for rank in range(world)]
    assert [len(loader) for loader in loaders] == [len(firsts(loader.batches(0))) for loader in loaders]
    assert firsts(loaders[0].batches(0, skip=1)) == firsts(loaders[0].batches(0))[1:]
    with pytest.raises(MismatchError, match="2 processes would train on the same data: give the training loader torch's DistributedSampler"):
        task.loader("train", batch_size=1, rank=0, world=2)


@pytest.mark.parametrize("batched", [False, True])
def test_torchs_distributed_sampler_is_told_the_epoch(batched: bool) -> None:
    def made(rank: int) -> Classify:
        sampler = DistributedSampler(DATA, num_replicas=2, rank=rank, shuffle=True, seed=1)
        loader = DataLoader(DATA, batch_sampler=BatchSampler(sampler, 5, False)) if batched else DataLoader(DATA, 5, sampler=sampler)
        return Classify({"train": loader})

    def epoch(number: int) -> list[Tensor]:
        return [torch.cat([batch["input"] for batch in made(rank).loader("train", batch_size=5, rank=rank, world=2).batches(number)]) for rank in (0, 1)]

    first, second = epoch(0), epoch(1)
    assert torch.equal(torch.cat(first).sort(0).values, X.sort(0).values)  # the two together are the data
    assert not torch.equal(first[0], second[0]) and torch.equal(second[0], epoch(1)[0])
    with pytest.raises(MismatchError, match="DistributedSampler is for rank 1 of 2, and this process is 0 of 1"):
        made(1).loader("train", batch_size=5)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        return iter([(X[0], 0), (X[1], 1)])


def test_a_sampler_of_ones_own_is_left_alone() -> None:
    class Own(torch.utils.data.Sampler[int]):
        def __iter__(self) -> Iterator[int]:
            return iter([3, 1])

        def __len__(self) -> int:
            return 2

        def set_epoch(self, epoch: int) -> None:
            raise AssertionError("not torch's own")

    loader = Classify({"train": DataLoader(DATA, 1, sampler=Own())}).loader("train", batch_size=1)
    assert torch.equal(torch.cat([batch["input"] for batch in loader.batches(4)]), X[[3, 1]])


@pytest.mark.parametrize(
    ("loader", "told"),
    [
        (iter([(X, Y)]), "train loader is a list_iterator, which can be iterated only once"),
        (((X, Y) for _ in range(3)), "train loader is a generator, which can be iterated only once"),
        (3, "train loader is a int, which cannot be iterated"),
        ([], "train loader has no batch"),
        (DataLoader(DATA, 20, drop_last=True), "train loader has no batch"),
        (DataLoader(Stream(), 1), r"train loader \(DataLoader\) has no length"),
    ],
)
def test_no_loader(loader: Any, told: str) -> None:
    with pytest.raises(DataError, match=told):
        Classify({"train": loader}, classes=3).loader("train", batch_size=1)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"classes": 3, "class_weight": [1.0, 1.0]}, "speak of 2 and 3 classes"),
        ({"class_names": ["a", "b"], "class_weight": [1.0] * 3}, "speak of 3 and 2 classes"),
        ({"classes": 1}, "2 or more"),
        ({"class_weight": [1.0, float("nan")]}, "finite numbers"),
        ({"class_weight": [1.0, -1.0]}, "of zero or more"),
        ({"class_weight": [0.0, 0.0]}, "one of them is above zero"),
        ({"loaders": {"trian": [X]}}, "no split 'trian'; did you mean 'train'"),
        ({"loaders": {"test": [X]}}, "none for train"),
    ],
)
def test_options_that_cannot_be_meant(given: dict[str, Any], told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        Classify(**given)


def test_what_was_made_with_unseen_data_is_never_found_again() -> None:
    one, other = Classify({"train": [(X, Y)]}), Classify({"train": [(X, Y)]})
    assert one.fingerprint() == one.fingerprint() != other.fingerprint()


def test_a_missing_split_is_named() -> None:
    with pytest.raises(LimbeckError, match="there is no test loader; there are: train"):
        Classify({"train": [(X, Y)]}).loader("test", batch_size=1)
