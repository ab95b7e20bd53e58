"""`share.lbk`: a module's whole state into a file and back, every byte counted."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from limbeck.compress import Packer
from limbeck.compress.share.lbk import Lbk
from limbeck.core.errors import ArtifactError, MismatchError, RecipeError
from limbeck.core.lookup import build


class _State(nn.Module):
    """A module of the tensors that it is given."""

    def __init__(self, **tensors: Tensor) -> None:
        super().__init__()
        for name, value in tensors.items():
            self.register_buffer(name, value)


def _bits(value: Tensor) -> list[int]:
    return value.contiguous().reshape(-1).view(torch.uint8).tolist()


def _same(state: dict[str, Tensor], found: dict[str, Tensor]) -> None:
    assert list(found) == sorted(state)
    for name, value in state.items():
        assert (found[name].dtype, found[name].shape) == (value.dtype, value.shape), name
        assert _bits(found[name]) == _bits(value), name


def _net() -> nn.Module:
    """A net that was trained on a little, pruned and shared: few numbers, many zeros."""
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
    net(torch.randn(5, 1, 8, 8))
    with torch.no_grad():
        for weight in (net[0].weight, net[4].weight):
            weight.copy_(torch.where(weight.abs() < 0.08, 0.0, (weight * 10).round() / 10))
    return net


def test_a_net_comes_back_to_the_bit_and_every_byte_is_counted(tmp_path: Path) -> None:
    net = _net()
    told = build("compress", "share.lbk", {}).pack(net, tmp_path / "model.lbk")
    _same(net.state_dict(), Lbk.unpack(tmp_path / "model.lbk"))
    assert told["file_bytes"] == (tmp_path / "model.lbk").stat().st_size == sum(told["bytes"].values())
    assert told["source_bytes"] == sum(value.numel() * value.element_size() for value in net.state_dict().values())
    assert told["ratio"] == told["source_bytes"] / told["file_bytes"]
    assert [row["name"] for row in told["layers"]] == sorted(net.state_dict())
    assert sum(row["bytes"] for row in told["layers"]) + told["bytes"]["header"] + told["bytes"]["checksums"] == told["file_bytes"]
    assert {"codebooks", "indices", "gaps", "tables", "biases", "header", "checksums"} <= set(told["bytes"])
    assert told["largest_rounding"] == 0.0
    json.dumps(told)


def test_the_same_weights_make_the_same_file(tmp_path: Path) -> None:
    net = _net()
    for name in ("a", "b"):
        Lbk().pack(net, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16, torch.bfloat16, torch.float32, torch.float64]
)
def test_every_type_and_rank_comes_back(dtype: torch.dtype, tmp_path: Path) -> None:
    values = torch.tensor([0.0, 1.0, 1.0, 3.0, 0.0, 100.0]) if dtype != torch.bool else torch.tensor([0, 1, 1, 0, 0, 1])
    module = _State(
        none=torch.zeros(0, 4, dtype=dtype), one=torch.ones((), dtype=dtype), row=values.to(dtype), deep=values.to(dtype).repeat(4).view(2, 3, 4).mT,
        many=torch.arange(600).remainder(2 if dtype == torch.bool else 90).to(dtype).view(20, 30),
    )  # fmt: skip
    Lbk().pack(module, tmp_path / "model.lbk")
    _same(module.state_dict(), Lbk.unpack(tmp_path / "model.lbk"))


def test_signed_zeros_and_what_is_no_number_come_back(tmp_path: Path) -> None:
    odd = torch.tensor([0.0, -0.0, float("nan"), float("inf"), -float("inf"), 1e-45]).repeat(50).view(20, 15)
    module = _State(odd=odd, sparse=torch.where(torch.rand(20, 15) < 0.1, -0.0, 0.0))
    Lbk().pack(module, tmp_path / "model.lbk")
    _same(module.state_dict(), Lbk.unpack(tmp_path / "model.lbk"))


def test_float16_rounds_what_it_is_asked_to_and_says_by_how_much(tmp_path: Path) -> None:
    book = torch.tensor([0.1, -0.2, 0.3])
    module = _State(shared=book[torch.randint(3, (40, 50))], bias=torch.randn(7), raw=torch.randn(4, 5), count=torch.tensor(7))
    whole = Lbk().pack(module, tmp_path / "whole")
    told = Lbk(codebook="float16", biases="float16").pack(module, tmp_path / "half")
    state, found = module.state_dict(), Lbk.unpack(tmp_path / "half")
    _same(state | {name: state[name].half().float() for name in ("shared", "bias")}, found)
    off = max(float((found[name] - state[name]).abs().max()) for name in ("shared", "bias"))
    assert told["largest_rounding"] == pytest.approx(off)
    assert whole["file_bytes"] - told["file_bytes"] == 2 * 3 + 2 * 7
    _same(state | {"shared": state["shared"].half().float()}, _packed(Lbk(codebook="float16"), module, tmp_path))


def _packed(packer: Packer, module: nn.Module, folder: Path) -> dict[str, Tensor]:
    packer.pack(module, folder / "again.lbk")
    return packer.unpack(folder / "again.lbk")


def test_a_number_beyond_float16_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MismatchError, match=r"bias holds a number beyond float16 \(1e\+06\): take biases: float32"):
        Lbk(biases="float16").pack(_State(bias=torch.tensor([1e6, 1.0])), tmp_path / "model.lbk")
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_packed_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="codebook is 'int8'"):
        Lbk(codebook="int8")  # pyright: ignore[reportArgumentType]
    with pytest.raises(MismatchError, match=r"z is complex64, which an \.lbk file has not"):
        Lbk().pack(_State(z=torch.zeros(2, dtype=torch.complex64)), tmp_path / "model.lbk")

    class Extra(nn.Linear):
        def get_extra_state(self) -> dict[str, int]:
            return {"seen": 3}

    with pytest.raises(MismatchError, match="the state '_extra_state' is a dict"):
        Lbk().pack(Extra(2, 2), tmp_path / "model.lbk")


def test_a_damaged_or_missing_file_is_an_artifact_error(tmp_path: Path) -> None:
    path = tmp_path / "model.lbk"
    with pytest.raises(ArtifactError, match=r"model\.lbk cannot be read"):
        Lbk.unpack(path)
    Lbk().pack(_net(), path)
    data = bytearray(path.read_bytes())
    data[-40] ^= 1
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match=r"model.lbk cannot be read \(the bytes of '4.weight' do not match their checksum"):
        Lbk.unpack(path)


def test_what_is_read_can_be_written_to(tmp_path: Path) -> None:
    Lbk().pack(_net(), tmp_path / "model.lbk")
    for value in Lbk.unpack(tmp_path / "model.lbk").values():
        value.add_(1)  # warns, or fails, over memory that is not its own
