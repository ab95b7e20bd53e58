"""Fitted trees as callables: which column is which class, weights, refusals; neighbours against a loop."""

import numpy as np
import pytest
import torch
from sklearn.ensemble import RandomForestClassifier
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

from limbeck.bridges import onnx_runtime
from limbeck.bridges.scikit_learn import Numbers, Probabilities, SelectedTrees, choose, nearest, tree_library
from limbeck.core.errors import DataError, MismatchError, RecipeError


def data(count: int = 120, classes: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    made = np.random.default_rng(seed)
    rows = made.normal(size=(count, 5)).astype(np.float32)
    return rows, np.digitize(rows[:, 0] + 0.3 * rows[:, 1], np.linspace(-0.6, 0.6, classes - 1))


def test_the_weighted_mean_of_probabilities_by_class() -> None:
    rows, labels = data()
    both = labels < 2
    models = [DecisionTreeClassifier(max_depth=3).fit(rows, labels), DecisionTreeClassifier(max_depth=2).fit(rows[both], labels[both])]
    found = Probabilities(models, 4, weights=[3, 1])(torch.from_numpy(rows))
    expected = np.zeros((len(rows), 4))
    expected[:, :3] = 0.75 * models[0].predict_proba(rows)
    expected[:, :2] += 0.25 * models[1].predict_proba(rows)
    assert found.dtype == torch.float32 and np.allclose(found.numpy(), expected, atol=1e-6)
    assert (found[:, 3] == 0).all()


def test_raw_rows_are_prepared_first() -> None:
    rows, labels = data()
    model = DecisionTreeClassifier(max_depth=3).fit(rows, labels)
    raw = [{"x": row} for row in rows]
    found = Probabilities([model], 3, prepare=lambda asked: torch.from_numpy(np.stack([one["x"] for one in asked])))(raw)
    assert np.allclose(found.numpy(), model.predict_proba(rows), atol=1e-6)


def test_numbers_are_a_column_each() -> None:
    rows, _ = data()
    one = DecisionTreeRegressor(max_depth=3).fit(rows, rows[:, 0])
    two = DecisionTreeRegressor(max_depth=3).fit(rows, rows[:, :2])
    assert np.allclose(Numbers(one)(rows).numpy()[:, 0], one.predict(rows), atol=1e-6)
    assert Numbers(two)(torch.from_numpy(rows)).shape == (len(rows), 2)


def test_what_cannot_answer_is_refused() -> None:
    rows, labels = data()
    fitted = DecisionTreeClassifier().fit(rows, labels)
    for models, weights, message in (
        ([], None, "give one for each"),
        ([fitted], [1.0, 2.0], "give one for each"),
        ([fitted], [0.0], "one above it"),
        ([DecisionTreeClassifier()], None, "was not fitted"),
        ([DecisionTreeRegressor().fit(rows, labels)], None, "gives no probabilities"),
        ([DecisionTreeClassifier().fit(rows, labels.astype(str))], None, "fit it on whole numbers"),
        ([DecisionTreeClassifier().fit(rows, labels + 1)], None, r"fit it on whole numbers 0\.\.2"),
    ):
        with pytest.raises(MismatchError, match=message):
            Probabilities(models, 3, weights=weights)
    with pytest.raises(MismatchError, match=r"rows are \[5\]"):
        Probabilities([fitted], 3)(rows[0])
    with pytest.raises(MismatchError, match="predicts nothing"):
        Numbers(object())


def test_the_chosen_ensemble_is_as_good_as_selection_says() -> None:
    rows, labels = data(200)
    library = [RandomForestClassifier(5, random_state=seed, max_depth=3).fit(rows[:120], labels[:120]) for seed in range(3)]
    asked, known = torch.from_numpy(rows[120:]), torch.from_numpy(labels[120:])
    ensemble, found = choose(library, asked, known, 3)
    said = ensemble(asked)[torch.arange(80), known].double()
    assert found.loss == pytest.approx(float(-said.clamp(min=1e-7).log().mean()), abs=1e-5)
    assert len(ensemble.models) == sum(weight > 0 for weight in found.weights)


@pytest.mark.parametrize("classes", [2, 3])
def test_the_graph_of_an_ensemble_says_what_it_says(classes: int) -> None:
    rows, labels = data(300, classes)
    few = labels < 2
    library = [model.fit(rows, labels) for model in tree_library(5, seed=0).values()] + [RandomForestClassifier(2).fit(rows[few], labels[few])]
    ensemble = Probabilities(library, classes + 1, weights=range(1, len(library) + 1))
    asked = np.concatenate([rows, data(200, classes, seed=1)[0]])
    said = onnx_runtime.run(onnx_runtime.session(ensemble.graph(5), threads=1), torch.from_numpy(asked))
    assert torch.allclose(said, ensemble(asked), atol=1e-5)
    with pytest.raises(MismatchError, match="DecisionTreeClassifier is no forest"):
        Probabilities([DecisionTreeClassifier().fit(rows, labels)], 3).graph(5)


def test_a_row_on_a_threshold_goes_the_same_way() -> None:
    rows = np.float32([[0.1], [0.3], [0.2], [0.7]])
    model = RandomForestClassifier(20, bootstrap=False, max_features=None).fit(rows, [0, 1, 0, 1])
    threshold = np.float32(model.estimators_[0].tree_.threshold[0])
    asked = np.float32([[threshold], [np.nextafter(threshold, np.float32(-1))], [np.nextafter(threshold, np.float32(1))]])
    ensemble = Probabilities([model], 2)
    assert torch.equal(onnx_runtime.run(onnx_runtime.session(ensemble.graph(1)), torch.from_numpy(asked)).argmax(1), ensemble(asked).argmax(1))


def test_the_estimator_is_one_of_scikit_learn_s_manner() -> None:
    rows, labels = data(150, classes=2)
    labels = labels * 2 + 3  # 3 and 5
    estimator = SelectedTrees(trees=3, held_out=0.2).set_params(random_state=1)
    assert estimator.get_params() == {"trees": 3, "held_out": 0.2, "random_state": 1, "n_jobs": 1}
    said = estimator.fit(rows, labels).predict_proba(rows)
    assert said.shape == (150, 2) and np.allclose(said.sum(1), 1, atol=1e-5)
    assert estimator.classes_.tolist() == [3, 5] and (estimator.predict(rows) == labels).mean() > 0.8
    assert np.array_equal(said, SelectedTrees(trees=3, held_out=0.2, random_state=1).fit(rows, labels).predict_proba(rows))
    assert len(tree_library(3, seed=0)) == len(estimator.selection_.weights)
    with pytest.raises(RecipeError, match="no option 'tree' for SelectedTrees; did you mean 'trees'"):
        estimator.set_params(tree=3)
    with pytest.raises(DataError, match="every row is of class"):
        SelectedTrees(trees=3).fit(rows, labels * 0)
    with pytest.raises(DataError, match="rows cannot be held out"):
        SelectedTrees(trees=3).fit(rows[:3], np.array([0, 0, 1]))
    with pytest.raises(RecipeError, match="held_out 1"):
        SelectedTrees(held_out=1.0).fit(rows, labels)


def test_the_nearest_other_point() -> None:
    points = torch.from_numpy(np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32))
    points[7] = points[3]
    apart = torch.cdist(points.double(), points.double()).fill_diagonal_(torch.inf)
    found = nearest(points)
    assert torch.equal(found, apart.argmin(1)) and (found[7], found[3]) == (3, 7)
    with pytest.raises(DataError, match="there is 1 example"):
        nearest(points[:1])
