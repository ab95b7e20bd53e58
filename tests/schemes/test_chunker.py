"""The sequence chunker: both losses by a naive loop, who learns from what, and that it carries a symbol over a lag that its network alone cannot."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tests.watched import Watched, press
from torch import Tensor, nn

from limbeck.core.errors import DataError, Interrupted, MismatchError, RecipeError
from limbeck.core.events import silent
from limbeck.core.lookup import build
from limbeck.core.task import Batch, Task
from limbeck.engine.loop import Work, fit
from limbeck.engine.plan import Training
from limbeck.engine.runtime import Runtime
from limbeck.pipeline.recipe import load_recipe
from limbeck.pipeline.run import run_recipe
from limbeck.schemes.chunker import Chunker

C, T, N = 5, 7, 6
SUPERVISED = build("objectives", "supervised", {})


def net(width: int = 4, classes: int = C, inputs: int = C) -> nn.Module:
    return build("models", "recurrent", {"width": width}, (T, inputs), classes)


def made(**options: Any) -> Chunker:
    torch.manual_seed(0)
    return Chunker(net(), None, [SUPERVISED], **options)


@pytest.fixture
def symbols() -> Tensor:
    """[N, T + 1]."""
    return torch.randint(C, (N, T + 1), generator=torch.Generator().manual_seed(3))


def batch_of(symbols: Tensor) -> Batch:
    return {"input": nn.functional.one_hot(symbols[:, :-1], C).float(), "label": symbols[:, -1]}


def sharpened(scheme: Chunker) -> Chunker:
    """Weights at which some symbols are expected and others are not."""
    with torch.no_grad():
        scheme.student.head.weight.mul_(12)
    return scheme.double()


def walk(model: Any, x: list[Tensor], window: int) -> list[Tensor]:
    """The states of a network over a list of steps `[D]`, one at a time, cut off before each step that is a multiple of `window`."""
    w, b, u = model.layer1.input.weight, model.layer1.input.bias, model.layer1.state.weight
    h, found = torch.zeros(u.shape[0], dtype=torch.float64), []
    for t, one in enumerate(x):
        h = torch.tanh(w @ one + b + u @ (h.detach() if t % window == 0 else h))
        found.append(h)
    return found


def hot(symbol: Tensor, *more: float) -> Tensor:
    return torch.tensor([*(float(c == symbol) for c in range(C)), *more], dtype=torch.float64)


def naive(scheme: Chunker, symbols: Tensor, window: int, threshold: float, weight: float) -> tuple[Tensor, Tensor, int]:
    """The student's loss, the chunker's, and how many symbols it was shown; one sequence, one step at a time."""
    student, chunker = scheme.student, scheme.chunker
    ours, theirs, shown = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64), 0
    for s in symbols:
        states = walk(student, [hot(one) for one in s[:-1]], window)
        said = [(student.head.weight @ h + student.head.bias).log_softmax(0)[s[t + 1]] for t, h in enumerate(states)]
        unexpected = [t for t in range(T + 1) if t == 0 or said[t - 1].exp() < threshold]
        shown += len(unexpected)
        fed = [hot(s[t], (t - unexpected[max(j - 1, 0)]) / T) for j, t in enumerate(unexpected)]
        chunks = walk(chunker, fed, window)
        guesses = [-(chunker.head.weight @ chunks[j] + chunker.head.bias).log_softmax(0)[s[t]] for j, t in enumerate(unexpected[1:])]
        theirs = theirs + (torch.stack(guesses).mean() if guesses else 0 * chunks[0].sum())
        for t, h in enumerate(states):
            held = chunks[sum(event <= t for event in unexpected) - 1].detach()
            missed = (scheme.state.weight @ h + scheme.state.bias - held).square().mean()
            ours = ours + (-said[t] + weight * missed) / T
    return ours, theirs, shown


@pytest.mark.parametrize("window", [1, 3, 100])
def test_both_losses_and_their_gradients_are_those_of_a_naive_loop(window: int, symbols: Tensor) -> None:
    scheme = sharpened(made(window=window, threshold=0.4, weight=0.7))
    ours, theirs, shown = naive(scheme, symbols, window, 0.4, 0.7)
    assert N < shown < N * (T + 1), "some are expected and some are not"
    players = scheme.players()
    found, chunker = scheme(batch_of(symbols)), scheme(batch_of(symbols), "chunker")
    assert found.count == chunker.count == N
    assert found.parts["unexpected"] == shown
    torch.testing.assert_close(found.parts["next"] + 0.7 * found.parts["state"], found.sums["student"].detach(), check_dtype=False)
    for loss, expected, player in ((found.sums["student"], ours, "student"), (chunker.sums["chunker"], theirs, "chunker")):
        torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6, check_dtype=False)  # the cross-entropy is taken in float32
        wants = torch.autograd.grad(expected, players[player])
        for got, want in zip(torch.autograd.grad(loss, players[player]), wants, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_a_phase_costs_its_own_player_alone(symbols: Tensor) -> None:
    scheme = made()
    players = scheme.players()
    assert list(scheme.phases) == list(scheme.players())[::-1] == ["chunker", "student"]
    assert sum(len(several) for several in players.values()) == len(list(scheme.parameters()))
    for phase in scheme.phases:
        scheme(batch_of(symbols), phase).loss.backward()
        got = {id(one) for one in scheme.parameters() if one.grad is not None}
        assert got == {id(one) for one in players[phase]}
        scheme.zero_grad(set_to_none=True)


def test_where_all_is_expected_the_chunker_has_nothing_to_learn(symbols: Tensor) -> None:
    scheme = made(threshold=1e-30)
    assert scheme(batch_of(symbols)).parts["unexpected"] == N
    loss = scheme(batch_of(symbols), "chunker").loss
    loss.backward()
    assert loss == 0 and all(not one.grad.any() for one in scheme.players()["chunker"] if one.grad is not None)


def test_alone_is_the_same_network_without_a_chunker(symbols: Tensor) -> None:
    alone, taught = made(chunk=False), made()
    assert alone.phases == ("student",) and alone.players().keys() == {"student"}
    assert all(a.equal(b) for a, b in zip(alone.student.parameters(), taught.student.parameters(), strict=True))
    assert alone.players()["student"] == list(alone.parameters())
    assert alone(batch_of(symbols)).loss.item() == pytest.approx((taught(batch_of(symbols)).parts["next"] / N).item())
    assert alone.shipped()["student"] is alone.student and taught.shipped().keys() == {"student"}


def test_what_cannot_be_meant_is_refused(symbols: Tensor) -> None:
    for options, told in (({"window": 0}, "window is 0"), ({"threshold": 0.0}, "threshold is 0"), ({"threshold": 1.5}, "threshold is 1.5"),
                          ({"weight": 0.0}, "weight is 0"), ({"weight": float("nan")}, "weight is nan"), ({"width": 0}, "width is 0")):  # fmt: skip
        with pytest.raises(RecipeError, match=told):
            made(**options)
    with pytest.raises(MismatchError, match="learns beside it"):
        Chunker(net(), net(), [SUPERVISED])
    with pytest.raises(RecipeError, match="leave objectives out"):
        Chunker(net(), None, [SUPERVISED, build("objectives", "response.kd", {})])
    with pytest.raises(RecipeError, match="leave objectives out"):
        Chunker(net(), None, [0.5 * SUPERVISED])
    with pytest.raises(MismatchError, match="Linear is none"):
        Chunker(nn.Linear(C, C), None, [SUPERVISED])
    with pytest.raises(MismatchError, match="reads 3 numbers a step and predicts 5 classes"):
        Chunker(net(inputs=3), None, [SUPERVISED])
    with pytest.raises(RecipeError, match="no phase 'chunkr'; did you mean 'chunker'"):
        made()(batch_of(symbols), "chunkr")


def test_batches_that_are_no_symbols_are_refused(symbols: Tensor) -> None:
    good = batch_of(symbols)
    x = good["input"]
    with pytest.raises(MismatchError, match=r"one-hot symbols \[N, T, 5\]"):
        made(example={**good, "input": x[..., :4]})
    for bad in (2 * x, x * 0, x.where(x == 1, torch.nan), x + x.roll(1, 2)):
        with pytest.raises(DataError, match="not one-hot"):
            made(example={**good, "input": bad})
    with pytest.raises(DataError, match="label 5 is out of range"):
        made(example={**good, "label": torch.full((N,), C)})
    with pytest.raises(MismatchError, match="there is none"):
        made(example={"input": x})
    with pytest.raises(MismatchError, match=r"float32 \[6\]"):
        made(example={**good, "label": good["label"].float()})


def test_stopped_within_an_epoch_and_resumed_it_ends_the_same_to_the_bit(tmp_path: Path) -> None:
    task: Task = build("tasks", "lag", {"lag": 4, "examples": 48, "validation": 8, "test": 4})
    plan = Training.model_validate({"epochs": 3, "batch_size": 8, "optimizer": {"kind": "adam", "lr": 0.01}})

    def run(folder: Path | None, stop: int = 0) -> tuple[dict[str, Tensor], Any]:
        torch.manual_seed(0)
        loader = task.loader("train", batch_size=8)
        student = build("models", "recurrent", {"width": 6}, task.facts().in_shape, task.facts().classes)
        scheme = Chunker(student, None, [SUPERVISED], task, next(iter(loader.batches(0))), task.facts())
        work = None if folder is None else Work(folder, folder / "logs")
        fitted = fit(scheme, task, Watched(loader, press(stop)), plan, Runtime(), work=work, listener=silent)
        return dict(scheme.state_dict()), fitted

    whole, told = run(None)
    with pytest.raises(Interrupted):
        run(tmp_path, stop=9)
    resumed, retold = run(tmp_path)
    assert whole.keys() == resumed.keys() and all(whole[name].equal(resumed[name]) for name in whole)
    assert retold.history == told.history
    assert {"next", "state", "unexpected", "chunker_loss"} <= told.history[0]["parts"].keys()


def test_it_carries_a_symbol_over_a_lag_that_the_same_network_alone_cannot() -> None:
    task: Task = build("tasks", "lag", {"lag": 8, "examples": 100, "validation": 0, "test": 10})
    plan = Training.model_validate({"epochs": 20, "batch_size": 4, "optimizer": {"kind": "adam", "lr": 0.01}})
    test = next(iter(task.loader("test", batch_size=10).batches(0)))
    reached: dict[bool, float] = {}
    for chunk in (False, True):
        torch.manual_seed(0)
        student = build("models", "recurrent", {"width": 16}, task.facts().in_shape, task.facts().classes)
        scheme = Chunker(student, None, [SUPERVISED], task, None, task.facts(), window=1, weight=5.0, chunk=chunk)
        history = fit(scheme, task, task.loader("train", batch_size=4), plan, Runtime(), listener=silent).history
        with torch.no_grad():
            reached[chunk] = task.scores(task.forward(scheme.student, test), test)["accuracy"].mean().item()
    assert reached == {False: 0.5, True: 1.0}
    assert history[0]["parts"]["unexpected"] > 1.9 and history[-1]["parts"]["unexpected"] < 1.1  # the last symbol is foreseen, the first cannot be


def test_the_recipe_is_one(tmp_path: Path) -> None:
    tree = yaml.safe_load((Path(__file__).parents[2] / "recipes" / "chunker.yaml").read_text())
    tree["task"] |= {"examples": 8, "validation": 2, "test": 2}
    for stage in tree["stages"].values():
        stage["epochs"] = 1
    done = run_recipe(load_recipe(tree), out=tmp_path, listener=silent).stages
    assert done["alone"]["metrics"]["parameters"] == done["student"]["metrics"]["parameters"]
