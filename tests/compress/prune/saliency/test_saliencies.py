"""What each saliency says, against its formula written out, and what all of them promise."""

import math

import pytest
import torch
from torch import nn

from limbeck.compress import Compensating, Saliency
from limbeck.compress.prune._curvature import blocks
from limbeck.compress.prune.saliency._named import named
from limbeck.compress.prune.saliency.fisher import Fisher
from limbeck.compress.prune.saliency.lamp import Lamp, lamp_scores
from limbeck.compress.prune.saliency.magnitude import Magnitude
from limbeck.compress.prune.saliency.movement import Movement
from limbeck.compress.prune.saliency.obd import Hutchinson, Obd
from limbeck.compress.prune.saliency.obs import Obs
from limbeck.compress.prune.saliency.random import Random
from limbeck.compress.prune.saliency.taylor import Taylor
from limbeck.compress.prune.saliency.wanda import Wanda
from limbeck.core.errors import DataError, MismatchError, RecipeError
from limbeck.tasks.classify import Classify

WEIGHTS = ["1.weight", "3.weight"]
ALL = [Magnitude(), Magnitude(p=2), Lamp(), Random(), Taylor(), Taylor(joint=True), Obd(), Obd(hessian="exact"), Obd(hessian=Hutchinson()),
       Obs(), Obs(order="alone", block=8), Fisher(), Movement(steps=3), Wanda()]  # fmt: skip


@pytest.mark.parametrize("saliency", ALL, ids=lambda one: type(one).__name__)
def test_what_all_promise(saliency, mlp, bench):
    mlp.train()
    before = [p.detach().clone() for p in mlp.parameters()]
    found = saliency.contributions(mlp, WEIGHTS, bench)
    assert list(found) == WEIGHTS
    assert all(found[name].shape == mlp.get_parameter(name).shape and not found[name].requires_grad for name in WEIGHTS)
    assert all(torch.equal(now, then) and now.grad is None and now.requires_grad for now, then in zip(mlp.parameters(), before, strict=True))
    assert mlp.training and mlp[1].training
    again = saliency.contributions(mlp, WEIGHTS, bench)
    assert all(torch.equal(found[name], again[name]) for name in WEIGHTS)
    for units in (found["1.weight"], found["1.weight"].reshape(-1, 1)):
        total = saliency.total(units)
        assert total.shape == units.shape[:1] and (total >= 0).all() and total.isfinite().all()
    assert found["1.weight"].std() > 0


@pytest.mark.parametrize("saliency", [one for one in ALL if not isinstance(one, Random)], ids=lambda one: type(one).__name__)
def test_a_model_of_nan_is_refused(saliency, mlp, bench):
    nn.init.constant_(mlp[3].weight, math.nan)
    with pytest.raises(DataError, match="finite"):
        saliency.contributions(mlp, WEIGHTS, bench)


def test_a_weight_that_does_not_reach_the_loss_is_named(data, bench):
    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.Linear(32, 3).double(), nn.Linear(32, 3).double()

        def forward(self, x):
            return self.used(x.flatten(1))

    for saliency in (Taylor(), Obd(), Obd(hessian="exact"), Obs(), Fisher(), Movement(), Wanda()):
        with pytest.raises(MismatchError, match=r"'idle.weight'.*spare"):
            saliency.contributions(Idle(), ["used.weight", "idle.weight"], bench)


def test_magnitude(mlp, bench):
    w = mlp[1].weight.detach()
    one, two = (Magnitude(p=p) for p in (1, 2))
    torch.testing.assert_close(one.total(one.contributions(mlp, WEIGHTS, bench)["1.weight"]), w.abs().sum(1))
    torch.testing.assert_close(two.total(two.contributions(mlp, WEIGHTS, bench)["1.weight"]), w.norm(dim=1))
    with pytest.raises(RecipeError, match="1 or 2, not 3"):
        Magnitude(p=3)


