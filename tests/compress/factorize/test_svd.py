"""Singular values against what Eckart and Young say, and models put together again."""

import copy
import json
from collections.abc import Callable

import pytest
import torch
from torch import nn

from limbeck.compress import Bench
from limbeck.compress.factorize import VBMF, Budget, Energy, Fixed, Sensitivity
from limbeck.compress.factorize.svd import SVD, Factors, low_rank, root
from limbeck.core.errors import ArtifactError, DataError, MismatchError, RecipeError
from limbeck.core.lookup import build
from limbeck.measure.size import macs, parameters

Benches = Callable[..., Bench]
X = torch.randn(64, 20, generator=torch.Generator().manual_seed(1))


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(20, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 4)).eval()


def test_the_error_is_that_of_the_singular_values_left_out() -> None:
    matrix = torch.randn(9, 13, dtype=torch.float64)
    factors = Factors(*torch.linalg.svd(matrix, full_matrices=False))
    for rank in range(1, 10):
        first, second = low_rank(factors, rank)
        assert first.shape == (rank, 13) and second.shape == (9, rank)
        torch.testing.assert_close((matrix - second @ first).square().sum(), factors.values[rank:].square().sum(), rtol=1e-9, atol=1e-18)


def test_full_rank_gives_the_same_outputs(bench_of: Benches) -> None:
    """A wide matrix of rank 4 at rank 4, whose smaller form loses nothing."""
    model, x = net(), X
    with torch.no_grad():
        for index in (0, 2):
            layer = model[index]
            layer.weight.copy_(torch.randn(len(layer.weight), 4) @ torch.randn(4, layer.in_features) / 5)
    before = model(x)
    done = SVD(rank=Fixed(rank=4)).operate(model, bench_of(x))
    torch.testing.assert_close(done.model(x), before, rtol=1e-5, atol=1e-5)
    assert done.record == {"layers": {"0": [4], "2": [4]}}  # rank 4 of the head has 80 weights instead of 64
    assert any("4" in line and "80 weights instead of 64" in line for line in done.said)
    assert all(row["energy_kept"] == pytest.approx(1) for row in done.layers if "rank" in row)


def test_energy_keeps_as_much_as_it_says_with_the_fewest_weights(bench_of: Benches) -> None:
    model = net()
    values = torch.linalg.svdvals(model[0].weight.detach().double()).square()
    rank = int((values.cumsum(0) / values.sum() < 0.6).sum()) + 1
    done = SVD(rank=Energy(share=0.6), layers=["0"]).operate(model, bench_of(X))
    assert done.record["layers"] == {"0": [rank]}
    (row,) = (row for row in done.layers if row["name"] == "0")
    assert row["energy_kept"] == pytest.approx(float(values[:rank].sum() / values.sum()))
    assert row["weights_after"] == rank * (20 + 24) and row["weights"] == 480


@pytest.mark.parametrize("of", ["parameters", "macs"])
def test_a_budget_is_kept_and_counted_right(bench_of: Benches, of: str) -> None:
    model = net()
    count, products = parameters(model), macs(model, X[:1])
    done = build("compress", "factorize.svd", {"rank": {"kind": "budget", "share": 0.5, "of": of}}).operate(model, bench_of(X))
    after = {"parameters": parameters(done.model), "macs": macs(done.model, X[:1])}
    most = {"parameters": count, "macs": products}
    assert 0.42 * most[of] < after[of] <= 0.5 * most[of]
    rows = {row["name"]: row for row in done.layers}
    biases = 24 + 16 + 4
    assert sum(row.get("weights_after", row["weights"]) for row in rows.values()) + biases == after["parameters"]
    assert sum(row.get("macs_after", row["macs"]) for row in rows.values()) == after["macs"]
    assert done.metrics["parameters_share"] == pytest.approx(after["parameters"] / count)


