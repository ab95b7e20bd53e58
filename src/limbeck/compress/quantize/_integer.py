"""Layers whose weights are stored as integers.

A weight is code times step: codes of 5 to 8 bits one to a byte, of 3 or 4 two, of 2 four; steps for each channel, or for each group of a channel's weights.
Where the inputs have a grid too, the layer is written to ONNX with QuantizeLinear and DequantizeLinear around it and a bias of 32 bits, which a runtime
makes one integer kernel of; else with weights that the runtime makes floats of when it opens the file.

Shapes: C output channels, K weights of each, G groups of them.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ._fake import Grid, bias_step, fake_quantize

__all__ = ["IntegerConv", "IntegerLinear", "IntegerWeights", "make_blank", "make_integer", "pack", "unpack"]

_FOLDED = 8192
"""Up to so many numbers, torch.onnx computes with constants at export and would write floats; a DequantizeLinear it leaves alone."""


def width(bits: int) -> int:
    """Return the bits that a code takes: 2, 4 or 8."""
    return 2 if bits <= 2 else 4 if bits <= 4 else 8


def pack(codes: Tensor, bits: int) -> Tensor:
    """Return whole numbers `[n]` of `bits` bits with a sign as bytes, the first in the lowest bits, each raised by half its range; int8 where one fills a byte.

    >>> pack(torch.tensor([-7, 7, 1]), 4).tolist()
    [241, 9]
    """
    wide = width(bits)
    if wide == 8:
        return codes.to(torch.int8)
    per = 8 // wide
    raised = F.pad((codes.to(torch.int16) + 2 ** (wide - 1)), (0, -len(codes) % per)).view(-1, per)
    return (raised << torch.arange(0, 8, wide, device=codes.device, dtype=torch.int16)).sum(1).to(torch.uint8)


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """Return the `count` whole numbers of `pack`, int8 `[count]`.

    >>> unpack(torch.tensor([241, 9], dtype=torch.uint8), 4, 3).tolist()
    [-7, 7, 1]
    """
    wide = width(bits)
    if wide == 8:
        return packed
    parts = [(packed >> shift & (2**wide - 1)) for shift in range(0, 8, wide)]
    return torch.stack(parts, 1).flatten()[:count].to(torch.int8) - 2 ** (wide - 1)


class IntegerWeights(nn.Module):
    """What layers of stored integers share: `codes`, `steps [C, G]`, a bias, and, where they have grids, the input's and the output's.

    Buffers: `codes` int8 `[C K]`, or packed in uint8; `steps` float `[C, G]`; `bias` float `[C]`, or `bias_codes` int32 `[C]` of step
    `steps[:, 0] * input_step`; `input_step`, `input_zero` and `output_step`, `output_zero`, a number each, the zeros uint8.
    """

    codes: Tensor
    steps: Tensor
    bias: Tensor | None
    bias_codes: Tensor | None
    input_step: Tensor
    input_zero: Tensor
    output_step: Tensor
    output_zero: Tensor
    told: Mapping[str, Any]
    shape: tuple[int, ...]

    @property
    def weights(self) -> int:
        """How many weights the codes stand for."""
        return torch.Size(self.shape).numel()

    def weight(self) -> Tensor:
        """The weights as floats, of their shape."""
        codes = unpack(self.codes, self.told["bits"], self.weights).to(self.steps.dtype)
        return (codes.view(self.shape[0], self.steps.shape[1], -1) * self.steps[:, :, None]).view(self.shape)

    def operands(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the layer's input, weight and bias as it computes with them."""
        if self.told["input"] is None:
            return x, _written_weight(self) if torch.onnx.is_in_onnx_export() else self.weight(), self.bias
        x = _on_grid(x, self.input_step, self.input_zero, self.told["input"])
        if torch.onnx.is_in_onnx_export():
            return x, *_written_integers(self)
        step = bias_step(self.steps[:, :1], self.input_step)
        return x, self.weight(), None if self.bias_codes is None else self.bias_codes.to(step.dtype) * step

    def answer(self, y: Tensor) -> Tensor:
        """Return what the layer gives, rounded where it has a grid for that."""
        return y if self.told["output"] is None else _on_grid(y, self.output_step, self.output_zero, self.told["output"])

    def extra_repr(self) -> str:
        return f"{list(self.shape)}, {', '.join(f'{key}={value}' for key, value in self.told.items())}"


class IntegerLinear(IntegerWeights):
    """A linear layer of stored integers."""

    def forward(self, input: Tensor) -> Tensor:
        return self.answer(F.linear(*self.operands(input)))


class IntegerConv(IntegerWeights):
    """A convolution over one or two axes, of stored integers."""

    stride: tuple[int, ...]
    padding: tuple[int, ...] | str
    dilation: tuple[int, ...]
    groups: int
    padding_mode: str
    _reversed_padding_repeated_twice: list[int]

    def forward(self, input: Tensor) -> Tensor:
        x, weight, bias = self.operands(input)
        padding: Any = self.padding
        if self.padding_mode != "zeros":
            x, padding = F.pad(x, self._reversed_padding_repeated_twice, mode=self.padding_mode), 0
        convolve: Any = F.conv1d if len(self.shape) == 3 else F.conv2d
        return self.answer(convolve(x, weight, bias, self.stride, padding, self.dilation, self.groups))


