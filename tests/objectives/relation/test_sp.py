"""`relation.sp` against a loop over pairs."""

import pytest
import torch
from torch import Tensor, nn

from limbeck import Offline
from limbeck.objectives.relation.sp import SP, sp_loss


def naive(student: Tensor, teacher: Tensor) -> Tensor:
    def normal(x: Tensor) -> list[list[Tensor]]:
        rows = x.double().flatten(1)
        products = [[(one * other).sum() for other in rows] for one in rows]
        return [[value / sum(each**2 for each in row) ** 0.5 for value in row] for row in products]

    n = range(len(student))
    ours, theirs = normal(student), normal(teacher)
    return torch.stack([(theirs[i][j] - ours[i][j]) ** 2 for i in n for j in n]).sum() / len(student) ** 2


@pytest.mark.parametrize(("ours", "theirs"), [((5, 4), (5, 7)), ((4, 2, 3, 3), (4, 5, 2, 1))])
def test_it_equals_a_loop_in_value_and_gradient(ours: tuple[int, ...], theirs: tuple[int, ...]) -> None:
    student, teacher = torch.randn(ours, dtype=torch.float64, requires_grad=True), torch.randn(theirs, dtype=torch.float64)
    loss, expected = sp_loss(student, teacher), naive(student, teacher)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    gradients = [torch.autograd.grad(one, student)[0] for one in (loss, expected)]
    assert torch.allclose(*gradients, rtol=1e-6, atol=1e-9)


def test_a_turned_and_scaled_space_is_the_same() -> None:
    teacher = torch.randn(6, 8)
    turned, _ = torch.linalg.qr(torch.randn(8, 8))
    assert sp_loss(5 * teacher @ turned, teacher).item() == pytest.approx(0, abs=1e-9)


def test_autocast_leaves_its_products_alone() -> None:
    student, teacher = torch.randn(6, 8), torch.randn(6, 8)
    with torch.autocast("cpu", torch.bfloat16):
        loss = sp_loss(student, teacher)
    assert torch.equal(loss, sp_loss(student, teacher))


def test_it_trains_through_real_modules_whose_last_stages_it_finds() -> None:
    def net(width: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(1, width, 3, 2, 1), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 3))

    student, teacher = net(4), net(6)
    x, y = torch.randn(5, 1, 8, 8), torch.tensor([0, 1, 2, 0, 1])
    scheme = Offline(student, teacher, [SP()], example=(x, y))
    loss = scheme((x, y)).loss
    expected = sp_loss(student[:2](x), teacher[:2](x))
    assert torch.allclose(loss, expected)
    loss.backward()
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in student.parameters())
    assert all(parameter.grad is None for parameter in teacher.parameters())
