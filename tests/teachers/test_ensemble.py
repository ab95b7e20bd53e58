"""An ensemble says the mean of what its members say."""

import copy
import math
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.knowledge import Dense, Knowledge, Link, Reads
from limbeck.core.lookup import build, find
from limbeck.core.task import Batch, Task, default_task
from limbeck.core.teacher import Teacher
from limbeck.teachers.ensemble import Ensemble


class Says(Teacher):
    """A teacher that says the same of every batch, and notes what it is told."""

    def __init__(self, logits: Tensor, link: Link = "softmax") -> None:
        super().__init__()
        self.said = Dense(logits, link)
        self.followed: list[nn.Module] = []

    def prepare(self, reads: Reads, task: Task) -> None: ...

    def forward(self, batch: Batch, student: Knowledge | None = None) -> Knowledge:
        return Knowledge({"main": self.said})

    def after_step(self, student: nn.Module) -> None:
        self.followed.append(student)


def ask(members: list[nn.Module], **options: Any) -> Tensor:
    made = Ensemble(members, **options)
    made.prepare(Reads(), default_task())
    return made({"input": torch.zeros(5, 4)}).main.logits


def logits(count: int, scale: float = 3.0) -> list[Tensor]:
    return list(scale * torch.randn(count, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))


def naive(said: list[Tensor], weights: list[float], average: str) -> Tensor:
    """The mean of probabilities `[N, C]`, number by number, in float64."""
    total = sum(weights)
    mean = torch.zeros(5, 4, dtype=torch.float64)
    for row in range(5):
        for column in range(4):
            for z, weight in zip(said, weights, strict=True):
                if average == "logits":
                    mean[row, column] += weight / total * z[row, column]
                else:
                    mean[row, column] += weight / total * math.exp(z[row, column]) / sum(math.exp(v) for v in z[row])
    return mean.softmax(-1) if average == "logits" else mean


@pytest.mark.parametrize("average", ["probabilities", "logits"])
@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 0.5], [3.0, 0.0, 1.0]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_a_naive_mean(average: Literal["probabilities", "logits"], weights: list[float] | None, dtype: torch.dtype) -> None:
    said = logits(3)
    found = ask([Says(one.to(dtype)) for one in said], average=average, weights=weights)
    assert found.dtype == dtype
    expected = naive(said, weights or [1.0] * 3, average)
    torch.testing.assert_close(found.softmax(-1), expected.to(dtype), rtol=1e-5 if dtype == torch.float32 else 1e-12, atol=0)


def test_arithmetic_and_geometric_means_differ() -> None:
    said: list[nn.Module] = [Says(one) for one in logits(2)]
    assert (ask(said).softmax(-1) - ask(said, average="logits").softmax(-1)).abs().max() > 0.05


def test_peaky_and_excluded_classes_stay_finite_where_a_member_allows_them() -> None:
    one, other = torch.tensor([[1e4, 0.0, -math.inf]]), torch.tensor([[0.0, 1e4, -math.inf]])
    found = ask([Says(one), Says(other)]).softmax(-1)
    torch.testing.assert_close(found, torch.tensor([[0.5, 0.5, 0.0]]))
    found = ask([Says(one.half()), Says(other.half())])
    assert found.dtype == torch.float32 and not found.isnan().any()


def test_yes_or_no_answers_are_averaged_one_by_one() -> None:
    said = logits(2)
    found = ask([Says(one, "bernoulli") for one in said], weights=[1.0, 3.0])
    torch.testing.assert_close(found.sigmoid(), (said[0].sigmoid() + 3 * said[1].sigmoid()) / 4)


def test_real_numbers_are_averaged_as_they_are() -> None:
    said = logits(2)
    torch.testing.assert_close(ask([Says(one, "identity") for one in said]), (said[0] + said[1]) / 2)


def test_bare_modules_are_frozen_and_out_of_reach() -> None:
    members: list[nn.Module] = [nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.9)), nn.Linear(4, 4)]
    made = Ensemble(members)
    made.prepare(Reads(), default_task())
    assert not list(made.parameters()) and not made.state_dict()
    made.train()
    batch = {"input": torch.randn(5, 4)}
    assert torch.equal(made(batch).main.logits, made(batch).main.logits)
    assert not made(batch).main.logits.requires_grad
    copied = copy.deepcopy(made).to(torch.float64)
    assert next(members[1].parameters()).dtype == torch.float32
    assert copied({"input": batch["input"].double()}).main.logits.dtype == torch.float64


def test_members_that_move_follow_the_student() -> None:
    members = [Says(one) for one in logits(2)]
    student = nn.Linear(1, 1)
    Ensemble(members).after_step(student)
    assert [one.followed for one in members] == [[student], [student]]


@pytest.mark.parametrize(
    ("count", "options", "message"),
    [
        (1, {}, "an ensemble of 1: give two teachers or more"),
        (0, {}, "an ensemble of 0"),
        (2, {"weights": [1.0]}, "1 weights for 2 teachers: give one each"),
        (2, {"weights": [1.0, -0.5]}, "must be finite, zero or more"),
        (2, {"weights": [0.0, 0.0]}, "not all zero"),
        (2, {"weights": [1.0, math.nan]}, "must be finite"),
        (2, {"weights": [1.0, math.inf]}, "must be finite"),
        (2, {"average": "median"}, "'probabilities' or 'logits'"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused(count: int, options: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        build("teachers", "ensemble", options, [Says(one) for one in logits(count)])
    assert "\n" not in str(caught.value)


def test_members_must_know_the_same_classes_in_the_same_way() -> None:
    with pytest.raises(MismatchError, match=r"\(5, 3\), \(5, 4\); they must know the same classes"):
        ask([Says(torch.zeros(5, 3)), Says(torch.zeros(5, 4))])
    with pytest.raises(MismatchError):
        ask([Says(torch.zeros(5, 4)), Says(torch.zeros(5, 4), "bernoulli")])


def test_a_feature_of_an_ensemble_is_refused() -> None:
    made = Ensemble([nn.Linear(4, 4), nn.Linear(4, 4)])
    with pytest.raises(MismatchError, match="an ensemble has no single layer layer1: drop the feature objective"):
        made.prepare(Reads(features=frozenset({"layer1"})), default_task())


def test_it_teaches_a_student() -> None:
    batch = (torch.randn(8, 4), torch.arange(8) % 3)
    scheme = find("schemes", "offline")(nn.Linear(4, 3), Ensemble([nn.Linear(4, 3), nn.Linear(4, 3)]), [build("objectives", "kd", {})])
    loss = scheme(batch).loss
    loss.backward()
    assert loss > 0 and len(list(scheme.parameters())) == 2
