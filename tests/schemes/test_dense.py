"""Dense guidance: the loss of a loop, teachers that stay away by the step alone, and a resumed run equal to the bit."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.watched import Watched, press
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.core.errors import Interrupted, MismatchError, RecipeError
from limbeck.core.events import silent
from limbeck.core.lookup import build
from limbeck.engine.loop import Work, fit
from limbeck.engine.plan import Training
from limbeck.engine.runtime import Runtime
from limbeck.schemes._each import Roll
from limbeck.schemes.dense import Dense


def net(*widths: int, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(widths[0], widths[1]), nn.ReLU(), nn.Linear(widths[1], widths[2]))


def objective(kind: str, **options: Any) -> Any:
    return build("objectives", kind, options)


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    made = torch.Generator().manual_seed(7)
    return torch.randn(6, 4, generator=made), torch.randint(0, 3, (6,), generator=made)


def teachers(count: int = 3) -> list[nn.Module]:
    return [net(4, 5 + index, 3, seed=index + 1) for index in range(count)]


def scheme(batch: Any, *terms: Any, drop: float = 0.0, models: list[nn.Module] | None = None) -> Dense:
    ensemble = build("teachers", "ensemble", {}, models or teachers())
    torch.manual_seed(11)
    told = [*(terms or [0.9 * objective("response.kd", temperature=4.0)]), 0.1 * objective("supervised")]
    return Dense(net(4, 5, 3), ensemble, told, example=batch, drop=drop)


def test_the_loss_is_that_of_a_loop_over_teachers(batch: Any) -> None:
    models = teachers()
    kd = scheme(batch, models=models)
    x, y = batch
    z = net(4, 5, 3)(x)
    each = [16 * F.kl_div((z / 4).log_softmax(-1), (model(x) / 4).softmax(-1), reduction="none").sum(-1) for model in models]
    expected = 0.9 * sum(each, torch.zeros(6)) / 3 + 0.1 * F.cross_entropy(z, y, reduction="none")
    found = kd(batch)
    torch.testing.assert_close(found.loss, expected.mean())
    assert set(found.parts) == {"kd", "supervised"}
    torch.testing.assert_close(found.parts["kd"], sum(each, torch.zeros(6)).sum() / 3)


def test_teachers_one_by_one_are_not_their_mean(batch: Any) -> None:
    mean = build("schemes", "offline", {}, net(4, 5, 3), build("teachers", "ensemble", {}, teachers()), [objective("response.kd", temperature=4.0)])
    assert (scheme(batch)(batch).parts["kd"] / 6 - mean(batch).loss).abs() > 1e-3


def test_those_who_stay_away_say_nothing(batch: Any) -> None:
    models = teachers()
    kd = scheme(batch, drop=0.6, models=models)
    x, _ = batch
    seen: set[tuple[int, ...]] = set()
    for _ in range(12):
        present = kd.roll.present()
        assert present == kd.roll.present(), "the same throughout a step"
        z = net(4, 5, 3)(x)
        each = [16 * F.kl_div((z / 4).log_softmax(-1), (models[one](x) / 4).softmax(-1), reduction="sum") for one in present]
        torch.testing.assert_close(kd(batch).parts["kd"], sum(each, torch.zeros(())) / 3)
        seen.add(tuple(present))
        kd.after_step()
    assert len(seen) > 2
    kd.eval()
    assert kd.roll.present() == [0, 1, 2]


def test_each_stays_away_with_its_probability_and_one_always_teaches() -> None:
    torch.manual_seed(0)
    roll, steps = Roll(4, 0.4), 4000
    counts, together = torch.zeros(4), 0
    for _ in range(steps):
        present = roll.present()
        assert present
        counts[present] += 1
        together += len({0, 1} & {*present}) == 2
        roll.advance()
    alone = 0.4**4 / 4  # the one that stays although all drew to go
    torch.testing.assert_close(counts / steps, torch.full((4,), 0.6 + alone), atol=0.03, rtol=0)
    assert together / steps == pytest.approx(0.36, abs=0.03)


def test_who_is_there_depends_on_the_seed_and_the_step_alone_and_resumes() -> None:
    def played(roll: Roll, steps: int = 20) -> list[list[int]]:
        found = []
        for _ in range(steps):
            found.append(roll.present())
            torch.rand(3)  # what else is drawn does not matter
            roll.advance()
        return found

    torch.manual_seed(5)
    one = Roll(3, 0.5)
    torch.manual_seed(5)
    other, another = Roll(3, 0.5), Roll(3, 0.5)
    whole = played(one)
    assert whole[:10] == played(other, 10) and played(another) != whole
    resumed = Roll(3, 0.5)
    resumed.load_state_dict(other.state_dict())
    assert played(resumed, 10) == whole[10:]


def test_each_teacher_has_its_own_projector_and_layers(batch: Any) -> None:
    kd = scheme(batch, 0.5 * objective("feature.fitnet", layers={"1": "1"}), objective("response.kd"))
    shapes = [tuple(one.shape) for name, one in kd.named_parameters() if "projector" in name and one.ndim > 1]
    assert shapes == [(6, 5), (7, 5)]  # the first teacher's layer has the student's width
    assert set(kd(batch).parts) == {"fitnet", "kd", "supervised"}
    kd(batch).loss.backward()
    assert all(one.grad is not None for one in kd.players()["student"])
    assert kd.phases == ("student",) and kd.optimizers() == {} and list(kd.shipped()) == ["student"]


def test_what_several_teachers_cannot_teach_is_refused(batch: Any) -> None:
    for kind, options, message in (
        ("adversarial.logit_discriminator", {}, "the objective logit_discriminator plays against one opponent, and there are 3 teachers"),
        ("feature.simkd", {}, "the objective simkd puts a part of one teacher into the student"),
        ("attention.at", {}, r"the objective at is to pair its layers with 3 teachers': name them, layers: \{layer3: layer3\}"),
    ):
        with pytest.raises(RecipeError, match=message):
            scheme(batch, objective(kind, **options))
    with pytest.raises(RecipeError, match="drop is 1; it is a probability"):
        scheme(batch, drop=1.0)
    told = [objective("response.kd")]
    with pytest.raises(MismatchError, match="speaks with a single voice"):
        Dense(net(4, 5, 3), build("teachers", "frozen", {}, net(4, 5, 3, seed=1)), told, example=batch)
    with pytest.raises(MismatchError, match="there is none: take"):
        Dense(net(4, 5, 3), None, told, example=batch)
    with pytest.raises(MismatchError, match="give the scheme `example=` a batch"):
        Dense(net(4, 5, 3), build("teachers", "ensemble", {}, teachers()), told)
    with pytest.raises(RecipeError, match="no layer '7'"):
        scheme(batch, objective("feature.fitnet", layers={"1": "7"}))


def test_a_copy_plays_by_itself(batch: Any) -> None:
    kd = scheme(batch, drop=0.5)
    copied = copy.deepcopy(kd)
    for _ in range(5):
        copied.after_step()
    assert [int(one) for one in copied.roll.get_extra_state()][1] == 5 and [int(one) for one in kd.roll.get_extra_state()][1] == 0
    torch.testing.assert_close(kd(batch).loss, scheme(batch, drop=0.5)(batch).loss)


@pytest.mark.parametrize("weights", [None, "learned"])
def test_a_stopped_run_ends_as_one_that_never_stopped(weights: str | None, tmp_path: Path) -> None:
    task = build("tasks", "image", {"data": "digits", "subset": 96})
    plan = Training.model_validate({"epochs": 3, "batch_size": 16, "optimizer": {"kind": "sgd", "lr": 0.05}})

    def model(width: int, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return build("models", "mlp", {"widths": [width]}, in_shape=(1, 8, 8), classes=10)

    def run(folder: Path | None, stop: int = 0) -> dict[str, Tensor]:
        ensemble = build("teachers", "ensemble", {"weights": weights}, [model(16, 1), model(12, 2), model(9, 3)])
        student, terms = model(4, 0), [objective("response.kd"), objective("supervised")]
        loader = task.loader("train", batch_size=16)
        example = next(loader.batches(0))
        torch.manual_seed(7)
        kind, options = ("dense", {"drop": 0.5}) if weights is None else ("offline", {})
        made = build("schemes", kind, options, student, ensemble, terms, task, example, task.facts())
        work = None if folder is None else Work(folder, folder / "logs")
        fit(made, task, Watched(loader, press(stop)), plan, Runtime(), work=work, listener=silent)
        return dict(made.state_dict())

    whole = run(None)
    with pytest.raises(Interrupted):
        run(tmp_path, 9)
    resumed = run(tmp_path)
    assert whole.keys() == resumed.keys() and all(torch.equal(whole[name], resumed[name]) for name in whole)
    if weights == "learned":
        assert whole["teacher.gate.logarithms"].abs().max() > 0.01
