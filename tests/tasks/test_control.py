"""Control: what is played is a pure function of the seed, and a clone acts as its teacher."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from limbeck.bridges.gym import play, spaces
from limbeck.core.errors import DataError, MismatchError, RecipeError
from limbeck.core.events import silent
from limbeck.core.knowledge import Dense, Knowledge
from limbeck.pipeline.recipe import load_recipe
from limbeck.pipeline.run import run_recipe
from limbeck.tasks._linear_policy import greedy, searched
from limbeck.tasks.control import Control

ENV = "CartPole-v1"


@pytest.fixture(scope="module")
def task() -> Control:
    return Control(episodes=2, steps=300, test_episodes=1, trials=2)


def every(task: Control, split: Any = "train") -> dict[str, Tensor]:
    found = list(task.loader(split, batch_size=64, whole=True).batches(0))
    return {name: torch.cat([batch[name] for batch in found]) for name in found[0]}


def test_the_search_finds_a_policy_that_holds_out_and_finds_it_again() -> None:
    weights = searched(ENV, 1)
    assert weights.shape == (2, 4)
    assert weights.equal(searched(ENV, 1))
    assert play(ENV, greedy(weights), seed=77, episodes=3).returns.tolist() == [500.0] * 3


def test_what_is_played_follows_the_environment() -> None:
    played = play(ENV, lambda _seen, step: step % 2, seed=3, episodes=2)
    again = play(ENV, lambda _seen, step: step % 2, seed=3, episodes=2)
    assert all(a.equal(b) for a, b in zip(played, again, strict=True))
    inside = played.episode[1:] == played.episode[:-1]
    assert played.after[:-1][inside].equal(played.before[1:][inside])
    assert played.returns.tolist() == [float((played.episode == k).sum()) for k in (0, 1)]  # CartPole gives one point for each step
    assert len(play(ENV, lambda _seen, _step: 0, seed=3, steps=25).action) == 25
    assert spaces(ENV) == (4, 2, 500)


def test_a_demonstration_is_what_the_teacher_did_and_what_came_of_it(task: Control) -> None:
    found = every(task)
    assert task.facts().in_shape == (4,)
    assert task.facts().class_names == ("0", "1")
    assert found["transition"].shape == (len(found["id"]), 8)
    assert found["transition"][:, :4].equal(found["input"])
    assert [task.policy(seen, 0) for seen in found["input"]] == found["label"].tolist()


def test_one_s_own_transitions_are_random_actions_and_no_test() -> None:
    task = Control(show="transitions", steps=400)
    found = every(task)
    assert task.facts().in_shape == (8,)
    assert task.splits() == ("train", "validation")
    assert 0.4 < found["label"].float().mean() < 0.6
    assert "transition" not in found
    with pytest.raises(DataError, match="only learnt from"):
        task.loader("test", batch_size=4)
    assert task.outcome(lambda batch: Knowledge({"main": Dense(batch["input"][:, :2])})) == {}


def test_a_model_is_tried_out_in_the_same_episodes_as_its_teacher(task: Control) -> None:
    def teacher(batch: Any) -> Knowledge:
        return Knowledge({"main": Dense(nn.functional.one_hot(torch.tensor([task.policy(one, 0) for one in batch["input"]]), 2).float())})

    found = task.outcome(teacher)
    assert found["return_mean"] == found["teacher_return"] > 2 * found["random_return"]
    always = task.outcome(lambda batch: Knowledge({"main": Dense(torch.tensor([[1.0, 0.0]]).expand(len(batch["input"]), 2))}))
    assert always["return_mean"] < 12 < found["return_mean"]
    assert always["return_worst"] <= always["return_mean"]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"teacher": "best"}, "teacher is 'best'"),
        ({"show": "pixels"}, "show is 'pixels'"),
        ({"episodes": 0}, "episodes is 0"),
        ({"validation": 1.0}, "validation is 1"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_options_that_cannot_be_meant(how: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Control(**how)


def test_environments_that_do_not_fit() -> None:
    with pytest.raises(RecipeError, match=r"no environment 'CartPole-v9'; did you mean 'CartPole-v1'"):
        Control(env="CartPole-v9").facts()
    with pytest.raises(MismatchError, match="needs a vector of numbers, and actions counted from 0"):
        Control(env="Pendulum-v1").facts()


def test_a_policy_of_one_s_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_policy.py").write_text("def balance(seen):\n    return int(seen[2] + seen[3] > 0)\n\ndef odd(seen):\n    return 'left'\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = every(Control(teacher="python:my_policy:balance", episodes=2))
    assert found["label"].equal((found["input"][:, 2] + found["input"][:, 3] > 0).long())
    with pytest.raises(MismatchError, match="answers an observation with 'left'"):
        Control(teacher="python:my_policy:odd").facts()


def test_cloning_from_observations_alone_reads_no_action_of_the_teacher(tmp_path: Path) -> None:
    tree = {
        "name": "clone",
        "task": {"kind": "control", "episodes": 2, "test_episodes": 1, "trials": 2},
        "stages": {
            "student": {
                "kind": "train", "model": {"kind": "mlp", "widths": [16]}, "epochs": 10, "batch_size": 32, "select": "last",
                "optimizer": {"kind": "adam", "lr": 0.01}, "scheme": {"kind": "bco", "steps": 1000, "epochs": 10},
            }
        },
        "measure": {"latency": False},
    }  # fmt: skip
    recipe = load_recipe(tree)
    assert list(recipe.stages) == ["student-inverse", "student"]
    done = run_recipe(tree, out=tmp_path, listener=silent).stages
    assert done["student-inverse"]["metrics"]["validation_accuracy"] > 0.95
    assert done["student"]["metrics"]["return_mean"] > 3 * done["student"]["metrics"]["random_return"]
    tree["stages"]["student"]["objectives"] = [{"kind": "response.kd"}]  # pyright: ignore[reportArgumentType]
    with pytest.raises(RecipeError, match="brings its teacher and its target"):
        load_recipe(tree)
