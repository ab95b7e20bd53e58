"""`prune.gradual`: the rise against its formula, masks against a loop, scores against sums of -w dL/dw, and a training that resumes to the bit."""

import copy
import json
import math
from collections.abc import Iterator
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.compress import Bench, plain
from limbeck.compress.prune._schedule import Rise, kept, masked
from limbeck.compress.prune._target import Ratio
from limbeck.compress.prune.gradual import Gradual
from limbeck.core.errors import LimbeckError, MismatchError, RecipeError
from limbeck.core.objective import Clocked
from limbeck.core.schedule import Clock
from limbeck.core.task import default_task
from limbeck.schemes.offline import Offline

BENCH = cast(Bench, None)
"""Gradual pruning asks nothing of the data."""
STEPS = 20


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 6), nn.ReLU(), nn.Linear(6, 3))


def prepared(**options: Any) -> tuple[nn.Module, dict[str, Any]]:
    done = Gradual(**{"target": {"ratio": 0.8}, **options}).operate(network().eval(), BENCH)
    return done.model, dict(done.record)


def told(model: nn.Module, step: float, steps: int = STEPS) -> None:
    for module in model.modules():
        if isinstance(module, Clocked):
            module.clock = Clock(step / 10, steps / 10)


def batch(step: int) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(step)
    return {"input": torch.randn(8, 1, 6, 6, generator=draw), "label": torch.randint(3, (8,), generator=draw)}


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> Iterator[tuple[int, nn.Module]]:
    """Some steps of STEPS; gives the model after each."""
    for step in steps:
        model.train()
        told(model, step)
        given = batch(step)
        F.cross_entropy(model(given["input"]), given["label"]).backward()
        optimizer.step()
        optimizer.zero_grad()
        yield step, model


def zeros(model: nn.Module) -> dict[str, int]:
    return {name: int((~mask.mask).sum()) for name, mask in masked(model)}


def test_the_rise_is_the_papers_cubic() -> None:
    """Equation 1 of Zhu & Gupta, written in steps as they write it: t0 = 100, n = 10 prunings, dt = 30 of 1000 steps."""
    rise = Rise(0.9, 0.1, 0.4, 0.03)
    assert rise.prunings == 10
    for t in range(1000):
        k = min(max((t - 100) // 30, 0), 10)
        assert rise.due(Clock(t / 50, 20)) == k
        assert rise.at(k) == pytest.approx(0.9 + (0.0 - 0.9) * (1 - (30 * k) / (10 * 30)) ** 3)


@settings(max_examples=60, deadline=None)
@given(st.floats(0, 0.9), st.floats(0.01, 1), st.floats(0.001, 1), st.integers(2, 400))
def test_the_rise_never_falls_and_ends_at_the_ratio(start: float, length: float, every: float, steps: int) -> None:
    end = min(start + length, 0.99)
    rise = Rise(0.7, start, end, min(every, end - start))
    ks = [rise.due(Clock(step, steps)) for step in range(steps)] + [rise.due(Clock(steps, steps))]
    assert ks == sorted(ks) and ks[0] == 0 and ks[-1] == rise.prunings
    values = [rise.at(k) for k in range(rise.prunings + 1)]
    assert values == sorted(values) and values[0] == 0 and values[-1] == 0.7


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=8), min_size=1, max_size=4), st.floats(0, 0.99))
def test_masks_equal_a_loop_that_takes_the_lowest_and_of_equals_the_first(rows: list[list[int]], ratio: float) -> None:
    scores = [torch.tensor(row, dtype=torch.float32) for row in rows]
    for row, mask in zip(rows, kept(scores, ratio, "layer"), strict=True):
        order = sorted(range(len(row)), key=lambda at: (row[at], at))
        best = row.index(max(row))
        gone = set([at for at in order if at != best][: math.floor(ratio * len(row) + 0.5)])
        assert mask.tolist() == [at not in gone for at in range(len(row))]
    best = [(layer, row.index(max(row))) for layer, row in enumerate(rows)]
    every = sorted((value, layer, at) for layer, row in enumerate(rows) for at, value in enumerate(row))
    order = [(layer, at) for _, layer, at in every if (layer, at) not in best]
    gone = set(order[: math.floor(ratio * len(every) + 0.5)])
    masks = kept(scores, ratio, "global")
    assert [[not flag for flag in mask.tolist()] for mask in masks] == [[(layer, at) in gone for at in range(len(row))] for layer, row in enumerate(rows)]
    assert [score.tolist() for score in scores] == rows, "scores are read, not changed"


