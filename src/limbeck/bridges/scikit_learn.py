"""scikit-learn: fitted classifiers and regressors as callables, libraries of tree ensembles, nearest neighbours.

Shapes: N rows, F features, C classes, L models of a library.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from limbeck.core.errors import DataError, MismatchError, RecipeError, did_you_mean

from ._selection import Selection, selected
from ._tree_graph import tree_graph

__all__ = ["Numbers", "Probabilities", "SelectedTrees", "choose", "nearest", "tree_library"]

Rows = npt.NDArray[np.float32]


@runtime_checkable
class _Classifier(Protocol):
    classes_: Any

    def predict_proba(self, rows: Any) -> Any: ...


@runtime_checkable
class _Regressor(Protocol):
    def predict(self, rows: Any) -> Any: ...


class Probabilities:
    """Fitted classifiers as one callable: rows `[N, F]`, a tensor or an array, to the weighted mean of their probabilities `[N, C]`, float32.

    `models` were fitted on labels that are whole numbers 0..C-1, as tasks give them; a class that a model never saw has probability zero there. `weights` count
    models, and are brought to the sum one; `prepare` is applied to the rows first, so that a callable may take raw ones.

    Raises:
        MismatchError: a model that gives no probabilities, labels out of range, or weights that are not one for each model.
    """

    def __init__(self, models: Sequence[Any], classes: int, *, weights: Sequence[float] | None = None, prepare: Callable[[Any], Tensor] | None = None) -> None:
        share = np.ones(len(models)) if weights is None else np.asarray(weights, dtype=np.float64)
        if not len(models) or share.shape != (len(models),) or not np.isfinite(share).all() or share.min() < 0 or share.sum() <= 0:
            raise MismatchError(f"weights are {weights} for {len(models)} models: give one for each, none below zero, and one above it")
        for model in models:
            if not isinstance(model, _Classifier):
                raise MismatchError(f"{type(model).__name__} gives no probabilities, or was not fitted: it needs predict_proba and classes_")
            labels = np.asarray(model.classes_)
            if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= classes:
                raise MismatchError(
                    f"{type(model).__name__} was fitted on the labels {labels.tolist()}: fit it on whole numbers 0..{classes - 1}, as tasks give them"
                )
        kept = [(model, float(each)) for model, each in zip(models, share / share.sum(), strict=True) if each]
        self.models, self.weights = [model for model, _ in kept], [each for _, each in kept]
        self.classes, self._prepare = classes, prepare

    def __call__(self, rows: Any) -> Tensor:
        given = _rows(rows if self._prepare is None else self._prepare(rows))
        found = np.zeros((len(given), self.classes))
        for model, weight in zip(self.models, self.weights, strict=True):
            found[:, np.asarray(model.classes_)] += weight * model.predict_proba(given)
        return torch.from_numpy(found.astype(np.float32))

    def graph(self, features: int) -> bytes:
        """Return the ensemble as one ONNX file, from rows `[N, F]` float32 without NaN to probabilities `[N, C]`: see `_tree_graph`."""
        return tree_graph(self.models, self.weights, self.classes, features)


class Numbers:
    """A fitted regressor as a callable: rows `[N, F]`, a tensor or an array, to numbers `[N, D]`, float32.

    Raises:
        MismatchError: a model that predicts nothing.
    """

    def __init__(self, model: Any, *, prepare: Callable[[Any], Tensor] | None = None) -> None:
        if not isinstance(model, _Regressor):
            raise MismatchError(f"{type(model).__name__} predicts nothing: give a fitted regressor")
        self.model, self._prepare = model, prepare

    def __call__(self, rows: Any) -> Tensor:
        given = _rows(rows if self._prepare is None else self._prepare(rows))
        return torch.from_numpy(np.asarray(self.model.predict(given), dtype=np.float32).reshape(len(given), -1))


def _rows(rows: Any) -> Rows:
    """Return rows as scikit-learn reads them: `[N, F]` float32; examples of more axes are flattened."""
    given = rows.detach().cpu().numpy() if isinstance(rows, Tensor) else np.asarray(rows)
    if given.ndim < 2 or not len(given):
        raise MismatchError(f"rows are {list(given.shape)}: give [N, F], one row or more")
    return np.ascontiguousarray(given.reshape(len(given), -1), dtype=np.float32)


def tree_library(trees: int, *, seed: int, jobs: int = 1) -> dict[str, Any]:
    """Return a library of tree ensembles, not fitted yet: random forests, extremely randomised trees, and gradient boosting, `trees` trees in each forest.

    Breiman 2001; Geurts, Ernst and Wehenkel 2006; Friedman 2001. Boosting stops by itself, on a tenth of what it is fitted on.
    """
    from sklearn.ensemble import ExtraTreesClassifier, HistGradientBoostingClassifier, RandomForestClassifier

    library: dict[str, Any] = {}
    for leaf in (1, 3):
        how: dict[str, Any] = {"n_estimators": trees, "min_samples_leaf": leaf, "random_state": seed, "n_jobs": jobs}
        some: dict[str, Any] = {"max_features": 0.3, **how}
        every: dict[str, Any] = {"max_features": 1.0, **how}  # their thresholds are random enough
        library[f"forest, leaf={leaf}"] = RandomForestClassifier(**some)
        library[f"extra trees, leaf={leaf}"] = ExtraTreesClassifier(**every)
    for rate, leaves in ((0.1, 31), (0.05, 31), (0.05, 127)):
        how = {"learning_rate": rate, "max_leaf_nodes": leaves, "max_iter": 600, "early_stopping": True, "n_iter_no_change": 20, "random_state": seed}
        library[f"boosting, rate={rate}, leaves={leaves}"] = HistGradientBoostingClassifier(**how)
    return library


def choose(
    library: Sequence[Any], rows: Tensor, labels: Tensor, classes: int, *, rounds: int = 30, start: int = 2, bags: int = 20, seed: int = 0
) -> tuple[Probabilities, Selection]:
    """Return the ensemble of fitted models that ensemble selection (`_selection.selected`) finds on rows `[N, F]` and labels `[N]` that none was fitted on."""
    said = np.stack([Probabilities([model], classes)(rows).numpy() for model in library]).astype(np.float64)
    found = selected(said, labels.numpy(), rounds=rounds, start=start, bags=bags, seed=seed)
    return Probabilities(library, classes, weights=found.weights), found


class SelectedTrees:
    """An estimator of scikit-learn's manner: the library of `tree_library`, fitted, and an ensemble selected from it by rows that were held out.

    In a recipe: `teacher: {kind: blackbox, source: {kind: fitted, estimator: "python:limbeck.bridges.scikit_learn:SelectedTrees"}, keep: memory}`.

    Args:
        trees: trees of each forest of the library.
        held_out: the share of the rows that the ensemble is chosen by, and nothing is fitted on; the same mix of classes.
        random_state: the seed of every random choice.
        n_jobs: processes that fit a forest.
    """

    def __init__(self, *, trees: int = 250, held_out: float = 0.1, random_state: int = 0, n_jobs: int = 1) -> None:
        self.trees, self.held_out, self.random_state, self.n_jobs = trees, held_out, random_state, n_jobs

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        return {"trees": self.trees, "held_out": self.held_out, "random_state": self.random_state, "n_jobs": self.n_jobs}

    def set_params(self, **params: Any) -> Self:
        for name, value in params.items():
            if name not in self.get_params():
                raise RecipeError(f"no option {name!r} for SelectedTrees{did_you_mean(name, self.get_params())}")
            setattr(self, name, value)
        return self

    def fit(self, X: Any, y: Any) -> Self:
        """Fit the library to rows `[M, F]` and labels `[M]`, and select; raises DataError where a class has too few rows to hold one out."""
        from sklearn.model_selection import train_test_split

        if self.trees < 1 or not 0 < self.held_out < 1:
            raise RecipeError(f"trees is {self.trees} and held_out {self.held_out:g}: one tree or more, and a share above 0 and below 1")
        rows, (self.classes_, labels) = _rows(X), np.unique(np.asarray(y), return_inverse=True)
        if len(self.classes_) < 2:
            raise DataError(f"every row is of class {self.classes_.tolist()}: trees need two classes or more")
        try:
            fitted, held, known, asked = train_test_split(rows, labels, test_size=self.held_out, stratify=labels, random_state=self.random_state)
        except ValueError as error:
            raise DataError(f"rows cannot be held out to select by: {' '.join(str(error).split())}") from None
        library = [model.fit(fitted, known) for model in tree_library(self.trees, seed=self.random_state, jobs=self.n_jobs).values()]
        self.ensemble_, self.selection_ = choose(library, torch.from_numpy(held), torch.from_numpy(asked), len(self.classes_), seed=self.random_state)
        return self

    def predict_proba(self, X: Any) -> npt.NDArray[np.float32]:
        """Return the probabilities `[N, C]` of the classes of `classes_`."""
        return self.ensemble_(X).numpy()

    def predict(self, X: Any) -> Any:
        """Return the likeliest class of each row `[N]`."""
        return self.classes_[self.predict_proba(X).argmax(axis=1)]


def nearest(points: Tensor) -> Tensor:
    """Return, for each of the points `[N, F]`, which other one is the nearest by Euclid's distance, `[N]` int64; no N x N is held.

    Raises:
        DataError: fewer than two points.
    """
    from sklearn.neighbors import NearestNeighbors

    if len(points) < 2:
        raise DataError(f"there {'is 1 example' if len(points) else 'are no examples'}: a nearest neighbour needs two or more")
    search = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(points.numpy())
    return torch.from_numpy(search.kneighbors(return_distance=False)[:, 0])
