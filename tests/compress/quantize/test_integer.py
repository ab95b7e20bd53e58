"""Stored integers: packing there and back, and the kernels that onnxruntime makes of them."""

import time
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from limbeck.bridges.onnx_runtime import run, session
from limbeck.compress.quantize._integer import make_integer, pack, unpack
from limbeck.compress.quantize.convert import Convert
from limbeck.compress.quantize.prepare import Prepare
from limbeck.export.onnx import Onnx

from ._quantized import bench


@pytest.mark.parametrize("bits", range(2, 9))
def test_codes_survive_packing(bits: int) -> None:
    high = 2 ** (bits - 1) - 1
    for count in (1, 2, 3, 4, 5, 1000):
        codes = torch.randint(-high, high + 1, (count,))
        packed = pack(codes, bits)
        assert unpack(packed, bits, count).tolist() == codes.tolist()
        assert packed.numel() == -(-count // {2: 4, 3: 2, 4: 2}.get(bits, 1)) and packed.element_size() == 1


def test_grouped_weights_are_codes_times_their_groups_step() -> None:
    layer, codes, steps = nn.Linear(6, 2), torch.randint(-7, 8, (2, 6)), torch.rand(2, 3)
    wanted = [[codes[c, k].item() * steps[c, k // 2].item() for k in range(6)] for c in range(2)]
    made = make_integer(layer, codes, steps, 4, None)
    torch.testing.assert_close(made.weight(), torch.tensor(wanted))


def operators(path: Path, to: Path) -> list[str]:
    """What onnxruntime makes of a file."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(to), 4
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(to).graph.node]


class Net(nn.Module):
    """A sum, a pooling, and layers big enough that packing pays."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(2, 48, 3, padding=1), nn.Conv2d(48, 48, 3, padding=1), nn.Conv2d(48, 48, 3, padding=1)
        self.act, self.head = nn.ReLU(), nn.Linear(48, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act(self.a(x))
        x = self.act(self.c(self.act(self.b(x))) + x)
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("weights", [8, 4])
def test_every_layer_is_an_integer_kernel_of_onnxruntime(weights: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    prepared = Prepare(weights=weights, activations=weights).operate(Net().eval(), bench()).model
    made = Convert().operate(prepared, bench()).model
    x = torch.randn(64, 2, 8, 8)
    Onnx().export(made, x, tmp_path / "model.onnx")
    found = operators(tmp_path / "model.onnx", tmp_path / "optimized.onnx")
    assert found.count("QLinearConv") == 3 and found.count("QGemm") == 1 and not {"Conv", "FusedConv", "Gemm"} & set(found)
    with torch.no_grad():
        wanted = made(x)
    torch.testing.assert_close(run(tmp_path / "model.onnx", x), wanted, rtol=0, atol=0.02 * wanted.abs().max().item())
    floats = sum(parameter.numel() for parameter in Net().parameters()) * 4
    assert (tmp_path / "model.onnx").stat().st_size < floats / {8: 3, 4: 5}[weights]
    assert {node.name for node in onnx.load(tmp_path / "model.onnx").graph.node} >= {"b/Conv", "head/Gemm", "a/QuantizeLinear"}


def test_weights_alone_are_small_in_the_file_and_exact(tmp_path: Path) -> None:
    torch.manual_seed(0)
    made = Convert(weights=4, group=16).operate(Net().eval(), bench()).model
    x = torch.randn(8, 2, 8, 8)
    Onnx().export(made, x, tmp_path / "model.onnx")
    with torch.no_grad():
        torch.testing.assert_close(run(tmp_path / "model.onnx", x), made(x), rtol=1e-4, atol=1e-5)
    assert (tmp_path / "model.onnx").stat().st_size < sum(parameter.numel() for parameter in Net().parameters()) * 4 / 4


def test_integer_kernels_are_faster_on_a_big_convolution(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = (
        nn.Sequential(nn.Conv2d(2, 128, 3, padding=1), nn.ReLU(), nn.Conv2d(128, 128, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        {},
    )
    shape = torch.randn(2, 2, 28, 28)
    for name, one in (
        ("float", model.eval()),
        ("int8", Convert().operate(Prepare().operate(model.eval(), bench(torch.randn(32, 2, 28, 28))).model, bench()).model),
    ):
        Onnx().export(one, shape, tmp_path / f"{name}.onnx")
        x[name] = session(tmp_path / f"{name}.onnx", threads=1)

    def least(name: str) -> float:
        taken = []
        for _ in range(8):
            start = time.perf_counter()
            run(x[name], shape[:1])
            taken.append(time.perf_counter() - start)
        return min(taken)

    assert min(least("int8") for _ in range(3)) < min(least("float") for _ in range(3))