def test_sensitivity_sees_what_energy_does_not(bench_of: Benches) -> None:
    """Most of the energy of layer 2 goes where nobody reads it."""
    bench = bench_of(X)

    def lopsided() -> nn.Sequential:
        model = net()
        with torch.no_grad():
            model[0].weight.mul_(5)
            model[2].weight[8:] *= 30
            model[4].weight.mul_(10)[:, 8:] = 0
        return model

    def loss(model: nn.Module) -> float:
        return float(nn.functional.cross_entropy(model(X), torch.arange(64) % 4).detach())

    before = loss(lopsided())
    by_energy = loss(SVD(rank=Budget(share=0.6)).operate(lopsided(), bench).model) - before
    done = SVD(rank=Sensitivity(share=0.6, examples=64, steps=8)).operate(lopsided(), bench)
    rise = loss(done.model) - before
    assert parameters(done.model) <= 0.6 * parameters(net())
    assert done.metrics["loss_rise_measured"] == pytest.approx(rise, abs=1e-5)
    assert rise < 0.5 * by_energy
    alone = lopsided()
    path, ranks = next(iter(done.record["layers"].items()))
    one = loss(SVD(rank=Fixed(layers={path: ranks})).operate(alone, bench).model) - before
    assert len(done.record["layers"]) > 1 or done.metrics["loss_rise_predicted"] == pytest.approx(one, abs=1e-5)


def test_weighted_errors_are_those_of_the_outputs() -> None:
    draw = torch.Generator().manual_seed(3)
    x = torch.randn(400, 6, dtype=torch.float64, generator=draw) @ torch.diag(torch.tensor([9.0, 3, 1, 0.3, 0.1, 0.03], dtype=torch.float64))
    weight = torch.randn(5, 6, dtype=torch.float64, generator=draw)
    there, back = root(x.T @ x / len(x))
    torch.testing.assert_close(there @ back, torch.eye(6, dtype=torch.float64), rtol=1e-6, atol=1e-6)
    factors = Factors(*torch.linalg.svd(weight @ there, full_matrices=False))
    plain = Factors(*torch.linalg.svd(weight, full_matrices=False))
    for rank in (1, 2, 3):
        first, second = low_rank(factors, rank)
        error = ((weight - second @ first @ back) @ x.T).square().sum() / len(x)
        torch.testing.assert_close(error, factors.values[rank:].square().sum(), rtol=1e-6, atol=1e-9)
        a, b = low_rank(plain, rank)
        assert error < ((weight - b @ a) @ x.T).square().sum() / len(x)


def test_weighted_beats_unweighted_on_the_outputs_and_the_bias_makes_up_for_the_mean(bench_of: Benches) -> None:
    x = X * torch.logspace(1, -2, 20) + 3
    errors = {}
    for weighted in (False, True):
        model = nn.Sequential(net()[0]).eval()
        before = model(x)
        done = SVD(rank=Fixed(rank=5), weighted=weighted, examples=64).operate(model, bench_of(x))
        errors[weighted] = done.model(x) - before
    assert errors[True].square().mean() < 0.2 * errors[False].square().mean()
    torch.testing.assert_close(errors[True].mean(0), torch.zeros(24), rtol=0, atol=1e-4)


def test_a_convolution_of_1x1_with_a_stride(bench_of: Benches) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 12, 1, stride=2), nn.Flatten(), nn.Linear(12 * 9, 4)).eval()
    with torch.no_grad():
        model[0].weight.copy_((torch.randn(12, 2) @ torch.randn(2, 8))[:, :, None, None])
    x = torch.randn(16, 8, 6, 6)
    before = model(x)
    for weighted in (False, True):
        done = SVD(rank=Fixed(rank=2), layers=["0"], weighted=weighted, examples=16).operate(copy.deepcopy(model), bench_of(x))
        torch.testing.assert_close(done.model(x), before, rtol=1e-4, atol=1e-4)
        row = done.layers[0]
        assert (row["weights_after"], row["macs_after"]) == (2 * 20, 9 * 2 * 20)
        assert macs(done.model, x[:1]) == 9 * 2 * 20 + 12 * 9 * 4


def test_it_is_rebuilt_from_its_record(bench_of: Benches) -> None:
    done = SVD().operate(net(), bench_of(X))
    record = json.loads(json.dumps(dict(done.record)))
    again = SVD.rebuild(net(5), record)
    again.load_state_dict(done.model.state_dict())
    assert torch.equal(again(X), done.model(X))
    with pytest.raises(ArtifactError, match="'7'"):
        SVD.rebuild(net(), {"layers": {"7": [2]}})
    with pytest.raises(ArtifactError, match="a ReLU at '0'"):
        SVD.rebuild(nn.Sequential(nn.ReLU()), {"layers": {"0": [2]}})


def test_the_model_itself_may_be_the_layer(bench_of: Benches) -> None:
    done = SVD(rank=Fixed(rank=1)).operate(nn.Linear(20, 4).eval(), bench_of(X))
    assert done.record == {"layers": {"": [1]}}
    again = SVD.rebuild(nn.Linear(20, 4), done.record)
    again.load_state_dict(done.model.state_dict())
    assert torch.equal(again(X), done.model(X))


