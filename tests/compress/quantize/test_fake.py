"""Fake quantization: the values and gradients of Esser et al. 2020, eq. 1 to 3, by a loop in float64; and what the layers do in training."""

import copy

import pytest
import torch
from torch import nn

from limbeck.compress.quantize._fake import Fake, FakeConv2d, Grid, exactly, fake_quantize, make_fake

TOLD = {"weights": 4, "activations": 4, "output": None, "per_channel": True, "learned": True}


def lsq(x: float, step: float, low: int, high: int) -> tuple[float, float, float]:
    """Value, gradient into x, gradient into the step."""
    v = x / step
    if v <= low:
        return low * step, 0.0, float(low)
    if v >= high:
        return high * step, 0.0, float(high)
    return round(v) * step, 1.0, round(v) - v


@pytest.mark.parametrize("low", [-7, 0, -3])
def test_values_and_gradients_are_those_of_the_paper(low: int) -> None:
    high, step = low + 15, 0.3
    x = (torch.rand(400, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 14 - 7).requires_grad_()
    s = torch.tensor(step, dtype=torch.float64, requires_grad=True)
    weight = torch.linspace(-1, 2, 400, dtype=torch.float64)
    y = fake_quantize(x, s, low, high)
    (y * weight).sum().backward()
    wanted = [lsq(value, step, low, high) for value in x.tolist()]
    assert {0.0, 1.0} == {one[1] for one in wanted}, "inside and outside of the range are both tried"
    torch.testing.assert_close(y, torch.tensor([one[0] for one in wanted], dtype=torch.float64))
    assert x.grad is not None and s.grad is not None
    torch.testing.assert_close(x.grad, torch.tensor([one[1] for one in wanted], dtype=torch.float64) * weight)
    assert s.grad.item() == pytest.approx(sum(one[2] * w for one, w in zip(wanted, weight.tolist(), strict=True)))


def test_it_rounds_as_onnx_does() -> None:
    x, zero = torch.linspace(-3, 9, 999), 5
    by_onnx = ((x / 0.25).round() + zero).clamp(0, 15)  # QuantizeLinear, then DequantizeLinear
    assert torch.equal(fake_quantize(x, torch.tensor(0.25), -zero, 15 - zero), (by_onnx - zero) * 0.25)


def test_a_grid_learns_its_step_slowed_as_in_the_paper() -> None:
    grid = Grid(4, learned=True)
    grid.measured(torch.tensor(0.0), torch.tensor(1.5))
    x = torch.linspace(-1, 3, 24).view(2, 12)
    grid.train()(x).sum().backward()
    assert grid.growth.grad is not None
    raw = sum(lsq(value, 0.1, 0, 15)[2] for value in x.flatten().double().tolist())
    assert grid.growth.grad.item() == pytest.approx(raw * 0.1 / (12 * 15) ** 0.5, rel=1e-4)  # d/d growth = s d/ds, g = 1 / sqrt(N Q), sec. 2.2


def test_a_moving_grid_follows_training_and_rests_in_evaluation() -> None:
    grid = Grid(8, learned=False, momentum=0.5)
    grid.measured(torch.tensor(0.0), torch.tensor(1.0))
    grid.eval()(torch.tensor([5.0]))
    assert grid.seen.tolist() == [0.0, 1.0]
    grid.train()(torch.tensor([-1.0, 3.0]))
    assert grid.seen.tolist() == [-0.5, 2.0] and grid.step().item() == pytest.approx(2.5 / 255) and grid.zero.item() == 51


@pytest.mark.parametrize("layer", [nn.Linear(6, 4), nn.Conv1d(6, 4, 3), nn.Conv2d(6, 4, 3, padding=1, padding_mode="reflect", groups=2)])
def test_a_layer_stays_itself_and_trains(layer: nn.Module) -> None:
    layer, weight = copy.deepcopy(layer), layer.get_parameter("weight").detach().clone()
    kind, heard = type(layer), []
    layer.register_forward_hook(lambda *_: heard.append(1))
    made = make_fake(layer, TOLD)
    assert made is layer and isinstance(made, kind) and isinstance(made, Fake) and made.input is not None
    made.weight_start.fill_(0.01)
    made.input.measured(torch.tensor(-2.0), torch.tensor(2.0))
    x = torch.randn({2: (3, 6), 3: (3, 6, 8), 4: (3, 6, 8, 8)}[weight.ndim], requires_grad=True)
    made.train()(x).square().sum().backward()
    assert heard == [1] and x.grad is not None and x.grad.any()
    for name, parameter in made.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), name
    with exactly(made), torch.no_grad():
        exact = made(x)
    assert torch.equal(exact, make_plain(kind, layer)(x)) and not torch.equal(made(x), exact)
    twin = copy.deepcopy(made)
    twin.load_state_dict(made.state_dict())
    assert torch.equal(twin.eval()(x), made.eval()(x))


def make_plain(kind: type[nn.Module], layer: nn.Module) -> nn.Module:
    plain = copy.deepcopy(layer)
    object.__setattr__(plain, "__class__", kind)
    return plain


def test_it_compiles() -> None:
    layer = make_fake(nn.Conv2d(2, 4, 3), TOLD)
    assert isinstance(layer, FakeConv2d)
    x = torch.randn(2, 2, 6, 6)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), layer(x))
    compiled(x).sum().backward()
    assert layer.weight.grad is not None and layer.weight.grad.any()


def test_rounding_is_exact() -> None:
    x = torch.cat([torch.randn(100_000, generator=torch.Generator().manual_seed(0)) * scale for scale in (1e-3, 1.0, 1e3, 1e6, 1e8)])
    one = torch.tensor(1.0)
    assert torch.equal(fake_quantize(x, one, -(2.0**31), 2.0**31), x.round())
