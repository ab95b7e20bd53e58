"""GMDH for classes: a network for each, and a softmax over what they say.

Shapes: N rows, F inputs, C classes.
"""

from typing import Any, Self

import numpy as np
import numpy.typing as npt

from limbeck.bridges.sklearn_base import ClassifierMixin, check_is_fitted, checked_labels, checked_rows
from limbeck.core.errors import ArtifactError, DataError

from ._estimator import FORMAT, LEAST, Grown, Numbers, opened
from ._graph import graph_of
from ._network import Network

__all__ = ["GMDHClassifier"]


class GMDHClassifier(ClassifierMixin, Grown):
    """The group method of data handling for classes: one network of quadratic polynomials for each, grown on 1 for its rows and 0 for the others.

    p = softmax(slope s + offsets) of the networks' answers s `[C]`, slope and offsets fitted to the judging rows by maximum likelihood, with the targets of
    Platt, "Probabilistic outputs for support vector machines", 1999, sec. 2.2; two classes have one network, s = (0, s_1). How a network grows, and the papers:
    `GMDHRegressor`.

    Fitted: `networks_`; `classes_`; `slope_`, `offsets_`; `depth_`, that of the deepest; `inputs_`, the inputs that are read; `criterion_`, of each network the
    mean squared error on the judging rows by depth, from none on; `n_features_in_`.

    Args:
        units: how many units a layer keeps at most.
        depth: how many layers there are at most.
        validation: the share of each class's rows that judges, and nothing is fitted on until the structure stands.
        gain: the share by which a layer must better the criterion, or growth ends.
        rejoin: whether a unit may be paired with an input in deeper layers.
        refit: whether, once the structure stands, coefficients are fitted to all rows.
        margin: how far beyond 0 and 1 a unit may answer; None for no bounds.
        random_state: the seed by which the judging rows are drawn.

    Raises:
        RecipeError: an option out of range.
        DataError: one class alone.
        ValueError: rows that are too few, not finite, or not as many as the labels.
    """

    def fit(self, X: Any, y: Any) -> Self:
        """Grow networks on rows `[N, F]` and labels `[N]`."""
        limits = self._limits()
        rows, labels = checked_labels(self, X, y, least=LEAST)
        classes, places = np.unique(labels, return_inverse=True)
        if len(classes) < 2:
            raise DataError(f"every row is of one class, {classes.tolist()[0]!r}: a classifier needs two or more")
        judges = self._judges(places)
        if not judges.any():
            raise DataError(f"each of the {len(classes)} classes has one row alone, so that none is left to judge by: give more rows")
        indicators = [(places == one).astype(np.float64) for one in range(len(classes))]
        indicators = indicators[1:] if len(classes) == 2 else indicators
        grown = [self._grow(rows, one, judges, limits) for one in indicators]
        self.criterion_ = [one.criterion for one in grown]
        scores = _scores([one.network for one in grown], rows[judges])
        self.slope_, self.offsets_ = _calibrated(scores, places[judges], len(classes))
        return self._keep([self._settled(one.network, rows, y) for one, y in zip(grown, indicators, strict=True)], classes)

    def predict_proba(self, X: Any) -> Numbers:
        """Return the probabilities `[N, C]` of the classes of `classes_`."""
        check_is_fitted(self, "networks_")
        return _softmax(self.slope_ * _scores(self.networks_, checked_rows(self, X)) + self.offsets_)

    def predict(self, X: Any) -> npt.NDArray[Any]:
        """Return the likeliest class of each row `[N]`."""
        places = self.predict_proba(X).argmax(axis=1)
        return self.classes_[places]

    def _keep(self, networks: list[Network], classes: npt.NDArray[Any]) -> Self:
        self.networks_, self.classes_ = networks, classes
        self.depth_, self.inputs_ = max(len(one.layers) for one in networks), np.unique(np.concatenate([one.inputs for one in networks]))
        return self

    def graph(self) -> bytes:
        """Return it as an ONNX file, from `rows [N, F]` float32 to `probabilities [N, C]`."""
        check_is_fitted(self, "networks_")
        return graph_of(self.networks_, (self.slope_, self.offsets_))

    def to_dict(self) -> dict[str, Any]:
        """Return it, fitted, as JSON-able values, exactly."""
        check_is_fitted(self, "networks_")
        told = {"format": FORMAT, "kind": type(self).__name__, "options": self.get_params(), "criterion": [list(one) for one in self.criterion_]}
        softmax = {"classes": self.classes_.tolist(), "slope": self.slope_, "offsets": self.offsets_.tolist()}
        return told | softmax | {"networks": [one.to_dict() for one in self.networks_]}

    @classmethod
    def from_dict(cls, told: Any) -> Self:
        """Return the fitted estimator that `to_dict` wrote.

        Raises:
            ArtifactError: something else.
        """
        told = opened(told, cls.__name__)
        try:
            made, networks, classes = cls(**told["options"]), [Network.from_dict(one) for one in told["networks"]], np.asarray(told["classes"])
            made.slope_, made.offsets_ = float(told["slope"]), np.asarray(told["offsets"], dtype=np.float64)
            made.criterion_ = [tuple(float(value) for value in one) for one in told["criterion"]]
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, ArtifactError):
                raise
            raise ArtifactError(f"{cls.__name__}.from_dict: {error} is missing or not what it must be: write it again by to_dict") from None
        count = classes.shape[0] if classes.ndim == 1 else 0
        inputs = {len(one.center) for one in networks}
        if count < 2 or len(networks) != (1 if count == 2 else count) or made.offsets_.shape != (count,) or len(inputs) != 1:
            raise ArtifactError(f"{cls.__name__}.from_dict: classes, networks and offsets do not fit together: write it again by to_dict")
        made.n_features_in_ = inputs.pop()
        return made._keep(networks, classes)


def _scores(networks: list[Network], rows: Numbers) -> Numbers:
    """What the networks say `[N, C]`; a single one speaks for the second of two classes."""
    said = np.stack([network(rows) for network in networks], axis=1)
    return said if len(networks) > 1 else np.concatenate([np.zeros_like(said), said], axis=1)


def _softmax(logits: Numbers) -> Numbers:
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    return raised / raised.sum(axis=1, keepdims=True)


def _calibrated(scores: Numbers, places: npt.NDArray[np.int64], classes: int) -> tuple[float, Numbers]:
    """Slope and offsets `[C]` of the likeliest softmax; labels are softened by Platt's (n + 1) / (n + 2), so that no probability is driven to one."""
    from scipy.optimize import minimize

    own = (np.bincount(places, minlength=classes) + 1.0) / (np.bincount(places, minlength=classes) + 2.0)
    soft = np.repeat(((1 - own) / (classes - 1))[places][:, None], classes, axis=1)
    soft[np.arange(len(places)), places] = own[places]

    def loss(held: Numbers) -> tuple[float, Numbers]:
        logits = held[0] * scores + held[1:]
        p = _softmax(logits)
        likelihood = -(soft * np.log(np.maximum(p, 1e-300))).sum() / len(p) + 0.5e-6 * float(held @ held)
        off = (p - soft) / len(p)
        return likelihood, np.concatenate([[(off * scores).sum()], off.sum(axis=0)]) + 1e-6 * held

    found = minimize(loss, np.concatenate([[1.0], np.zeros(classes)]), jac=True, method="L-BFGS-B", bounds=[(0.0, None), *[(None, None)] * classes]).x
    return float(found[0]), np.asarray(found[1:], dtype=np.float64)
