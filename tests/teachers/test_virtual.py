"""A virtual teacher is right with the probability that it is told, and shares the rest evenly."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from limbeck.core.errors import DataError, LimbeckError, MismatchError, RecipeError
from limbeck.core.knowledge import Dense, Knowledge, Reads
from limbeck.core.lookup import build
from limbeck.core.task import default_task
from limbeck.schemes.offline import Offline
from limbeck.teachers.virtual import Virtual, virtual_logits


@pytest.mark.parametrize("correct", [0.3, 0.9, 0.99, 0.999999])
@pytest.mark.parametrize("temperature", [1.0, 20.0])
def test_it_is_the_paper_s_distribution_softened_as_a_softmax(correct: float, temperature: float) -> None:
    labels, classes = torch.tensor([2, 0, 4, 4]), 5
    found = (virtual_logits(labels, classes, correct=correct).double() / temperature).softmax(-1)
    for row, label in enumerate(labels.tolist()):
        p = [correct if k == label else (1 - correct) / (classes - 1) for k in range(classes)]
        assert sum(p) == pytest.approx(1.0)
        powers = [one ** (1 / temperature) for one in p]
        expected = torch.tensor([one / sum(powers) for one in powers], dtype=torch.float64)
        torch.testing.assert_close(found[row], expected, rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(found.sum(-1), torch.ones(4, dtype=torch.float64))


def test_at_temperature_one_it_is_label_smoothing() -> None:
    """KL to p has the gradient of the cross-entropy with labels smoothed by e = (1 - a) K / (K - 1)."""
    torch.manual_seed(0)
    student, x, y = nn.Linear(4, 5), torch.randn(7, 4), torch.randint(0, 5, (7,))
    kd = Offline(student, Virtual(correct=0.9), [build("objectives", "response.kd", {"temperature": 1.0})])
    ours = torch.autograd.grad(kd((x, y)).loss, list(student.parameters()))
    smoothed = nn.functional.cross_entropy(student(x), y, label_smoothing=0.1 * 5 / 4)
    for one, other in zip(ours, torch.autograd.grad(smoothed, list(student.parameters())), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("correct", [0.0, 1.0, -1.0, float("nan")])
def test_what_is_no_probability_is_refused(correct: float) -> None:
    with pytest.raises(RecipeError, match="a probability above 0 and below 1"):
        build("teachers", "virtual", {"correct": correct})


def ask(labels: Tensor | None, said: Dense, **fields: Any) -> Knowledge:
    teacher = Virtual()
    teacher.prepare(Reads(), default_task())
    batch = {"input": torch.zeros(2, 4), **({} if labels is None else {"label": labels}), **fields}
    return teacher(batch, Knowledge({"main": said}))


@pytest.mark.parametrize(
    ("labels", "said", "fields", "error", "message"),
    [
        (None, Dense(torch.zeros(2, 3)), {}, MismatchError, "not every example of the batch has one"),
        (torch.tensor([0, 1]), Dense(torch.zeros(2, 3)), {"labelled": torch.tensor([True, False])}, MismatchError, "not every example"),
        (torch.tensor([0, 1]), Dense(torch.zeros(2, 3), "bernoulli"), {}, MismatchError, "the student's answers are bernoulli"),
        (torch.tensor([0, 3]), Dense(torch.zeros(2, 3)), {}, DataError, "out of range: there are 3 classes, 0..2"),
        (torch.tensor([0, 0]), Dense(torch.zeros(2, 1)), {}, MismatchError, "for 1 classes"),
    ],
)
def test_what_does_not_fit_is_one_line(labels: Tensor | None, said: Dense, fields: dict[str, Tensor], error: type[LimbeckError], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        ask(labels, said, **fields)
    assert "\n" not in str(caught.value)


def test_the_label_must_be_the_likeliest_class() -> None:
    with pytest.raises(MismatchError, match="above 1/3, so that the label is the likeliest"):
        virtual_logits(torch.tensor([0]), 3, correct=0.2)


def test_it_has_no_layers() -> None:
    with pytest.raises(MismatchError, match="an answer and no layers"):
        Offline(nn.Linear(4, 3), Virtual(), [build("objectives", "feature.fitnet", {"layers": {"": ""}})])