def test_prepared_it_computes_what_it_did_and_prunes_in_training_alone() -> None:
    model = network().eval()
    x = torch.randn(4, 1, 6, 6)
    before = model(x)
    model = Gradual(target=Ratio(ratio=0.8)).operate(model, BENCH).model
    assert torch.equal(model(x), before)
    told(model, STEPS)
    assert torch.equal(model(x), before) and not any(zeros(model).values())
    model.train()(x)
    assert zeros(model) == {"0.weight": 29, "4.weight": 307, "6.weight": 14}  # 0.8 of 36, 384 and 18, rounded
    after = model.eval()(x)
    assert not torch.allclose(after, before) and torch.equal(plain(model)(x), after)


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("saliency", ["magnitude", "movement"])
def test_sparsity_follows_the_schedule_step_by_step_and_then_stands_still(scope: str, saliency: str) -> None:
    model, record = prepared(scope=scope, saliency=saliency, start=0.2, end=0.7, every=0.1)
    rise, total = Rise(0.8, 0.2, 0.7, 0.1), 438
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    last: dict[str, Tensor] = {}
    for step, _ in train(model, optimizer, range(STEPS)):
        share = rise.at(rise.due(Clock(step, STEPS)))
        found = zeros(model)
        if scope == "global":
            assert sum(found.values()) == math.floor(share * total + 0.5)
        else:
            assert list(found.values()) == [math.floor(share * size + 0.5) for size in (36, 384, 18)]
        masks = {name: mask.mask.clone() for name, mask in masked(model)}
        if step > 0.7 * STEPS:
            assert all(torch.equal(mask, last[name]) for name, mask in masks.items())
        last = masks
    assert record["parameters"] == ["0.weight", "4.weight", "6.weight"]


def test_by_magnitude_the_smallest_go_and_one_that_was_masked_may_come_back() -> None:
    model, _ = prepared(layers=["6"], start=0.0, end=0.5, every=0.25, target={"ratio": 0.5})
    layer: Any = model[6]  # pyright: ignore[reportIndexIssue]
    hidden = layer.parametrizations.weight.original
    model.train()
    told(model, 0.25 * STEPS)
    first = layer.weight == 0
    share = 0.5 * (1 - 0.5**3)
    assert first.sum() == math.floor(share * 18 + 0.5) and hidden[first].abs().max() <= hidden[~first].abs().min()
    with torch.no_grad():
        hidden[first] = 5.0
    told(model, 0.5 * STEPS)
    assert (layer.weight[first] == 5.0).all() and (layer.weight == 0).sum() == 9


def test_a_masked_weight_gets_no_gradient() -> None:
    model, _ = prepared()
    model.train()
    told(model, STEPS)
    model(torch.randn(4, 1, 6, 6)).square().sum().backward()
    for name, mask in masked(model):
        gradient = model.get_parameter(name.replace("weight", "parametrizations.weight.original")).grad
        assert gradient is not None and (gradient[~mask.mask] == 0).all() and (gradient[mask.mask] != 0).any()


