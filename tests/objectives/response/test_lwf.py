"""Learning without forgetting: distillation over the old classes alone."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.knowledge import Dense, Knowledge
from limbeck.core.lookup import build
from limbeck.core.objective import Objective
from limbeck.core.task import Facts, default_task
from limbeck.objectives.response.kd import kd_loss
from limbeck.objectives.response.lwf import lwf_loss


def said(logits: Tensor, link: str = "softmax") -> Knowledge:
    return Knowledge({"main": Dense(logits, link)})  # pyright: ignore[reportArgumentType]


def facts(classes: int, heads: str, tasks: list[int]) -> Facts:
    return Facts((4,), classes, tuple(map(str, range(classes))), 9, preprocess={"split": {"tasks": tasks, "heads": heads}})


@pytest.fixture
def logits() -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    return torch.randn(7, 6, generator=draw, dtype=torch.float64), torch.randn(7, 4, generator=draw, dtype=torch.float64)


def naive(z: Tensor, v: Tensor, temperature: float, heads: list[int]) -> Tensor:
    out = []
    for ours, theirs in zip(z.tolist(), v.tolist(), strict=True):
        total, low = 0.0, 0
        for size in heads:
            p = (torch.tensor(theirs[low : low + size]) / temperature).double().softmax(0)
            q = (torch.tensor(ours[low : low + size]) / temperature).double().softmax(0)
            total += sum(temperature**2 * a * (a / b).log() for a, b in zip(p, q, strict=True))
            low += size
        out.append(float(total))
    return torch.tensor(out, dtype=torch.float64)


@pytest.mark.parametrize("heads", [[4], [2, 2], [3, 1]])
def test_it_is_the_divergence_over_each_head_s_old_classes(logits: tuple[Tensor, Tensor], heads: list[int]) -> None:
    torch.testing.assert_close(lwf_loss(*logits, temperature=3.0, heads=heads), naive(*logits, 3.0, heads), rtol=1e-6, atol=1e-6)


def test_with_no_new_class_it_is_plain_distillation(logits: tuple[Tensor, Tensor]) -> None:
    z, v = logits
    assert torch.equal(lwf_loss(z[:, :4], v, temperature=2.0), kd_loss(z[:, :4], v, temperature=2.0))


def test_new_classes_get_no_gradient(logits: tuple[Tensor, Tensor]) -> None:
    z = logits[0].requires_grad_()
    lwf_loss(z, logits[1]).sum().backward()
    assert z.grad is not None and not z.grad[:, 4:].any() and z.grad[:, :4].any()


def test_the_paper_s_loss_differs_by_what_no_student_changes(logits: tuple[Tensor, Tensor]) -> None:
    """Their eq. 2-4, `-sum y'_o log yhat'_o` at T = 2, has the gradient of this at weight 1 / T^2."""
    z = logits[0].requires_grad_()
    theirs = -(F.softmax(logits[1] / 2, -1) * F.log_softmax(z[:, :4] / 2, -1)).sum()
    expected = torch.autograd.grad(theirs, z)[0]
    torch.testing.assert_close(torch.autograd.grad(0.25 * lwf_loss(z, logits[1], temperature=2.0).sum(), z)[0], expected)


@pytest.mark.parametrize(("heads", "expected"), [("single", [4]), ("multi", [2, 2])])
def test_the_sequence_says_which_heads_there_are(logits: tuple[Tensor, Tensor], heads: str, expected: list[int]) -> None:
    objective: Objective = build("objectives", "response.lwf", {"temperature": 2.0})
    student, teacher = said(logits[0]), said(logits[1])
    objective.bind(student, teacher, default_task(), facts(6, heads, [2, 2, 2]))
    torch.testing.assert_close(objective(student, teacher, {}), naive(*logits, 2.0, expected), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("student", "teacher", "told", "message"),
    [
        ((3, 4), (3, 6), None, "the teacher knows 6 classes and the student 4"),
        ((3, 6), (3, 4), facts(6, "multi", [3, 3]), "the teacher knows 4 classes, which is no number of whole tasks of 3, 3 classes"),
    ],
)
def test_what_does_not_fit_is_refused(student: tuple[int, int], teacher: tuple[int, int], told: Facts | None, message: str) -> None:
    with pytest.raises(MismatchError, match=message):
        build("objectives", "response.lwf", {}).bind(said(torch.zeros(student)), said(torch.zeros(teacher)), default_task(), told)


def test_bad_options_and_heads_are_refused() -> None:
    with pytest.raises(RecipeError, match="temperature is 0"):
        build("objectives", "response.lwf", {"temperature": 0})
    with pytest.raises(MismatchError, match="the heads have 3 classes, the teacher 4, the student 6"):
        lwf_loss(torch.zeros(2, 6), torch.zeros(2, 4), heads=[3])
    with pytest.raises(MismatchError, match="compares probabilities over classes"):
        build("objectives", "response.lwf", {}).bind(said(torch.zeros(2, 3), "identity"), said(torch.zeros(2, 3), "identity"), default_task(), None)