def test_vbmf_finds_what_is_no_noise(bench_of: Benches) -> None:
    model = net()
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        model[0].weight.copy_(torch.randn(24, 3, generator=draw) @ torch.randn(3, 20, generator=draw) + 0.1 * torch.randn(24, 20, generator=draw))
    done = SVD(rank=VBMF(), layers=["0"]).operate(model, bench_of(X))
    assert done.record["layers"] == {"0": [3]}


def test_what_cannot_be_reached_says_the_closest(bench_of: Benches) -> None:
    model, bench = net(), bench_of(X)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(RecipeError, match=r"the closest is 0\.\d+"):
        SVD(rank=Budget(share=0.01)).operate(model, bench)
    with pytest.raises(RecipeError, match="below an energy of"):
        SVD(rank=Energy(share=0.9999)).operate(model, bench)
    with pytest.raises(RecipeError, match="has no Linear or Conv2d at '22'; did you mean '2'"):
        SVD(layers=["22"]).operate(model, bench)
    with pytest.raises(RecipeError, match="more than it has, 20"):
        SVD(rank=Fixed(layers={"0": 21})).operate(model, bench)
    with pytest.raises(RecipeError, match="2 numbers, and this method takes 1"):
        SVD(rank=Fixed(rank=[2, 2])).operate(model, bench)
    with pytest.raises(RecipeError, match="says no rank"):
        SVD(rank=Fixed()).operate(model, bench)
    assert model.state_dict().keys() == before.keys() and all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(RecipeError) as caught:
        SVD(rank=Budget(share=0.01)).operate(model, bench)
    least = float(str(caught.value).split("closest is ")[1].split(";")[0])
    assert parameters(SVD(rank=Budget(share=least)).operate(model, bench).model) <= least * parameters(net())


def test_what_cannot_be_factorized_is_named(bench_of: Benches) -> None:
    shared = net()
    shared[2] = nn.Linear(24, 24)
    shared[4] = nn.Linear(24, 24)
    shared[4].weight = shared[2].weight
    done = SVD(rank=Fixed(rank=3)).operate(shared.eval(), bench_of(X))
    assert done.record["layers"].keys() == {"0"} and any("2, 4 (its weight is shared" in line for line in done.said)
    with pytest.raises(MismatchError, match="no layer to factorize"):
        SVD().operate(nn.Sequential(nn.ReLU()), bench_of(X))
    broken = net()
    broken[2].weight.data[0, 0] = float("nan")
    with pytest.raises(DataError, match="layer '2' holds numbers that are not finite"):
        SVD().operate(broken, bench_of(X))
    with pytest.raises(DataError, match="are alike"):
        SVD(weighted=True, examples=4, layers=["0"]).operate(net(), bench_of(torch.ones(8, 20)))


class Direct(nn.Module):
    """Reads the weight of a layer past it."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(20, 24), nn.Linear(24, 24)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(self.one(x), self.two.weight)


def test_a_model_that_does_not_run_is_left_as_it_was_and_the_culprit_is_named(bench_of: Benches) -> None:
    model = Direct().eval()
    before = model(X)
    with pytest.raises(MismatchError, match=r"without its layer 'two'.*add it to skip"):
        SVD(rank=Fixed(rank=4)).operate(model, bench_of(X))
    assert isinstance(model.one, nn.Linear) and torch.equal(model(X), before) and not model.one._forward_hooks
    assert SVD(rank=Fixed(rank=4), skip=["two"]).operate(model, bench_of(X)).record == {"layers": {"one": [4]}}


def test_attention_is_left_alone(bench_of: Benches) -> None:
    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.TransformerEncoderLayer(20, 2, 32, batch_first=True)
            self.head = nn.Linear(20, 12)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.layer(x)).mean(1)

    x = torch.randn(8, 3, 20)
    done = SVD(rank=Fixed(rank=2)).operate(Attends().eval(), bench_of(x))
    assert done.record == {"layers": {"head": [2]}}
    rows = {row["name"]: row for row in done.layers}
    assert rows["layer.linear1"]["left"].startswith("nn.TransformerEncoderLayer") and "NonDynamically" in rows["layer.self_attn.out_proj"]["left"]
    assert rows["head"]["macs_after"] == 3 * 2 * 32
