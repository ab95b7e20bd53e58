"""CP of kernels of known rank, and convolutions of every stride, padding and dilation."""

import json
from collections.abc import Callable

import pytest
import torch
from torch import nn

from limbeck.compress import Bench
from limbeck.compress.factorize import VBMF, Budget, Energy, Fixed
from limbeck.compress.factorize._als import composed, cp
from limbeck.compress.factorize.cp import CP
from limbeck.core.errors import RecipeError
from limbeck.measure.size import macs, parameters

Benches = Callable[..., Bench]
X = torch.randn(6, 8, 11, 9, generator=torch.Generator().manual_seed(1))


def planted(sides: tuple[int, ...], rank: int, seed: int = 0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return composed([torch.randn(side, rank, generator=draw, dtype=torch.float64) for side in sides])


def test_composed_is_the_sum_of_outer_products() -> None:
    a, b, c = (torch.randn(side, 2) for side in (3, 4, 5))
    naive = sum(torch.einsum("i,j,k->ijk", a[:, r], b[:, r], c[:, r]) for r in range(2))
    assert isinstance(naive, torch.Tensor)
    torch.testing.assert_close(composed([a, b, c]), naive)


def test_a_kernel_of_low_rank_is_found() -> None:
    kernel = planted((7, 6, 3, 3), 3)
    found = cp(kernel, 3)
    torch.testing.assert_close(composed(found.factors), kernel, rtol=1e-3, atol=1e-3)
    assert found.kept > 0.99999
    lengths = torch.stack([factor.norm(dim=0) for factor in found.factors])
    torch.testing.assert_close(lengths, lengths[:1].expand(4, -1))
    assert torch.equal(cp(kernel, 3).factors[0], found.factors[0])


def test_of_a_matrix_it_is_as_good_as_eckart_and_young() -> None:
    matrix = torch.randn(8, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(matrix).square()
    assert cp(matrix, 2).kept == pytest.approx(float(values[:2].sum() / values.sum()), abs=1e-4)


def test_terms_that_cancel_are_told(bench_of: Benches) -> None:
    """a a b + a b a + b a a has rank 3 and is the limit of tensors of rank 2, whose terms grow without bound (de Silva and Lim 2008)."""
    a, b = torch.eye(2, dtype=torch.float64)
    tensor = sum(torch.einsum("i,j,k->ijk", *each) for each in ((a, a, b), (a, b, a), (b, a, a)))
    assert isinstance(tensor, torch.Tensor)
    assert cp(tensor, 2).swelling > 5 and cp(tensor, 3).kept > 0.9999
    conv = nn.Conv2d(2, 2, (2, 3))
    with torch.no_grad():
        conv.weight.zero_()[..., 0] = tensor.float()
    model = nn.Sequential(conv, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 4)).eval()
    done = CP(rank=Fixed(rank=2)).operate(model, bench_of(X[:, :2]))
    assert any(line.startswith("0: at rank 2 its terms have") for line in done.said)


@pytest.mark.parametrize(
    "how",
    [
        {"padding": 1}, {"stride": 2}, {"stride": (1, 2), "padding": (0, 1)}, {"dilation": 2, "padding": 2}, {"padding": "same"}, {"padding": "valid"},
        {"padding": 1, "padding_mode": "reflect"}, {"padding": (1, 0), "padding_mode": "circular"}, {"bias": False},
    ],
    ids=str,
)  # fmt: skip
def test_a_convolution_gives_what_it_gave(bench_of: Benches, how: dict) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 12, 3, **how)
    with torch.no_grad():
        conv.weight.copy_(planted((12, 8, 3, 3), 2))
    model = nn.Sequential(conv, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 4)).eval()
    whole = conv(X).detach()
    done = CP(rank=Fixed(rank=2)).operate(model, bench_of(X))
    made = done.model.get_submodule("0")
    assert [name for name, _ in made.named_children()] == ["reduce", "vertical", "horizontal", "expand"]
    torch.testing.assert_close(made(X), whole, rtol=1e-2, atol=1e-3 * float(whole.abs().max()))
    (row,) = done.layers
    (high, wide) = whole.shape[2:]
    assert row["weights_after"] == 2 * (8 + 3 + 3 + 12)
    assert row["macs_after"] == 2 * (11 * 9 * 8 + high * 9 * 3 + high * wide * (3 + 12))
    assert macs(done.model, X[:1]) == row["macs_after"] + 12 * 4


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(8, 10, 3, padding=1), nn.ReLU(), nn.Conv2d(10, 12, 3, stride=2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 4)
    ).eval()


def test_a_budget_is_kept_and_it_is_rebuilt_from_its_record(bench_of: Benches) -> None:
    done = CP(rank=Budget(share=0.5), starts=1).operate(net(), bench_of(X))
    assert 0.35 * parameters(net()) < parameters(done.model) <= 0.5 * parameters(net())
    again = CP.rebuild(net(5), json.loads(json.dumps(dict(done.record)))).eval()
    again.load_state_dict(done.model.state_dict())
    assert torch.equal(again(X), done.model(X))


def test_energy_is_that_of_the_kernel(bench_of: Benches) -> None:
    model = net()
    kernel = model[0].weight.detach().clone()
    done = CP(rank=Energy(share=0.5), layers=["0"], starts=2).operate(model, bench_of(X))
    reduce, vertical, horizontal, expand = (layer.weight.detach() for layer in done.model.get_submodule("0"))
    made = torch.einsum("tr,ri,rj,rs->tsij", expand[:, :, 0, 0], vertical[:, 0, :, 0], horizontal[:, 0, 0], reduce[:, :, 0, 0])
    kept = 1 - float((made - kernel).square().sum() / kernel.square().sum())
    assert kept >= 0.5 and done.layers[0]["energy_kept"] == pytest.approx(kept, abs=1e-5)


def test_what_cannot_be_meant(bench_of: Benches) -> None:
    with pytest.raises(RecipeError, match="vbmf is for matrices"):
        CP(rank=VBMF()).operate(net(), bench_of(X))
    with pytest.raises(RecipeError, match="starts is 0"):
        CP(starts=0)
    with pytest.raises(RecipeError, match=r"the closest is 0\.\d+"):
        CP(rank=Budget(share=0.01), starts=1).operate(net(), bench_of(X))
