"""PS-KD: the labels give way to what the student said an epoch ago."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.core.errors import LimbeckError, MismatchError, RecipeError
from limbeck.core.lookup import build
from limbeck.core.schedule import Clock
from limbeck.schemes.progressive import Progressive, share
from limbeck.tasks.multilabel import MultiLabel


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).double()


def supervised() -> Any:
    return build("objectives", "supervised", {})


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(7)
    return torch.randn(5, 4, generator=draw, dtype=torch.float64), torch.randint(0, 3, (5,), generator=draw)


def advanced(scheme: Progressive, student: nn.Module, batch: tuple[Tensor, Tensor], epoch: float) -> nn.Module:
    """The student as it was when `epoch` of 10 began, once that and a step have come."""
    past = copy.deepcopy(student)
    scheme.at(epoch, 10)
    scheme(batch)  # the snapshot is taken
    with torch.no_grad():
        for one in student.parameters():
            one.add_(0.3 * torch.randn_like(one))
    scheme.after_step()
    return past


def test_the_share_of_the_past_grows_by_epochs_and_the_first_has_none() -> None:
    assert [share(Clock(epoch, 4), 0.8) for epoch in (0.0, 0.99, 1.0, 1.5, 2.0, 3.9)] == pytest.approx([0, 0, 0.4, 0.4, 0.6, 0.8])


@pytest.mark.parametrize("epoch", [1.0, 4.0, 9.0])
def test_it_is_the_cross_entropy_with_the_mixed_target(batch: tuple[Tensor, Tensor], epoch: float) -> None:
    student = net()
    scheme = Progressive(student, None, [2.0 * supervised()], example=batch, alpha=0.7)
    past = advanced(scheme, student, batch, epoch)
    scheme.at(epoch + 0.5, 10)
    alpha = 0.7 * (epoch + 1) / 10
    x, y = batch
    target = (1 - alpha) * F.one_hot(y, 3) + alpha * past(x).softmax(-1).detach()
    expected = -2.0 * (target * student(x).log_softmax(-1)).sum(-1).mean()
    found = scheme(batch)
    torch.testing.assert_close(found.loss, expected)
    assert list(found.parts) == ["supervised"]


def test_the_gradient_is_the_paper_s_rescaling(batch: tuple[Tensor, Tensor]) -> None:
    """At the label's logit the gradient is that of the cross-entropy times 1 - alpha (1 - p_past) / (1 - p_now): less for what was hard; sec. 3.2."""
    student = net()
    scheme = Progressive(student, None, [supervised()], example=batch, alpha=0.5)
    past = advanced(scheme, student, batch, 5.0)
    alpha = 0.5 * 6 / 10
    x, y = batch
    given: list[Tensor] = []
    student.register_forward_hook(lambda _m, _a, out: given.append(out))
    logits = student(x)
    now = logits.softmax(-1)
    (theirs,) = torch.autograd.grad(F.cross_entropy(logits, y, reduction="sum"), logits)
    (ours,) = torch.autograd.grad(scheme(batch).sums["student"], given[-1])
    rows = torch.arange(5)
    factor = 1 - alpha * (1 - past(x).softmax(-1)[rows, y]) / (1 - now[rows, y])
    torch.testing.assert_close(ours[rows, y] / theirs[rows, y], factor.detach())
    torch.testing.assert_close(ours, (now - (1 - alpha) * F.one_hot(y, 3) - alpha * past(x).softmax(-1)).detach())


@pytest.mark.parametrize(("alpha", "epoch"), [(0.0, 7.0), (0.9, 0.5)])
def test_without_a_past_it_is_the_cross_entropy(batch: tuple[Tensor, Tensor], alpha: float, epoch: float) -> None:
    student = net()
    scheme = Progressive(student, None, [supervised()], example=batch, alpha=alpha)
    scheme.at(epoch, 10)
    ours = torch.autograd.grad(scheme(batch).loss, list(student.parameters()))
    theirs = torch.autograd.grad(F.cross_entropy(student(batch[0]), batch[1]), list(student.parameters()))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


def test_another_teacher_speaks_in_the_place_of_the_past(batch: tuple[Tensor, Tensor]) -> None:
    student, teacher = net(), nn.Linear(4, 3).double()
    kd = 0.5 * build("objectives", "response.kd", {"temperature": 2.0})
    scheme = Progressive(student, teacher, [supervised(), kd], example=batch, alpha=1.0)
    scheme.at(9.0, 10)
    p, q = teacher(batch[0]), student(batch[0])
    expected = -(p.softmax(-1) * q.log_softmax(-1)).sum(-1).mean() + 0.5 * 4 * F.kl_div((q / 2).log_softmax(-1), (p / 2).softmax(-1), reduction="batchmean")
    found = scheme(batch)
    torch.testing.assert_close(found.loss, expected)
    assert list(found.parts) == ["supervised", "kd"]


@pytest.mark.parametrize(
    ("objectives", "options", "error", "message"),
    [
        (["supervised"], {"alpha": 1.5}, RecipeError, "alpha is 1.5; it is a share"),
        (["supervised"], {"alpha": float("nan")}, RecipeError, "it is a share"),
        (["response.kd"], {}, RecipeError, "the objective supervised, and there are none"),
        (["supervised", "supervised"], {}, RecipeError, "there are 2: give one"),
    ],
)
def test_what_cannot_be_meant_is_one_line(
    batch: tuple[Tensor, Tensor], objectives: list[str], options: dict[str, Any], error: type[LimbeckError], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        build("schemes", "progressive", options, net(), None, [build("objectives", kind, {}) for kind in objectives], None, batch)
    assert "\n" not in str(caught.value)


def test_yes_or_no_answers_are_refused(batch: tuple[Tensor, Tensor]) -> None:
    labels = F.one_hot(batch[1], 3).float()
    with pytest.raises(MismatchError, match="the answers are bernoulli"):
        Progressive(net(), None, [supervised()], MultiLabel(), (batch[0], labels))
