"""`relation.rkd_angle` against a loop over triplets, and in bounded memory."""

from typing import Any, cast

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from limbeck.core.errors import RecipeError
from limbeck.objectives.relation import rkd_angle
from limbeck.objectives.relation.rkd_angle import RKDAngle, rkd_angle_loss


def naive(student: Tensor, teacher: Tensor) -> Tensor:
    """The sum over triplets, one by one, in float64, with a graph."""

    def cosines(x: Tensor) -> Tensor:
        rows = x.double().flatten(1)
        triplets = [(i, j, k) for i in range(len(x)) for j in range(len(x)) for k in range(len(x))]
        return torch.stack([F.normalize(rows[i] - rows[j], dim=0) @ F.normalize(rows[k] - rows[j], dim=0) for i, j, k in triplets])

    gap = (cosines(student) - cosines(teacher)).abs()
    return torch.where(gap < 1, gap**2 / 2, gap - 0.5).sum()


@pytest.mark.parametrize("at_once", [1, 40, 1 << 19])
@pytest.mark.parametrize(("ours", "theirs"), [((5, 4), (5, 7)), ((4, 2, 3, 3), (4, 5, 2, 1)), ((2, 1), (2, 1))])
def test_it_equals_a_loop_in_value_and_gradient(ours: tuple[int, ...], theirs: tuple[int, ...], at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rkd_angle, "_AT_ONCE", at_once)
    student, teacher = torch.randn(ours, dtype=torch.float64, requires_grad=True), torch.randn(theirs, dtype=torch.float64)
    loss, expected = rkd_angle_loss(student, teacher, reduction="sum"), naive(student, teacher)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6, abs=1e-12)
    assert rkd_angle_loss(student, teacher).item() == pytest.approx(expected.item() / ours[0] ** 3, rel=1e-6, abs=1e-12)
    gradients = [torch.autograd.grad(one, student)[0] for one in (loss, expected)]
    assert torch.allclose(*gradients, rtol=1e-6, atol=1e-9)


def test_float32_rows_far_from_zero_keep_their_angles() -> None:
    student, teacher = 1000 + torch.randn(6, 8) / 16, torch.randn(6, 8)
    assert rkd_angle_loss(student, teacher, reduction="sum").item() == pytest.approx(naive(student, teacher).item(), rel=1e-5)


def test_neither_scale_nor_motion_matters_and_a_right_angle_made_straight_does() -> None:
    teacher = torch.randn(6, 3)
    turned, _ = torch.linalg.qr(torch.randn(8, 8))
    assert rkd_angle_loss(7 * F.pad(teacher, (0, 5)) @ turned + 100, teacher).item() == pytest.approx(0, abs=1e-9)
    corner, line = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0], [0.0], [-1.0]])
    # at the corner cos 0 becomes -1: 1/2, twice; at both ends cos 45 degrees becomes 1, twice each
    assert rkd_angle_loss(corner, line, reduction="sum").item() == pytest.approx(2 * 0.5 + 4 * (1 - 0.5**0.5) ** 2 / 2)


class _Largest(TorchDispatchMode):
    """The most elements that any tensor has while the block lasts."""

    seen = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        self.seen = max([self.seen, *(one.numel() for one in (made if isinstance(made, (tuple, list)) else [made]) if isinstance(one, Tensor))])
        return made


def test_no_tensor_grows_with_the_cube_of_the_batch_or_with_its_square_times_the_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rkd_angle, "_AT_ONCE", 2 * 24**2)
    student = torch.randn(24, 100, requires_grad=True)
    with _Largest() as largest:
        rkd_angle_loss(student, torch.randn(24, 100)).backward()
    assert largest.seen == 24 * 100, "the features are the largest of all"


def test_what_cannot_be_meant_is_refused() -> None:
    with pytest.raises(RecipeError, match="did you mean 'sum'"):
        RKDAngle(reduction=cast(Any, "sums"))