def test_lamp_is_its_formula_and_leaves_the_largest_of_each_layer(mlp, bench):
    w = torch.tensor([[0.5, -3.0, 0.0], [2.0, 0.5, 1.0]])
    flat = sorted(((abs(value), index) for index, value in enumerate(w.flatten().tolist())))
    naive = torch.zeros(6, dtype=torch.float64)
    for place, (value, index) in enumerate(flat):
        naive[index] = value**2 / sum(other**2 for other, _ in flat[place:])
    torch.testing.assert_close(lamp_scores(w), naive.reshape(2, 3))
    assert lamp_scores(w).max() == 1 and (lamp_scores(torch.zeros(3)) == 0).all()
    found = Lamp().contributions(mlp, WEIGHTS, bench)
    assert all(score.max() == 1 for score in found.values())
    order = mlp[1].weight.detach().abs().flatten().argsort()
    assert torch.equal(found["1.weight"].flatten().argsort(), order)


def test_random_is_a_function_of_seed_and_name(mlp, data, bench, bench_of):
    found = Random().contributions(mlp, WEIGHTS, bench)
    alone = Random().contributions(mlp, ["3.weight"], bench)
    other = Random().contributions(mlp, WEIGHTS, bench_of(Classify({"train": [data]}), seed=1))
    assert torch.equal(found["3.weight"], alone["3.weight"])
    assert not torch.equal(found["3.weight"], other["3.weight"])
    assert not torch.equal(found["1.weight"].flatten()[:9], found["3.weight"].flatten())
    assert Random().total(torch.tensor([[0.3, 0.9], [0.5, 0.1]])).tolist() == pytest.approx([0.3, 0.5])


def test_taylor_is_its_formula(mlp, data, bench):
    x, y = data
    slopes = [torch.autograd.grad(nn.functional.cross_entropy(mlp(a), b), mlp[1].weight)[0] for a, b in zip(x.split(6), y.split(6), strict=True)]
    w = mlp[1].weight.detach()
    squares = Taylor()
    found = squares.contributions(mlp, ["1.weight"], bench)["1.weight"]
    torch.testing.assert_close(squares.total(found), torch.stack([(g * w).square() for g in slopes]).mean(0).sum(1))
    joint = Taylor(joint=True)
    found = joint.contributions(mlp, ["1.weight"], bench)["1.weight"]
    torch.testing.assert_close(found, (slopes[0] + slopes[1]) / 2 * w)
    assert (found < 0).any()
    torch.testing.assert_close(joint.total(found), found.sum(1).square())


def test_obd_is_the_rise_of_a_quadratic_loss(data, bench_of):
    """Of a linear model under squared error, at its minimum, the loss rises by exactly h_kk w_k^2 / 2 where one weight goes."""
    from limbeck.tasks.regression import Regression

    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(40, count, generator=generator, dtype=torch.float64) for count in (5, 2))
    model = nn.Linear(5, 2, bias=False).double()
    model.weight.data = torch.linalg.lstsq(x, y).solution.T.contiguous()
    bench = bench_of(Regression({"train": [(x, y)]}))
    loss = lambda: (model(x) - y).square().sum(1).mean().item()  # noqa: E731
    start, rises = loss(), torch.zeros(2, 5, dtype=torch.float64)
    for o in range(2):
        for i in range(5):
            kept = model.weight[o, i].item()
            model.weight.data[o, i] = 0
            rises[o, i] = loss() - start
            model.weight.data[o, i] = kept
    for hessian in ("gauss_newton", "exact"):
        saliency = Obd(hessian=hessian)
        torch.testing.assert_close(saliency.contributions(model, ["weight"], bench)["weight"], rises)
    # Optimal Brain Surgeon: the same, the others being fitted anew
    obs = Obs(damping=1e-12, order="alone")
    found = obs.contributions(model, ["weight"], bench)["weight"]
    for o in range(2):
        for i in range(5):
            rest = [index for index in range(5) if index != i]
            fitted = torch.linalg.lstsq(x[:, rest], y[:, o]).solution
            rise = (x[:, rest] @ fitted - y[:, o]).square().mean() - (model(x)[:, o] - y[:, o]).square().mean()
            assert found[o, i].item() == pytest.approx(rise.item(), rel=1e-6)
    removed = torch.zeros(2, 5, dtype=torch.bool)
    removed[0, 1] = removed[0, 3] = removed[1, 0] = True
    obs.compensate(model, {"weight": removed}, bench)
    for o in range(2):
        rest = [index for index in range(5) if not removed[o, index]]
        torch.testing.assert_close(model.weight[o, rest].detach(), torch.linalg.lstsq(x[:, rest], y[:, o]).solution)
    assert (model.weight[removed] == 0).all()


