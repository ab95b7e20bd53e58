"""Tucker-2 of kernels of known rank, and convolutions of every stride, padding and dilation."""

import json
from collections.abc import Callable

import pytest
import torch
from torch import nn

from limbeck.compress import Bench
from limbeck.compress.factorize import VBMF, Budget, Energy, Fixed
from limbeck.compress.factorize.tucker import Tucker, tucker2
from limbeck.core.errors import MismatchError, RecipeError
from limbeck.measure.size import macs, parameters

Benches = Callable[..., Bench]
X = torch.randn(6, 8, 11, 9, generator=torch.Generator().manual_seed(1))


def planted(out: int, into: int, size: tuple[int, int], ranks: tuple[int, int], seed: int = 0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    return torch.einsum("tq,qphw,sp->tshw", random(out, ranks[0]), random(ranks[0], ranks[1], *size), random(into, ranks[1]))


def test_a_kernel_of_low_rank_is_exact() -> None:
    kernel = planted(7, 6, (3, 2), (3, 2))
    out, core, into = tucker2(kernel, (3, 2))
    torch.testing.assert_close(torch.einsum("tq,qphw,sp->tshw", out, core, into), kernel, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(out.T @ out, torch.eye(3, dtype=torch.float64))


def test_the_error_is_the_energy_that_the_core_lacks_and_hooi_betters_hosvd() -> None:
    kernel = planted(9, 8, (3, 3), (9, 8))
    out, core, into = tucker2(kernel, (3, 4))
    error = (kernel - torch.einsum("tq,qphw,sp->tshw", out, core, into)).square().sum()
    torch.testing.assert_close(error, kernel.square().sum() - core.square().sum())
    u = torch.linalg.svd(kernel.flatten(1))[0][:, :3]
    v = torch.linalg.svd(kernel.movedim(1, 0).flatten(1))[0][:, :4]
    assert core.square().sum() > torch.einsum("tshw,tq,sp->qphw", kernel, u, v).square().sum()


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
        conv.weight.copy_(planted(12, 8, (3, 3), (3, 2)))
    model = nn.Sequential(conv, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 4)).eval()
    whole, before = conv(X).detach(), model(X)
    done = Tucker(rank=Fixed(rank=[3, 2])).operate(model, bench_of(X))
    made = done.model.get_submodule("0")
    assert [name for name, _ in made.named_children()] == ["reduce", "core", "expand"]
    torch.testing.assert_close(made(X), whole, rtol=1e-5, atol=1e-5 * float(whole.abs().max()))
    torch.testing.assert_close(done.model(X), before, rtol=1e-4, atol=1e-4)
    (row,) = done.layers
    assert row["weights_after"] == 8 * 2 + 9 * 2 * 3 + 3 * 12
    assert row["macs_after"] == 11 * 9 * 8 * 2 + whole.shape[2] * whole.shape[3] * (9 * 2 * 3 + 3 * 12)
    assert macs(done.model, X[:1]) == row["macs_after"] + 12 * 4


def test_a_side_of_full_rank_has_no_layer_of_its_own(bench_of: Benches) -> None:
    for ranks, shape, names in (([3, 8], (3, 8), ["core", "expand"]), ([12, 2], (12, 2), ["reduce", "core"])):
        conv = nn.Conv2d(8, 12, 3, padding=1)
        with torch.no_grad():
            conv.weight.copy_(planted(12, 8, (3, 3), shape))
        model, whole = nn.Sequential(conv, nn.Flatten(), nn.Linear(12 * 99, 4)).eval(), conv(X).detach()
        done = Tucker(rank=Fixed(rank=ranks)).operate(model, bench_of(X))
        assert [name for name, _ in done.model.get_submodule("0").named_children()] == names
        torch.testing.assert_close(done.model.get_submodule("0")(X), whole, rtol=1e-5, atol=1e-5 * float(whole.abs().max()))
        assert sum(held.numel() for held in done.model.get_submodule("0").parameters()) == done.layers[0]["weights_after"] + 12


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1, groups=4), nn.Conv2d(16, 24, 3, stride=2, padding=1), nn.Conv2d(24, 24, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 4),
    ).eval()  # fmt: skip


def test_a_budget_leaves_what_cannot_be_and_says_so(bench_of: Benches) -> None:
    for of in ("parameters", "macs"):
        model = net()
        count = {"parameters": parameters(model), "macs": macs(model, X[:1])}
        done = Tucker(rank=Budget(share=0.5, of=of)).operate(model, bench_of(X))  # pyright: ignore[reportArgumentType]
        after = {"parameters": parameters(done.model), "macs": macs(done.model, X[:1])}
        assert 0.4 * count[of] < after[of] <= 0.5 * count[of]
        assert sum(row.get("macs_after", row["macs"]) for row in done.layers) + 24 * 4 == after["macs"]
        assert any("2 (it has 4 groups)" in line and "4 (its kernel is 1x1" in line for line in done.said)


def test_energy_takes_the_fewest_weights_of_all_pairs(bench_of: Benches) -> None:
    model = net()
    kernel = model[0].weight.detach().double()
    done = Tucker(rank=Energy(share=0.5), layers=["0"]).operate(model, bench_of(X))
    (row,) = done.layers
    u, v = torch.linalg.svd(kernel.flatten(1))[0], torch.linalg.svd(kernel.movedim(1, 0).flatten(1))[0]
    able = [
        8 * p * (p < 8) + 9 * p * q + 16 * q * (q < 16)
        for q in range(1, 17)
        for p in range(1, 9)
        if torch.einsum("tshw,tq,sp->qphw", kernel, u[:, :q], v[:, :p]).square().sum() >= 0.5 * kernel.square().sum()
    ]
    assert row["weights_after"] == min(able) and row["energy_kept"] >= 0.5


def test_vbmf_finds_the_planted_ranks(bench_of: Benches) -> None:
    model = net()
    noise = torch.randn(24, 16, 3, 3, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        model[3].weight.copy_(planted(24, 16, (3, 3), (5, 4)) + 0.5 * noise)
    assert Tucker(rank=VBMF(), layers=["3"]).operate(model, bench_of(X)).record == {"layers": {"3": [5, 4]}}


def test_it_is_rebuilt_from_its_record(bench_of: Benches) -> None:
    done = Tucker(rank=Budget(share=0.4)).operate(net(), bench_of(X))
    again = Tucker.rebuild(net(5), json.loads(json.dumps(dict(done.record)))).eval()
    again.load_state_dict(done.model.state_dict())
    assert torch.equal(again(X), done.model(X))


def test_what_cannot_be_reached(bench_of: Benches) -> None:
    with pytest.raises(RecipeError, match="layer '2' cannot be factorized: it has 4 groups"):
        Tucker(layers=["2"]).operate(net(), bench_of(X))
    with pytest.raises(RecipeError, match="more than it has, 16 and 8"):
        Tucker(rank=Fixed(layers={"0": [17, 2]})).operate(net(), bench_of(X))
    with pytest.raises(RecipeError, match=r"the closest is 0\.\d+"):
        Tucker(rank=Budget(share=0.05)).operate(net(), bench_of(X))
    with pytest.raises(RecipeError, match=r"no layer gets smaller: 0 \(at rank 16 x 8 it would have 1,152 weights"):
        Tucker(rank=Fixed(rank=[16, 8]), layers=["0"]).operate(net(), bench_of(X))
    with pytest.raises(MismatchError, match="no layer to factorize"):
        Tucker().operate(nn.Sequential(nn.Linear(8, 4)), bench_of(X))
