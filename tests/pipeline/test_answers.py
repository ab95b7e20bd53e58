"""Tasks that answer with something else than one class, through `distill` and through a recipe: their own figures, and none about classes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from limbeck import Artifact, Classify, distill, predict
from limbeck.core.errors import DataError, MismatchError, RecipeError
from limbeck.core.files import read_json
from limbeck.core.knowledge import Dense, Knowledge
from limbeck.core.task import Batch, Facts, Task
from limbeck.pipeline.modules import load
from limbeck.report.run import run
from limbeck.tasks.multilabel import MultiLabel
from limbeck.tasks.regression import Regression

MADE = np.random.default_rng(0)
W = MADE.normal(size=(6, 3))
X = MADE.normal(size=(96, 6)).astype(np.float32)
FIDELITY = {"accuracy", "errors", "nll", "ece", "agreement", "kl_to_teacher"}
OWN = {
    "multilabel": {"test_lrap", "test_f1", "test_exact_match", "test_loss", "test_mean_average_precision", "test_micro_f1", "test_macro_f1"},
    "regression": {"test_mse", "test_mae", "test_loss", "test_rmse", "test_r2"},
}


def truth(kind: str, x: Any) -> Any:
    return (x @ W > 0).astype(np.int64) if kind == "multilabel" else (x @ W)[:, 0]


def task(kind: str) -> Task:
    cut = {"train": X[:64], "validation": X[64:80], "test": X[80:]}
    loaders: Any = {split: [(torch.tensor(x), torch.tensor(truth(kind, x)).float())] for split, x in cut.items()}
    return MultiLabel(loaders) if kind == "multilabel" else Regression(loaders)


def models(kind: str) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    width = 3 if kind == "multilabel" else 1
    return nn.Linear(6, width), nn.Linear(6, width)


@pytest.mark.parametrize("kind", ["multilabel", "regression"])
@pytest.mark.parametrize("kept", [False, True])
def test_distill_measures_the_task_s_own_scores(kind: str, kept: bool, tmp_path: Path) -> None:
    teacher, student = models(kind)
    mine, out = task(kind), tmp_path / "out" if kept else None
    done = distill(teacher, student, mine, epochs=3, out=out)
    assert OWN[kind] <= done.metrics.keys() and not FIDELITY & done.metrics.keys() and done.metrics["examples"] == 16
    batch = next(iter(mine.loader("test", batch_size=16).batches(0)))
    scores = mine.scores(mine.forward(student, batch), batch)
    assert {name: done.metrics[f"test_{name}"] for name in scores} == pytest.approx(
        {name: float(value.detach().mean()) for name, value in scores.items()}, rel=1e-5
    )
    if kind == "regression":
        assert done.metrics["test_rmse"] == pytest.approx(done.metrics["test_mse"] ** 0.5)
    assert done.metrics["best_epoch"] >= 1 and done.metrics[f"validation_{mine.metric}"] is not None
    if out is not None:
        assert done.artifact is not None and done.artifact.spec["link"] == mine.forward(student, batch).main.link
        again = load(out / "student", models(kind)[1])
        assert torch.equal(again(batch["input"]), student(batch["input"]))
        assert not FIDELITY & Artifact.open(out / "student").metrics.keys()


def test_the_objective_is_that_of_the_answers() -> None:
    for kind, name in (("multilabel", "BernoulliKD"), ("regression", "RegressionKD")):
        teacher, student = models(kind)
        wished = list(distill(teacher, student, task(kind), epochs=1).history[0]["parts"])
        assert any(name.lower() == one.replace("_", "").rpartition(".")[2].lower() for one in wished), wished


def test_a_task_has_its_own_splits() -> None:
    with pytest.raises(RecipeError, match="data is a Task, which has its own validation"):
        distill(*models("regression"), task("regression"), test=[(torch.zeros(2, 6), torch.zeros(2))])


class Binary(Task):
    """A user's own task with an answer for each example and labels `[N]`."""

    metric = "right"

    def __init__(self) -> None:
        self._plain = Classify({split: [(torch.tensor(X), torch.tensor(X[:, 0] > 0).long())] for split in ("train", "test")}, classes=2)  # pyright: ignore[reportArgumentType]

    def facts(self) -> Facts:
        return Facts((6,), 1, ("yes",), 96)

    def fingerprint(self) -> str:
        return "binary"

    def loader(self, split: Any, **options: Any) -> Any:
        return self._plain.loader(split, **options)

    def splits(self) -> Any:
        return self._plain.splits()

    def batch(self, raw: object) -> Batch:
        return self._plain.batch(raw)

    def forward(self, model: nn.Module, batch: Batch) -> Knowledge:
        return Knowledge({"main": Dense(model(batch["input"]), "bernoulli")})

    def loss(self, knowledge: Knowledge, batch: Batch) -> Tensor:
        return nn.functional.binary_cross_entropy_with_logits(knowledge.main.logits[:, 0], batch["label"].float(), reduction="none")

    def scores(self, knowledge: Knowledge, batch: Batch) -> dict[str, Tensor]:
        return {"right": ((knowledge.main.logits[:, 0] > 0) == (batch["label"] > 0)).float()}


