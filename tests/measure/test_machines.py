"""The theory of committee machines: each average against a sample, the flow against a network that learns."""

import pytest
import torch
from torch import Tensor

from limbeck.measure.machines import _flow, _i3, _i4, generalization_error, learning_curve, order_parameters, parity_plateau
from limbeck.models.machine import Machine
from limbeck.objectives.response.regression_kd import RegressionKD
from limbeck.schemes.offline import Offline
from limbeck.tasks.regression import Regression

N = 100_000


def g(x: Tensor) -> Tensor:
    return torch.erf(x / 2**0.5)


def slope(x: Tensor) -> Tensor:
    return (2 / torch.pi) ** 0.5 * torch.exp(-(x**2) / 2)


@pytest.fixture(scope="module")
def drawn() -> tuple[Tensor, Tensor]:
    """A covariance of four fields, and a sample of them."""
    made = torch.Generator().manual_seed(0)
    root = torch.randn(4, 4, generator=made, dtype=torch.float64) * 0.6
    return root @ root.T, torch.randn(N, 4, generator=made, dtype=torch.float64) @ root.T


def near(sample: Tensor, said: float) -> None:
    assert abs(float(sample.mean()) - said) < 4 * float(sample.std()) / N**0.5


def test_the_averages_are_those_of_a_sample(drawn: tuple[Tensor, Tensor]) -> None:
    c, u = drawn
    for i, j, k in ((0, 1, 2), (0, 0, 1), (1, 2, 1), (2, 2, 2)):
        near(slope(u[:, i]) * u[:, j] * g(u[:, k]), _i3(c.tolist(), i, j, k))
    for i, j, k, m in ((0, 1, 2, 3), (0, 0, 1, 2), (0, 1, 1, 1), (2, 2, 2, 2)):
        near(slope(u[:, i]) * slope(u[:, j]) * g(u[:, k]) * g(u[:, m]), _i4(c.tolist(), i, j, k, m))
    near((g(u[:, :2]).sum(1) - g(u[:, 2:]).sum(1)).square() / 2, float(generalization_error(c[:2, :2], c[:2, 2:], c[2:, 2:])))


def test_a_teacher_s_copy_has_learnt_all_there_is() -> None:
    t = torch.eye(3, dtype=torch.float64)
    assert float(generalization_error(t, t, t)) == pytest.approx(0)
    dq, dr = _flow(t, t, t, 0.5)
    assert dq.abs().max() < 1e-12 and dr.abs().max() < 1e-12


def test_the_plateau_of_a_parity_machine_is_that_of_a_sample() -> None:
    y = torch.randn(N, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    near(g(y).prod(1).square() / 2, parity_plateau(2))


def test_a_network_learns_as_theory_says() -> None:
    """One step of many students: the mean change of the order parameters over examples, against the flow."""
    torch.manual_seed(0)
    inputs, rate, count = 200, 0.8, 800
    teacher, start = Machine((inputs,), 1, units=2), Machine((inputs,), 1, units=2)
    kd = Offline(start, teacher, [0.5 * RegressionKD(margin=None)], Regression())
    q, r, t = order_parameters(start.layer1.weight[0], teacher.layer1.weight[0])
    dq, dr = _flow(q, r, t, rate)
    before = start.layer1.weight.detach().clone()
    found_q, found_r = torch.zeros_like(q), torch.zeros_like(r)
    spread = []
    for _ in range(count):
        start.layer1.weight.grad = None
        kd({"input": torch.randn(1, inputs)}).loss.backward()
        assert start.layer1.weight.grad is not None
        after, with_teacher, _ = order_parameters((before - rate * start.layer1.weight.grad)[0], teacher.layer1.weight[0])
        found_q += (after - q) * inputs / count
        found_r += (with_teacher - r) * inputs / count
        spread.append((with_teacher - r) * inputs)
    noise = 4 * torch.stack(spread).std(0) / count**0.5
    assert ((found_r - dr).abs() < noise + 0.02).all()
    assert ((found_q - dq).abs() < 0.3).all()


def test_a_committee_waits_on_a_plateau_and_then_specialises() -> None:
    """Saad and Solla's picture: the error stands still while all units are alike, then falls to nothing."""
    t = torch.eye(2, dtype=torch.float64)
    q, r = torch.diag(torch.tensor([0.25, 0.25], dtype=torch.float64)), torch.tensor([[0.05, 0.0], [0.0, 0.0]], dtype=torch.float64)
    curve = dict(learning_curve(q, r, t, rate=1.0, until=120, step=0.5))
    flat = [error for alpha, error in curve.items() if 8 <= alpha <= 20]
    assert max(flat) - min(flat) < 0.1 * flat[0]
    assert curve[120.0] < 1e-3 < flat[-1]
