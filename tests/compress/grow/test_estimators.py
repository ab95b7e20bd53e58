"""The estimators: scikit-learn's own checks, polynomials that are known, files, and the way into a recipe."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_breast_cancer, load_iris
from sklearn.utils.estimator_checks import check_estimator

from limbeck.bridges.onnx_runtime import run, session
from limbeck.compress.grow import GMDHClassifier, GMDHRegressor
from limbeck.core.errors import ArtifactError, DataError, RecipeError
from limbeck.core.knowledge import Reads
from limbeck.core.lookup import build

NOT_HERE = {"check_array_api_input", "check_regressor_data_not_an_array", "check_classifier_data_not_an_array"}
"""What scikit-learn skips without pandas and without an environment variable."""


@pytest.mark.parametrize("estimator", [GMDHRegressor(), GMDHClassifier()], ids=["regressor", "classifier"])
def test_scikit_learns_own_checks(estimator: Any) -> None:
    found = check_estimator(estimator, on_skip=None, on_fail="raise")
    assert len(found) > 40
    assert {one["check_name"] for one in found if one["status"] != "passed"} <= NOT_HERE


def quadratic(x: np.ndarray) -> np.ndarray:
    return 1 + 2 * x[:, 1] - 3 * x[:, 4] + 0.5 * x[:, 1] ** 2 - x[:, 4] ** 2 + 4 * x[:, 1] * x[:, 4]


def test_a_quadratic_is_found_in_one_layer_and_useless_inputs_are_dropped() -> None:
    draw = np.random.default_rng(0)
    x, other = draw.normal(size=(60, 7)) * 50 + 1000, draw.normal(size=(20, 7)) * 50 + 1000
    found = GMDHRegressor(margin=None).fit(x, quadratic(x))
    assert (found.depth_, found.network_.units, found.inputs_.tolist()) == (1, 1, [1, 4])
    np.testing.assert_allclose(found.predict(other), quadratic(other), rtol=1e-8)
    assert found.score(other, quadratic(other)) == pytest.approx(1)


def test_a_column_that_never_changes_and_one_input_alone() -> None:
    draw = np.random.default_rng(0)
    x = np.stack([np.full(50, 7.0), draw.normal(size=50)], axis=1)
    found = GMDHRegressor().fit(x, x[:, 1] ** 2)
    assert found.inputs_.tolist() == [1] and found.score(x, x[:, 1] ** 2) > 0.999
    nothing = GMDHRegressor().fit(x[:, :1], x[:, 1])
    assert nothing.depth_ == 0 and np.ptp(nothing.predict(x[:, :1])) == 0


def test_a_margin_holds_what_is_answered() -> None:
    x = np.linspace(-1, 1, 60)[:, None]
    far = np.array([[100.0]])
    y = x[:, 0] ** 2
    assert GMDHRegressor(margin=0.1).fit(x, y).predict(far)[0] == pytest.approx(y.max() + 0.1 * np.ptp(y), rel=0.05)
    assert GMDHRegressor(margin=None).fit(x, y).predict(far)[0] == pytest.approx(10_000)


def test_seeds_draw_the_judging_rows() -> None:
    x, y = load_iris(return_X_y=True)
    once, again, other = (GMDHClassifier(random_state=seed).fit(x, y).predict_proba(x) for seed in (0, 0, 1))
    assert np.array_equal(once, again) and not np.array_equal(once, other)


def fitted() -> dict[str, Any]:
    draw = np.random.default_rng(0)
    numbers = draw.normal(size=(120, 4))
    iris, cancer = load_iris(return_X_y=True), load_breast_cancer(return_X_y=True)
    return {
        "numbers": (GMDHRegressor().fit(numbers, np.sin(numbers[:, 0]) * numbers[:, 1]), numbers),
        "free": (GMDHRegressor(margin=None, depth=2).fit(numbers, numbers[:, 0] * numbers[:, 1] + numbers[:, 2]), numbers),
        "constant": (GMDHRegressor().fit(numbers, np.full(120, 3.0)), numbers),
        "three": (GMDHClassifier().fit(iris[0], np.array(["a", "b", "c"])[iris[1]]), iris[0]),
        "two": (GMDHClassifier(depth=3, units=4).fit(cancer[0][:, :8], cancer[1]), cancer[0][:, :8]),
    }


FITTED = fitted()
every = pytest.mark.parametrize("name", list(FITTED))


def said(model: Any, rows: np.ndarray) -> np.ndarray:
    return model.predict_proba(rows) if isinstance(model, GMDHClassifier) else model.predict(rows)[:, None]


@every
def test_written_and_read_it_says_the_same(name: str) -> None:
    model, rows = FITTED[name]
    again = type(model).from_dict(json.loads(json.dumps(model.to_dict())))
    np.testing.assert_array_equal(said(again, rows), said(model, rows))
    np.testing.assert_array_equal(again.predict(rows), model.predict(rows))
    assert again.get_params() == model.get_params() and again.depth_ == model.depth_ and again.criterion_ == model.criterion_
    with pytest.raises(ValueError, match="features"):
        again.predict(rows[:, :2])


@every
def test_its_onnx_file_says_the_same(name: str) -> None:
    model, rows = FITTED[name]
    near = rows.astype(np.float32)
    file = model.graph()
    assert file == model.graph()
    found = run(session(file), torch.from_numpy(near)).numpy()
    wanted = said(model, near.astype(np.float64))
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6)


def test_probabilities_are_those_of_the_classes() -> None:
    model, rows = FITTED["three"]
    p = model.predict_proba(rows)
    np.testing.assert_allclose(p.sum(axis=1), 1)
    assert model.classes_.tolist() == ["a", "b", "c"] and model.score(rows, np.array(["a", "b", "c"])[load_iris().target]) > 0.93
    assert len(FITTED["two"][0].networks_) == 1 and len(model.networks_) == 3


def test_what_was_not_written_by_it_is_refused() -> None:
    regressor, classifier = FITTED["numbers"][0].to_dict(), FITTED["three"][0].to_dict()
    with pytest.raises(ArtifactError, match=r"GMDHClassifier\.from_dict takes what its to_dict wrote"):
        GMDHClassifier.from_dict(regressor)
    with pytest.raises(ArtifactError, match="format 1, not list"):
        GMDHRegressor.from_dict([])
    with pytest.raises(ArtifactError, match="write it again"):
        GMDHRegressor.from_dict(regressor | {"options": {"leaves": 3}})
    with pytest.raises(ArtifactError, match="do not fit together"):
        GMDHClassifier.from_dict(classifier | {"networks": classifier["networks"][:2]})
    with pytest.raises(ArtifactError, match="write it again"):
        GMDHClassifier.from_dict(classifier | {"slope": "steep"})


def test_bad_input_has_one_line() -> None:
    x, y = load_iris(return_X_y=True)
    with pytest.raises(DataError, match="every row is of one class, 0"):
        GMDHClassifier().fit(x[:50], y[:50])
    with pytest.raises(DataError, match="one row alone"):
        GMDHClassifier().fit(x[::30], np.arange(5))
    with pytest.raises(RecipeError, match="units is 0"):
        GMDHRegressor(units=0).fit(x, y)
    with pytest.raises(RecipeError, match=r"validation is 1\.5"):
        GMDHRegressor(validation=1.5).fit(x, y)
    with pytest.raises(RecipeError, match="margin is nan"):
        GMDHRegressor(margin=float("nan")).fit(x, y)
    with pytest.raises(ValueError, match="NaN"):
        GMDHRegressor().fit(np.where(x > 5, np.nan, x), y)


def test_it_is_a_black_box_teacher(tmp_path: Path) -> None:
    x, y = load_iris(return_X_y=True)
    rows = [",".join([*map(str, row), "abc"[label]]) for row, label in zip(x, y, strict=True)]
    (tmp_path / "iris.csv").write_text("\n".join(["one,two,three,four,class", *rows]))
    task = build("tasks", "table", {"data": "csv", "root": str(tmp_path / "iris.csv"), "target": "class"})
    source = {"kind": "fitted", "estimator": "python:limbeck.compress.grow:GMDHClassifier", "options": {"units": 3, "depth": 2}}
    teacher = build("teachers", "blackbox", {"source": source})
    teacher.prepare(Reads(outputs=frozenset({"main"})), task)
    batch = next(iter(task.loader("test", batch_size=64).batches(0)))
    logits = teacher(batch).outputs["main"].logits
    assert logits.shape == (len(batch["label"]), 3) and float((logits.argmax(1) == batch["label"]).float().mean()) > 0.8