def test_scores_sum_minus_the_weight_times_the_gradient_of_what_is_read() -> None:
    """Plain gradient descent at rate 1 on scores, weights standing still: S = -sum_t w dL/dw', masked weights included."""
    model, _ = prepared(saliency="movement", start=0.1, end=0.6, every=0.1)
    scores = {name: mask.score for name, mask in masked(model)}
    optimizer = torch.optim.SGD([score for score in scores.values() if score is not None], lr=1.0)
    summed = {name: torch.zeros_like(score, dtype=torch.float64) for name, score in scores.items() if score is not None}
    for step in range(STEPS):
        model.train()
        told(model, step)
        given = batch(step)
        F.cross_entropy(model(given["input"]), given["label"]).backward()
        bare = network()  # of the weights that were read
        bare.load_state_dict({name: _read(model, name) for name in bare.state_dict()})
        F.cross_entropy(bare(given["input"]), given["label"]).backward()
        for name in summed:
            original = model.get_parameter(name.replace("weight", "parametrizations.weight.original"))
            gradient = bare.get_parameter(name).grad
            assert gradient is not None
            summed[name] -= (original * gradient).double()
        optimizer.step()
        optimizer.zero_grad()
    for name, score in scores.items():
        assert score is not None
        assert torch.allclose(score.double(), summed[name], rtol=1e-4, atol=1e-6) and score.abs().sum() > 0
    assert all(zeros(model).values())


def _read(model: nn.Module, name: str) -> Tensor:
    """What a layer reads as a parameter of that name: the masked weight where it has a mask."""
    path, _, own = name.rpartition(".")
    return getattr(model.get_submodule(path), own)


def test_by_movement_scores_that_no_gradient_has_reached_are_refused() -> None:
    model, _ = prepared(saliency="movement", end=0.5)
    model.train()
    told(model, 10)
    with pytest.raises(MismatchError, match="no gradient has come to the scores"):
        model(torch.randn(4, 1, 6, 6))


@pytest.mark.parametrize("saliency", ["magnitude", "movement"])
@pytest.mark.parametrize("at", [3, 9, 16])
def test_stopped_and_gone_on_it_is_the_uninterrupted_training_to_the_bit(saliency: str, at: int) -> None:
    model, record = prepared(saliency=saliency, scope="global", start=0.1, every=0.05)
    begun = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in train(model, optimizer, range(STEPS)):
        pass
    first = torch.optim.SGD(begun.parameters(), lr=0.1, momentum=0.9)
    for _ in train(begun, first, range(at)):
        pass
    saved = copy.deepcopy(begun.state_dict()), copy.deepcopy(first.state_dict())
    resumed = Gradual.rebuild(network(), json.loads(json.dumps(record)))
    resumed.load_state_dict(saved[0])
    second = torch.optim.SGD(resumed.parameters(), lr=0.1, momentum=0.9)
    second.load_state_dict(saved[1])
    for _ in train(resumed, second, range(at, STEPS)):
        pass
    ours, theirs = model.state_dict(), resumed.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert int(next(masked(resumed))[1].pruner.done) == Rise(0.8, 0.1, 0.75, 0.05).prunings


def test_more_epochs_on_a_finished_training_do_not_bring_weights_back() -> None:
    model, _ = prepared()
    model.train()
    told(model, STEPS)
    model(torch.randn(4, 1, 6, 6))
    before = zeros(model)
    told(model, STEPS, 4 * STEPS)
    model(torch.randn(4, 1, 6, 6))
    assert zeros(model) == before


def test_saved_and_rebuilt_from_a_fresh_model_it_answers_the_same() -> None:
    model, record = prepared(saliency="movement")
    for _ in train(model, torch.optim.SGD(model.parameters(), lr=0.1), range(STEPS)):
        pass
    torch.manual_seed(5)
    fresh = Gradual.rebuild(network(), json.loads(json.dumps(record)))
    assert fresh.load_state_dict(model.state_dict()).missing_keys == []
    x = torch.randn(4, 1, 6, 6)
    assert torch.equal(fresh.eval()(x), model.eval()(x))
    pointers = [value.data_ptr() for value in fresh.state_dict().values()]
    assert len(set(pointers)) == len(pointers), "nothing is saved twice"


def test_a_copy_follows_its_own_schedule() -> None:
    model, _ = prepared()
    twin = copy.deepcopy(model).train()
    told(twin, STEPS)
    twin(torch.randn(4, 1, 6, 6))
    assert any(zeros(twin).values()) and not any(zeros(model).values())


