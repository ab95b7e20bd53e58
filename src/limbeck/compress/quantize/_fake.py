"""Layers that compute with rounded weights and inputs while they train: fake quantization.

A number x lies on the grid of step s, q = clamp(x / s, low, high), x^ = s round(q), with low <= 0 <= high, so that zero stays zero. The gradient passes
straight through the rounding, and reaches the step as in Esser et al., "Learned Step Size Quantization", ICLR 2020, arXiv:1902.08153, eq. 3. The step is
learnt as its logarithm, for the reason of Jain et al., "Trained Quantization Thresholds for Accurate and Efficient Fixed-Point Inference of Deep Neural
Networks", MLSys 2020, arXiv:1903.08066: an optimizer's step means the same for every range; weight decay pulls to the range that was measured.

Shapes: C output channels, N examples.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Fake", "FakeConv1d", "FakeConv2d", "FakeLinear", "Grid", "bias_step", "exactly", "fake_layers", "fake_quantize", "make_fake", "weight_high"]

_BIAS_CODES = 2**31 - 128
"""The largest code of a bias that float32 and int32 both hold."""


def _round(x: Tensor) -> Tensor:
    """Round to the nearest, ties to the even, exactly: x and what it lacks to a whole number are multiples of the same power of two. The gradient passes."""
    return x + (x.round() - x).detach()


def _slowed(x: Tensor, factor: float) -> Tensor:
    """The same number, to rounding, whose gradient is multiplied by a factor."""
    return x * factor + (x * (1 - factor)).detach()


def fake_quantize(x: Tensor, step: Tensor, low: Tensor | float, high: Tensor | float) -> Tensor:
    """Return s round(clamp(x / s, low, high)), `step` s and the whole numbers `low`, `high` broadcast over x.

    Gradients: into x 1 within the range and 0 outside; into s round(x / s) - x / s within, low or high outside.

    >>> fake_quantize(torch.tensor([0.2, 0.9, 9.0]), torch.tensor(0.5), -7, 7).tolist()
    [0.0, 1.0, 3.5]
    """
    return _round(torch.clamp(x / step, low, high)) * step  # pyright: ignore[reportArgumentType, reportCallIssue]


def weight_high(bits: int) -> int:
    """The largest code of a weight: codes are symmetric, -(2^(bits-1) - 1) to 2^(bits-1) - 1, so that a channel's sign may be turned."""
    return 2 ** (bits - 1) - 1


def bias_step(weight: Tensor, given: Tensor) -> Tensor:
    """The step `[C]` of a bias of 32 bits, that of the sums it is added to: weight steps `[C, ...]` or `[1, ...]` times the input's."""
    return weight.flatten() * given


class Grid(nn.Module):
    """A tensor's grid, with a code for zero: codes 0 to 2^bits - 1, of which `zero` stands for 0.

    Where `learned`, the step starts at `start` and grows by exp(`growth`); else it follows the moving average of what it saw in training
    (Jacob et al., CVPR 2018, arXiv:1712.05877, sec. 3.1), and `growth` stays zero.
    """

    start: Tensor
    zero: Tensor
    seen: Tensor

    def __init__(self, bits: int, *, learned: bool, momentum: float = 0.99) -> None:
        super().__init__()
        self.bits, self.learned, self.momentum = bits, learned, momentum
        self.register_buffer("start", torch.ones(()))
        self.register_buffer("zero", torch.zeros(()))
        self.register_buffer("seen", torch.zeros(2))  # the moving least and greatest
        self.growth = nn.Parameter(torch.zeros(()), requires_grad=learned)

    @property
    def codes(self) -> int:
        """The greatest code."""
        return 2**self.bits - 1

    @torch.no_grad()
    def measured(self, low: Tensor, high: Tensor) -> None:
        """Take the range [low, high], which holds zero."""
        step = (high - low) / self.codes
        self.start.copy_(step)
        self.zero.copy_((-low / step).round().clamp(0, self.codes))
        self.seen.copy_(torch.stack([low, high]))

    def step(self) -> Tensor:
        """The step in use."""
        return self.start * self.growth.exp()

    def forward(self, x: Tensor) -> Tensor:
        if self.learned:
            grown = _slowed(self.growth, 1 / math.sqrt(x[:1].numel() * self.codes)) if self.training else self.growth
            step = self.start * grown.exp()
        else:
            if self.training:
                self._follow(x)
            step = self.step()
        return fake_quantize(x, step, -self.zero, self.codes - self.zero)

    @torch.no_grad()
    def _follow(self, x: Tensor) -> None:
        now = torch.stack([x.min().clamp(max=0), x.max().clamp(min=0)]).to(self.seen.dtype)
        low, high = self.seen * self.momentum + now * (1 - self.momentum)
        step = ((high - low) / self.codes).clamp_min(torch.finfo(self.seen.dtype).tiny)
        self.seen.copy_(torch.stack([low, high]))
        self.start.copy_(step)
        self.zero.copy_((-low / step).round().clamp(0, self.codes))

    def extra_repr(self) -> str:
        return f"bits={self.bits}, learned={self.learned}"