def test_labels_of_another_shape_are_left_to_their_task(tmp_path: Path) -> None:
    done = distill(nn.Linear(6, 1), nn.Linear(6, 1), Binary(), epochs=1, out=tmp_path)
    assert {name for name in done.metrics if name.startswith("test_")} == {"test_right"}


def test_answers_that_are_not_finite_are_refused() -> None:
    teacher, student = models("regression")
    mine = Regression({"train": [(torch.tensor(X), torch.zeros(96))], "test": [(torch.full((4, 6), 3e38), torch.zeros(4))]})
    torch.nn.init.constant_(student.weight, 9.0)  # pyright: ignore[reportArgumentType, reportAttributeAccessIssue]
    with pytest.raises(DataError, match="not finite for 4 of 4 test examples"):
        distill(teacher, student, mine, epochs=1, training={"optimizer": {"kind": "sgd", "lr": 1e-6}})


@pytest.mark.parametrize("kind", ["multilabel", "regression"])
def test_a_recipe_runs_to_its_report(kind: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x_train=X[:80], y_train=truth(kind, X[:80]), x_test=X[80:], y_test=truth(kind, X[80:]))
    train: dict[str, Any] = {"model": {"kind": "mlp", "widths": [8]}, "epochs": 1, "batch_size": 16}
    objective = "response.bernoulli_kd" if kind == "multilabel" else "response.regression_kd"
    recipe = {
        "name": "toy",
        "task": {"kind": kind, "root": str(tmp_path / "data.npz")},
        "stages": {
            "teacher": {"kind": "train", **train},
            "student": {
                "kind": "distill",
                "teacher": {"kind": "frozen", "of": "teacher"},
                **train,
                "objectives": [{"kind": objective}, {"kind": "supervised"}],
            },
            "shipped": {"kind": "export", "of": "student"},
            "int8": {"kind": "quantize", "of": "shipped", "method": {"kind": "static_int8", "examples": 64}, "min_agreement": 1.0, "min_sqnr_db": 1},
        },
        "measure": {"latency": False},
    }
    done = run(recipe, out=tmp_path / "out")
    for name in recipe["stages"]:
        metrics = read_json(done.out / "stages" / name / "metrics.json")
        assert OWN[kind] <= metrics.keys() and not (FIDELITY | {"parity_agreement"}) & metrics.keys()
    page = (done.out / "report.html").read_text()
    assert not (done.out / "fidelity.json").exists() and "was tested on" in page and "No test split was evaluated" not in page
    with pytest.raises(MismatchError, match="not one class of several"):
        predict(done.out / "stages" / "student", [tmp_path / "data.npz"])