def test_a_scheme_tells_it_where_training_stands() -> None:
    model, _ = prepared(layers=["6"], target={"ratio": 0.5})
    scheme = Offline(model, None, [1.0 * _supervised()], default_task(), batch(0))
    scheme.train()
    for step, expected in ((0, 0), (1, 8), (STEPS - 1, 9)):  # half of the way to 0.75 of training: 1 - 1/8 of the rise, nearly
        scheme.at(step and 0.375 if step < 2 else 0.9, 1.0)
        scheme(batch(step)).loss.backward()
        assert abs(zeros(model)["6.weight"] - expected) <= (1 if step == 1 else 0)


def _supervised() -> Any:
    from limbeck.objectives.supervised import Supervised

    return Supervised()


def test_the_first_epoch_with_masks_that_stand_still() -> None:
    for epochs in (1, 3, 10, 17):
        for end in (0.3, 0.5, 0.75, 0.9):
            rise, settled = Rise(0.8, 0.0, end, 0.01), Gradual.settled({"end": end}, epochs)
            at_end_of = [rise.due(Clock(epoch + 0.999, epochs)) == rise.prunings for epoch in range(epochs)]
            assert at_end_of.index(True) + 1 == settled


def test_a_tied_weight_is_left_out_with_a_word_and_refused_where_it_is_named() -> None:
    model: Any = nn.ModuleDict({"tokens": nn.Embedding(6, 4), "inner": nn.Linear(4, 4), "head": nn.Linear(4, 6)})
    model["head"].weight = model["tokens"].weight
    done = Gradual(target=Ratio(ratio=0.5)).operate(copy.deepcopy(model), BENCH)
    assert done.record["parameters"] == ["inner.weight"] and any("head.weight" in line and "tokens.weight" in line for line in done.said)
    with pytest.raises(MismatchError, match=r"the same weight as 'head.weight'"):
        Gradual(target=Ratio(ratio=0.5), layers=["tokens"]).operate(model, BENCH)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": {"ratio": 0.0}}, "target of prune.gradual.*greater than 0"),
        ({"target": {"ratio": 1.0}}, "less than 1"),
        ({"target": {"ratio": math.nan}}, "target of prune.gradual"),
        ({"target": 0.5}, "target of prune.gradual is 0.5"),
        ({"target": {"keep": 438}}, "nothing would be pruned"),
        ({"target": {"keep": 2}}, "2 weights to 3 layers.*keep: 3"),
        ({"start": 0.8}, "goes from 0.8 to 0.75"),
        ({"end": 1.0}, "goes from 0 to 1"),
        ({"every": 0.0}, "every is 0"),
        ({"every": 0.9}, "every is 0.9"),
        ({"layers": ["9"]}, "named by '9'"),
        ({"layers": ["1"]}, "'1.weight', which cannot be pruned"),
        ({"scope": "all"}, "no scope 'all'"),
        ({"saliency": "obd"}, "no saliency 'obd'"),
    ],
)
def test_what_cannot_be_meant_is_one_line_and_the_model_stays(options: dict[str, Any], message: str) -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(LimbeckError, match=message) as caught:
        Gradual(**{"target": {"ratio": 0.8}, **options}).operate(model, BENCH)
    assert "\n" not in str(caught.value)
    assert before.keys() == model.state_dict().keys()


def test_a_model_that_is_prepared_or_whose_weights_bear_no_mask_is_refused() -> None:
    model, _ = prepared()
    with pytest.raises(MismatchError, match="already"):
        Gradual(target=Ratio(ratio=0.5)).operate(model, BENCH)
    normed = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)), nn.LSTM(2, 2))
    with pytest.raises(RecipeError, match=r"named by '0\.weight'"):
        Gradual(target=Ratio(ratio=0.5), layers=["0.weight"]).operate(normed, BENCH)
    with pytest.raises(MismatchError, match=r"'1\.weight_ih_l0' cannot be pruned gradually: a recurrent layer"):
        Gradual(target=Ratio(ratio=0.5), layers=["1"]).operate(normed, BENCH)
    with pytest.raises(MismatchError, match="nothing is left to prune: 0 is not pruned: its weights are computed"):
        Gradual(target=Ratio(ratio=0.5)).operate(normed, BENCH)