def test_obd_tells_a_negative_curvature_as_no_cost():
    assert Obd(hessian="exact").total(torch.tensor([[-2.0, 1.0], [1.0, 2.0]])).tolist() == [0, 3]


def test_obs_is_eq_5_of_its_paper(mlp, bench):
    """One weight of the whole net: saliency, update and zero, from the inverse itself."""
    names = [name for name, _ in mlp.named_parameters()]
    (block,) = blocks(mlp, names, bench, examples=12, curvature="gauss_newton", size=256, damping=1e-3)
    inverse, w = block.matrix.inverse(), torch.cat([p.detach().flatten() for p in mlp.parameters()])
    obs = Obs(examples=12, damping=1e-3, order="alone")
    found = torch.cat([one.flatten() for one in obs.contributions(mlp, names, bench).values()])
    torch.testing.assert_close(found, w.square() / (2 * inverse.diagonal()))
    q = int(found.argmin())
    change = -w[q] / inverse[q, q] * inverse[:, q]
    assert (change @ block.matrix @ change / 2).item() == pytest.approx(found[q].item())  # the saliency is the rise
    gone = torch.zeros(len(w), dtype=torch.bool)
    gone[q] = True
    parts = gone.split([p.numel() for p in mlp.parameters()])
    obs.compensate(mlp, {name: part.reshape(p.shape) for (name, p), part in zip(mlp.named_parameters(), parts, strict=True)}, bench)
    now = torch.cat([p.detach().flatten() for p in mlp.parameters()])
    torch.testing.assert_close(now, w + change, atol=1e-9, rtol=1e-9)
    assert now[q] == 0


def test_obs_measures_anew_only_what_has_changed(mlp, bench, monkeypatch):
    from limbeck.compress.prune.saliency import obs as module

    passes = []
    monkeypatch.setattr(module, "blocks", lambda *given, **options: passes.append(1) or blocks(*given, **options))
    obs = Obs()
    obs.contributions(mlp, WEIGHTS, bench)
    removed = {name: torch.zeros_like(mlp.get_parameter(name), dtype=torch.bool) for name in WEIGHTS}
    removed["1.weight"][0, 0] = True
    obs.compensate(mlp, removed, bench)
    assert len(passes) == 1
    obs.contributions(mlp, WEIGHTS, bench)
    mlp[1].weight.data[1, 1] = 7
    obs.contributions(mlp, WEIGHTS, bench)
    assert len(passes) == 3
    assert isinstance(obs, Compensating)


def test_obs_writes_to_weights_that_are_not_contiguous(conv, bench):
    conv[0].weight.data = conv[0].weight.data.to(memory_format=torch.channels_last)
    plain = nn.Conv2d(2, 4, 3, groups=2).double()
    plain.weight.data = torch.randn(4, 1, 3, 3, dtype=torch.float64).transpose(2, 3)
    conv[0].weight.data = plain.weight.data
    assert not conv[0].weight.is_contiguous()
    removed = {"0.weight": torch.zeros(4, 1, 3, 3, dtype=torch.bool)}
    removed["0.weight"][1, 0, 2, 0] = True
    Obs().compensate(conv, removed, bench)
    assert conv[0].weight[1, 0, 2, 0] == 0 and conv[0].weight.count_nonzero() == 35


def test_fisher_is_its_formula(mlp, data, bench):
    x, y = data
    w = mlp[1].weight
    squares = [torch.autograd.grad(nn.functional.cross_entropy(mlp(x[n : n + 1]), y[n : n + 1]), w)[0].square() for n in range(12)]
    torch.testing.assert_close(Fisher().contributions(mlp, ["1.weight"], bench)["1.weight"], w.detach().square() / 2 * torch.stack(squares).mean(0))