def _on_grid(x: Tensor, step: Tensor, zero: Tensor, bits: int) -> Tensor:
    codes = 2**bits - 1
    if not torch.onnx.is_in_onnx_export():
        offset = zero.to(x.dtype)
        return fake_quantize(x, step, -offset, codes - offset)
    quantized = _node("QuantizeLinear", (x, step, zero), torch.uint8, x.shape)
    if bits < 8:
        quantized = _node("Clip", (quantized, None, torch.tensor(codes, dtype=torch.uint8)), torch.uint8, x.shape)
    return _node("DequantizeLinear", (quantized, step, zero), x.dtype, x.shape)


def _node(name: str, inputs: Any, dtype: torch.dtype, shape: Any, **attributes: Any) -> Tensor:
    """One node of an ONNX graph, while one is written."""
    return torch.onnx.ops.symbolic(name, inputs, attributes, dtype=dtype, shape=shape)


def _written_codes(layer: IntegerWeights) -> Tensor:
    """The codes, unpacked by the graph itself: a runtime does it once, when it opens the file."""
    bits, count = layer.told["bits"], layer.weights
    wide, packed = width(bits), layer.codes
    if wide == 8:
        return packed
    column = packed.view(-1, 1)
    parts: list[Tensor] = []
    for shift in range(0, 8, wide):
        moved = _node("BitShift", (column, torch.tensor(shift, dtype=torch.uint8)), torch.uint8, column.shape, direction="RIGHT")
        parts.append(_node("BitwiseAnd", (moved, torch.tensor(2**wide - 1, dtype=torch.uint8)), torch.uint8, column.shape))
    whole = torch.cat(parts, 1).flatten()[:count].to(torch.int8)
    return _node("Sub", (whole, torch.tensor(2 ** (wide - 1), dtype=torch.int8)), torch.int8, whole.shape)


def _written_integers(layer: IntegerWeights) -> tuple[Tensor, Tensor | None]:
    """The weight and bias as DequantizeLinear nodes, with the zero points that onnxruntime wants to see before it takes an integer kernel."""
    step = layer.steps[:, 0]
    zeros = torch.zeros_like(step, dtype=torch.int8)
    weight = _node("DequantizeLinear", (_written_codes(layer).view(layer.shape), step, zeros), step.dtype, layer.shape, axis=0)
    if layer.bias_codes is None:
        return weight, None
    return weight, _node("DequantizeLinear", (layer.bias_codes, bias_step(step, layer.input_step)), step.dtype, step.shape, axis=0)


def _written_weight(layer: IntegerWeights) -> Tensor:
    """The weight that a runtime makes floats of when it opens the file."""
    groups = layer.steps.numel()
    codes = _written_codes(layer).view(groups, -1)
    if layer.codes.numel() > _FOLDED:
        return (codes.to(layer.steps.dtype) * layer.steps.view(-1, 1)).view(layer.shape)
    floats = _node("DequantizeLinear", (codes, layer.steps.flatten()), layer.steps.dtype, codes.shape, axis=0)
    return floats.view(layer.shape)


def make_integer(
    layer: nn.Module, codes: Tensor, steps: Tensor, bits: int, bias: Tensor | None, *, input: Grid | None = None, output: Grid | None = None
) -> IntegerWeights:
    """Make a float or fake-quantized layer one of stored integers, in place: `codes` of its weight's shape, `steps [C, G]`."""
    told = {"bits": bits, "groups": steps.shape[1], "bias": bias is not None}
    told |= {name: None if grid is None else grid.bits for name, grid in (("input", input), ("output", output))}
    made = make_blank(layer, told)
    made.codes.copy_(pack(codes.flatten(), bits))
    made.steps.copy_(steps)
    for name, grid in (("input", input), ("output", output)):
        if grid is not None:
            made.get_buffer(f"{name}_step").copy_(grid.step())
            made.get_buffer(f"{name}_zero").copy_(grid.zero)
    if made.bias_codes is not None and bias is not None:
        made.bias_codes.copy_((bias / bias_step(steps[:, :1], made.input_step)).round().clamp(-(2**31) + 128, 2**31 - 128))
    elif made.bias is not None and bias is not None:
        made.bias.copy_(bias)
    return made


def make_blank(layer: nn.Module, told: Mapping[str, Any]) -> IntegerWeights:
    """Make a layer one of stored integers, all zero: in place, so that its path, its hooks and whoever shares it stay."""
    weight = layer.get_parameter("weight")
    where: Any = {"device": weight.device}
    kind: type[nn.Module] = IntegerLinear if isinstance(layer, nn.Linear) else IntegerConv
    object.__setattr__(layer, "__class__", kind)
    assert isinstance(layer, IntegerWeights)
    for kept in (layer._parameters, layer._buffers, layer._modules):
        kept.clear()
    layer.told, layer.shape = dict(told), tuple(weight.shape)
    per, integer = 8 // width(told["bits"]), told["input"] is not None
    layer.register_buffer("codes", torch.zeros(-(-weight.numel() // per), dtype=torch.int8 if per == 1 else torch.uint8, **where))
    layer.register_buffer("steps", torch.ones(weight.shape[0], told["groups"], dtype=weight.dtype, **where))
    layer.register_buffer("bias", torch.zeros(weight.shape[0], dtype=weight.dtype, **where) if told["bias"] and not integer else None)
    layer.register_buffer("bias_codes", torch.zeros(weight.shape[0], dtype=torch.int32, **where) if told["bias"] and integer else None)
    for name in ("input", "output"):
        if told[name] is not None:
            layer.register_buffer(f"{name}_step", torch.ones((), dtype=weight.dtype, **where))
            layer.register_buffer(f"{name}_zero", torch.zeros((), dtype=torch.uint8, **where))
    return layer