class Fake(nn.Module):
    """What a layer with rounded weights has beside its own: `weight_start [C, 1, ...]` and `weight_growth`, whose step is start exp(growth), and its grids."""

    weight: Tensor
    bias: Tensor | None
    weight_start: Tensor
    weight_growth: nn.Parameter
    input: Grid | None
    output: Grid | None
    bits: int
    told: Mapping[str, Any]
    exact: bool
    kinds: ClassVar[dict[type[nn.Module], type["Fake"]]] = {}

    def weight_step(self) -> Tensor:
        """The steps of the weights, `[C, 1, ...]`, or of one element."""
        return self.weight_start * self.weight_growth.exp()

    def operands(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the layer's input, weight and bias as it computes with them."""
        if self.exact:
            return x, self.weight, self.bias
        high, grown = weight_high(self.bits), self.weight_growth
        if self.training:
            grown = _slowed(grown, 1 / math.sqrt(self.weight.numel() / grown.numel() * high))
        step = self.weight_start * grown.exp()
        weight = fake_quantize(self.weight, step, -high, high)
        return x if self.input is None else self.input(x), weight, self.rounded_bias()

    def rounded_bias(self) -> Tensor | None:
        """Return the bias on the grid of the sums it is added to; as it is, where inputs are not rounded."""
        if self.bias is None or self.input is None:
            return self.bias
        return fake_quantize(self.bias, bias_step(self.weight_step(), self.input.step()).detach(), -_BIAS_CODES, _BIAS_CODES)

    def answer(self, y: Tensor) -> Tensor:
        """Return what the layer gives, rounded where it has a grid for that."""
        return y if self.output is None or self.exact else self.output(y)


class FakeLinear(Fake, nn.Linear):
    """A linear layer with rounded weights and inputs."""

    def forward(self, input: Tensor) -> Tensor:
        return self.answer(F.linear(*self.operands(input)))


class FakeConv1d(Fake, nn.Conv1d):
    """A convolution with rounded weights and inputs."""

    def forward(self, input: Tensor) -> Tensor:
        return self.answer(self._conv_forward(*self.operands(input)))


class FakeConv2d(Fake, nn.Conv2d):
    """A convolution with rounded weights and inputs."""

    def forward(self, input: Tensor) -> Tensor:
        return self.answer(self._conv_forward(*self.operands(input)))


Fake.kinds.update({nn.Linear: FakeLinear, nn.Conv1d: FakeConv1d, nn.Conv2d: FakeConv2d})


def make_fake(layer: nn.Module, told: Mapping[str, Any]) -> Fake:
    """Make a float layer a fake-quantized one, in place, so that its path, its hooks and whoever shares it stay; its ranges are still to be measured.

    `told`: bits of `weights`, `activations` and `output` (None: float), `per_channel`, `learned`; JSON-able.
    """
    kind = Fake.kinds[type(layer)]
    weight = layer.get_parameter("weight")
    layer.__class__ = kind
    assert isinstance(layer, Fake)
    layer.bits, layer.told, layer.exact = told["weights"], dict(told), False
    shape = [weight.shape[0] if told["per_channel"] else 1, *[1] * (weight.ndim - 1)]
    layer.register_buffer("weight_start", torch.ones(shape, dtype=weight.dtype, device=weight.device))
    layer.weight_growth = nn.Parameter(torch.zeros(shape, dtype=weight.dtype, device=weight.device))
    for name, bits in (("input", told["activations"]), ("output", told["output"])):
        grid = None if bits is None else Grid(bits, learned=told["learned"]).to(weight.device).train(layer.training)
        layer.register_module(name, grid)
    return layer


def fake_layers(model: nn.Module) -> dict[str, Fake]:
    """Return the fake-quantized layers of a model, by path."""
    return {path: module for path, module in model.named_modules() if isinstance(module, Fake)}


@contextmanager
def exactly(model: nn.Module) -> Iterator[None]:
    """Let the layers of a prepared model compute in float, as before they were prepared."""
    layers: list[Fake] = list(fake_layers(model).values())
    before: list[bool] = [layer.exact for layer in layers]
    for layer in layers:
        layer.exact = True
    try:
        yield
    finally:
        for layer, exact in zip(layers, before, strict=True):
            layer.exact = exact