def test_movement_follows_gradient_descent(mlp, data, bench):
    from copy import deepcopy

    x, y = data
    moving, score = deepcopy(mlp), 0
    for step in range(5):  # two batches, again and again
        part = slice(0, 6) if step % 2 == 0 else slice(6, 12)
        slopes = torch.autograd.grad(nn.functional.cross_entropy(moving(x[part]), y[part]), list(moving.parameters()))
        score = score - slopes[0] * moving[1].weight.detach()
        with torch.no_grad():
            for p, slope in zip(moving.parameters(), slopes, strict=True):
                p -= 0.1 * slope
    saliency = Movement(steps=5, lr=0.1, batch_size=6)
    found = saliency.contributions(mlp, ["1.weight"], bench)["1.weight"]
    torch.testing.assert_close(found, score)
    total = saliency.total(found.reshape(-1, 1))
    assert (found < 0).any() and torch.equal(total.argsort(), found.flatten().argsort())
    with pytest.raises(RecipeError, match="lr of movement"):
        Movement(lr=0)


def test_wanda_is_its_formula(mlp, conv, data, bench):
    x, _ = data
    found = Wanda().contributions(mlp, WEIGHTS, bench)
    torch.testing.assert_close(found["1.weight"], mlp[1].weight.detach().abs() * x.flatten(1).norm(dim=0))
    torch.testing.assert_close(found["3.weight"], mlp[3].weight.detach().abs() * mlp[:3](x).detach().norm(dim=0))
    found = Wanda().contributions(conv, ["0.weight"], bench)["0.weight"]
    padded = nn.functional.pad(x, (1, 1, 1, 1))
    for o in range(4):
        for u in range(3):
            for v in range(3):
                under = padded[:, o // 2, u : u + 3 : 2, v : v + 3 : 2]  # stride 2, two positions each way; two outputs in a group
                assert found[o, 0, u, v].item() == pytest.approx((conv[0].weight[o, 0, u, v].abs() * under.norm()).item())
    with pytest.raises(MismatchError, match=r"nothing about '1.bias'"):
        Wanda().contributions(mlp, ["1.bias"], bench)


def test_a_saliency_by_its_name():
    made = named({"kind": "obd", "hessian": {"kind": "hutchinson", "draws": 3}, "examples": 7})
    assert isinstance(made, Obd) and made.hessian == Hutchinson(draws=3) and made.examples == 7
    for name in ("magnitude", "lamp", "random", "taylor", "obd", "obs", "fisher", "movement", "wanda"):
        assert isinstance(named(name), Saliency)
    assert isinstance(named("prune.saliency.obs"), Obs)
    with pytest.raises(RecipeError, match="is no saliency; there are"):
        named({"kind": "prune.nm"})
    with pytest.raises(RecipeError, match=r"did you mean '.*magnitude'"):
        named("magnitud")
    with pytest.raises(RecipeError, match=r"no option 'exampels'.*'examples'"):
        named({"kind": "fisher", "exampels": 3})
    with pytest.raises(RecipeError, match="needs a kind"):
        named({"examples": 3})


@pytest.mark.parametrize("kind", ["taylor", "obd", "obs", "fisher", "wanda"])
def test_no_examples_are_refused(kind):
    with pytest.raises(RecipeError, match="examples must be 1 or more"):
        named({"kind": kind, "examples": 0})


def test_options_that_mean_nothing():
    with pytest.raises(RecipeError, match="damping"):
        Obs(damping=0)
    with pytest.raises(RecipeError, match="gauss_newton"):
        Obs(curvature="exact")
    with pytest.raises(RecipeError, match="in_turn or alone"):
        Obs(order="together")
    with pytest.raises(RecipeError, match="gauss_newton"):
        Obd(hessian="diag")


def test_an_empty_training_split_is_refused(mlp, data, bench_of):
    x, y = data
    with pytest.raises(DataError):
        Taylor().contributions(mlp, WEIGHTS, bench_of(Classify({"train": [(x[:0], y[:0])]}, classes=3)))
