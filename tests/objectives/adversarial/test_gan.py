"""The two games against loops in float64: the losses, and the penalty with its gradient to a critic's weights."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from limbeck.objectives.adversarial._gan import gradient_penalty, opponent_loss, student_loss, told_apart


def test_losses_equal_a_loop() -> None:
    s, t = (3 * torch.randn(2, 7, dtype=torch.float64)).unbind()
    for row in range(7):
        fake, real = s[row].sigmoid(), t[row].sigmoid()
        assert student_loss(s, loss="plain")[row].item() == pytest.approx(-fake.log().item(), rel=1e-9)
        assert opponent_loss(s, t, loss="plain")[row].item() == pytest.approx(-(real.log() + (1 - fake).log()).item(), rel=1e-9)
        assert student_loss(s, loss="wgan_gp")[row].item() == -s[row].item()
        assert opponent_loss(s, t, loss="wgan_gp")[row].item() == s[row].item() - t[row].item()
    huge = torch.tensor([-1e4, 1e4])
    assert opponent_loss(huge, -huge, loss="plain").isfinite().all() and student_loss(huge, loss="plain").isfinite().all()


def by_hand(critic: nn.Sequential, student: Tensor, teacher: Tensor, mix: Tensor) -> Tensor:
    """The mean penalty of a perceptron of three layers, its gradient written out: W1' D1 W2' D2 w3, D the slopes of the leaky units."""
    one, two, three = critic[0], critic[2], critic[4]
    found = torch.zeros((), dtype=torch.float64)
    for row in range(len(student)):
        x = mix[row] * teacher[row] + (1 - mix[row]) * student[row]
        first = one.weight @ x + one.bias
        second = two.weight @ torch.where(first > 0, first, 0.2 * first) + two.bias
        slopes = [torch.where(units > 0, 1.0, 0.2).double() for units in (first, second)]
        slope = one.weight.T @ (slopes[0] * (two.weight.T @ (slopes[1] * three.weight[0])))
        found = found + (slope.square().sum().sqrt() - 1) ** 2 / len(student)
    return found


def test_the_penalty_and_its_gradient_equal_a_loop() -> None:
    critic = nn.Sequential(nn.Linear(4, 6), nn.LeakyReLU(0.2), nn.Linear(6, 5), nn.LeakyReLU(0.2), nn.Linear(5, 1)).double()
    student, teacher = torch.randn(2, 9, 4, dtype=torch.float64).unbind()
    mix = torch.rand(9, 1, dtype=torch.float64)
    found = gradient_penalty(lambda x: critic(x).squeeze(-1), student, teacher, mix)
    assert found.shape == (9,)
    found.mean().backward()
    expected = by_hand(critic, student, teacher, mix)
    assert found.mean().item() == pytest.approx(expected.item(), rel=1e-9)
    for layer in (critic[0], critic[2], critic[4]):
        weight = layer.get_parameter("weight")
        for place in [(0, 0), (0, weight.shape[1] - 1)]:
            with torch.no_grad():
                sides = []
                for step in (1e-6, -2e-6, 1e-6):
                    weight[place] += step
                    sides.append(by_hand(critic, student, teacher, mix).item())
            assert weight.grad is not None
            assert weight.grad[place].item() == pytest.approx((sides[0] - sides[1]) / 2e-6, rel=1e-5, abs=1e-9)
    assert student.grad is None and teacher.grad is None


def test_the_penalty_of_a_linear_critic_is_known_and_that_of_a_flat_one_has_a_gradient() -> None:
    x, weight = torch.randn(5, 3, 2, 2), torch.randn(3, 2, 2, requires_grad=True)
    found = gradient_penalty(lambda x: (x * weight).sum((1, 2, 3)), x, 2 * x, torch.rand(5, 1, 1, 1))
    torch.testing.assert_close(found, ((weight.norm() - 1) ** 2).expand(5))
    flat = torch.zeros(4, requires_grad=True)
    told = gradient_penalty(lambda x: (x * flat).sum(-1), torch.zeros(2, 4), torch.zeros(2, 4), torch.rand(2, 1))
    told.sum().backward()
    assert told.tolist() == [1, 1] and flat.grad is not None and flat.grad.isfinite().all()
    tokens = gradient_penalty(lambda x: (x * weight[0, 0]).sum(-1), torch.randn(4, 3, 2), torch.randn(4, 3, 2), torch.rand(4, 3, 1))
    assert tokens.shape == (4, 3)
    with torch.no_grad():
        assert gradient_penalty(lambda x: (x * weight).sum((1, 2, 3)), x, x, torch.rand(5, 1, 1, 1)).isfinite().all()


@pytest.mark.parametrize("loss", ["plain", "wgan_gp"])
def test_the_share_told_apart_equals_a_loop(loss: Any) -> None:
    s, t = torch.randn(2, 9, dtype=torch.float64).unbind()
    s[0] = 0.0
    threshold = 0.0 if loss == "plain" else float(s.mean() + t.mean()) / 2

    def right(score: float, teacher: bool) -> float:
        return 0.5 if score == threshold else float((score > threshold) == teacher)

    expected = [(right(float(one), teacher=False) + right(float(other), teacher=True)) / 2 for one, other in zip(s, t, strict=True)]
    assert told_apart(s, t, loss=loss).tolist() == expected
    assert told_apart(s, t + 100, loss="wgan_gp").tolist() == [1.0] * 9  # a critic's scores have no zero of their own
    assert told_apart(s + 500, t + 600, loss="wgan_gp").tolist() == [1.0] * 9
    same = torch.full((4,), 3.0)
    assert told_apart(same, same, loss=loss).tolist() == [0.5] * 4
    assert told_apart(-same, same, loss="plain").tolist() == [1.0] * 4 and told_apart(same, -same, loss="plain").tolist() == [0.0] * 4
