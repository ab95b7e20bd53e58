import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from limbeck.core.errors import ArtifactError, MismatchError
from limbeck.measure.size import file_bytes, macs, parameters


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 4, bias=False)
        self.b = nn.Linear(4, 4, bias=False)
        self.b.weight = self.a.weight
        self.norm = nn.BatchNorm1d(4)
        self.norm.weight.requires_grad_(False)


def test_parameters_count_shared_once_and_frozen_too():
    assert parameters(Shared()) == 16 + 4 + 4


class Attention(nn.Module):
    def forward(self, x):  # [N, heads, tokens, width]
        return nn.functional.scaled_dot_product_attention(x, x, x)


class Vector(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("v", torch.ones(6))

    def forward(self, x):  # [N, 6]
        return x @ self.v


@pytest.mark.parametrize(
    ("model", "shape", "expected"),
    [
        (nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)), (64,), 64 * 32 + 32 * 10),
        (nn.Conv2d(3, 8, 3, padding=1), (3, 6, 5), 6 * 5 * 8 * 3 * 9),
        (nn.Conv2d(8, 8, 3, groups=8, stride=2, padding=1), (8, 6, 6), 3 * 3 * 8 * 9),
        (nn.ConvTranspose2d(3, 8, 3), (3, 5, 5), 5 * 5 * 3 * 8 * 9),
        (nn.LSTM(4, 8, batch_first=True), (5, 4), 5 * 4 * 8 * (4 + 8)),
        (nn.LSTM(4, 8, num_layers=2, bidirectional=True, batch_first=True), (5, 4), 5 * 2 * 4 * 8 * ((4 + 8) + (16 + 8))),
        (nn.GRU(4, 8, batch_first=True), (5, 4), 5 * 3 * 8 * (4 + 8)),
        (Attention(), (2, 5, 4), 2 * 2 * 5 * 5 * 4),
        (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), (5, 8), 5 * 8 * 24 + 5 * 8 * 8 + 2 * 5 * 8 * 16 + 2 * 2 * 5 * 5 * 4),
        (Vector(), (6,), 6),
    ],
)
def test_macs_are_what_the_shapes_say_whatever_the_batch(model, shape, expected):
    for batch in (1, 3):
        assert macs(model, torch.zeros(batch, *shape)) == expected


def test_macs_leave_the_model_as_it_was():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout())
    model.train()
    model[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fast = torch.backends.mha.get_fastpath_enabled()
    macs(model, torch.randn(1, 4))  # batch norm in training mode would refuse a batch of one
    assert [m.training for m in model.modules()] == [True, True, False, True]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    with pytest.raises(RuntimeError):
        macs(model, torch.randn(1, 5))
    assert [m.training for m in model.modules()] == [True, True, False, True]
    assert torch.backends.mha.get_fastpath_enabled() == fast


def test_macs_of_a_model_that_takes_more_than_the_batch():
    class Mixed(nn.Module):
        def forward(self, x, weight):
            return x @ weight

    asked = Mixed()
    assert macs(asked, torch.zeros(3, 4), ask=lambda model: model(torch.zeros(3, 4), torch.zeros(4, 5))) == 4 * 5


@pytest.mark.parametrize("example", [torch.zeros(0, 4), torch.tensor(1.0)])
def test_macs_need_an_example(example):
    with pytest.raises(MismatchError, match="at least one example"):
        macs(nn.Linear(4, 4), example)


def test_file_bytes_count_the_weights_kept_beside(tmp_path):
    weight = numpy_helper.from_array(np.zeros((64, 64), np.float32), "w")
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [value("x", TensorProto.FLOAT, ["N", 64])],
        [value("y", TensorProto.FLOAT, ["N", 64])],
        [weight],
    )
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph), path, save_as_external_data=True, location="m.data", size_threshold=0)
    assert file_bytes(path) == path.stat().st_size + (tmp_path / "m.data").stat().st_size
    assert file_bytes(path) > 64 * 64 * 4
    (tmp_path / "m.data").unlink()
    with pytest.raises(ArtifactError, match=r"m\.data, which is missing"):
        file_bytes(path)


def test_file_bytes_of_a_missing_or_damaged_file_is_one_clear_line(tmp_path):
    with pytest.raises(ArtifactError, match="missing"):
        file_bytes(tmp_path / "no.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"not a protobuf at all")
    with pytest.raises(ArtifactError, match="damaged"):
        file_bytes(tmp_path / "bad.onnx")
    (tmp_path / "weights.bin").write_bytes(b"12345")
    assert file_bytes(tmp_path / "weights.bin") == 5
