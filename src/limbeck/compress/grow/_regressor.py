"""GMDH for numbers.

Shapes: N rows, F inputs.
"""

from typing import Any, Self

import numpy as np

from limbeck.bridges.sklearn_base import RegressorMixin, check_is_fitted, checked_numbers, checked_rows
from limbeck.core.errors import ArtifactError

from ._estimator import FORMAT, LEAST, Grown, Numbers, opened
from ._graph import graph_of
from ._network import Network

__all__ = ["GMDHRegressor"]


class GMDHRegressor(RegressorMixin, Grown):
    """The group method of data handling: layers of quadratic polynomials in pairs, of which those survive that help on rows they were not fitted on.

    u = c0 + c1 a + c2 b + c3 a^2 + c4 b^2 + c5 ab, least squares on one part of the rows; the other part says which units are kept, and when it ends.
    Ivakhnenko, "The group method of data handling", Soviet Automatic Control 13(3), 1968; "Polynomial theory of complex systems", IEEE Transactions on Systems,
    Man, and Cybernetics 1(4), 1971; after Ivakhnenko and Lapa, "Cybernetic Predicting Devices", 1965.

    Fitted: `network_`; `depth_`, 0 where no unit is better than the mean; `inputs_`, the inputs that are read; `criterion_`, the mean squared error on the
    judging rows by depth, from none on; `n_features_in_`.

    Args:
        units: how many units a layer keeps at most.
        depth: how many layers there are at most.
        validation: the share of the rows that judges, and nothing is fitted on until the structure stands.
        gain: the share by which a layer must better the criterion, or growth ends.
        rejoin: whether a unit may be paired with an input in deeper layers.
        refit: whether, once the structure stands, coefficients are fitted to all rows.
        margin: how far beyond the target's range a unit may answer, as a share of that range; None for no bounds.
        random_state: the seed by which the judging rows are drawn.

    Raises:
        RecipeError: an option out of range.
        ValueError: rows that are too few, not finite, or not as many as the numbers.
    """

    def fit(self, X: Any, y: Any) -> Self:
        """Grow a network on rows `[N, F]` and numbers `[N]`."""
        limits = self._limits()
        rows, numbers = checked_numbers(self, X, y, least=LEAST)
        grown = self._grow(rows, numbers, self._judges(np.zeros(len(rows))), limits)
        self.criterion_ = grown.criterion
        return self._keep(self._settled(grown.network, rows, numbers))

    def predict(self, X: Any) -> Numbers:
        """Return the numbers `[N]` of rows `[N, F]`."""
        check_is_fitted(self, "network_")
        return self.network_(checked_rows(self, X))

    def _keep(self, network: Network) -> Self:
        self.network_, self.depth_, self.inputs_ = network, len(network.layers), network.inputs
        return self

    def graph(self) -> bytes:
        """Return it as an ONNX file, from `rows [N, F]` float32 to `prediction [N, 1]`."""
        check_is_fitted(self, "network_")
        return graph_of([self.network_])

    def to_dict(self) -> dict[str, Any]:
        """Return it, fitted, as JSON-able values, exactly."""
        check_is_fitted(self, "network_")
        told = {"format": FORMAT, "kind": type(self).__name__, "options": self.get_params(), "criterion": list(self.criterion_)}
        return told | {"network": self.network_.to_dict()}

    @classmethod
    def from_dict(cls, told: Any) -> Self:
        """Return the fitted estimator that `to_dict` wrote.

        Raises:
            ArtifactError: something else.
        """
        told = opened(told, cls.__name__)
        try:
            made, network = cls(**told["options"]), Network.from_dict(told["network"])
            made.criterion_ = tuple(float(value) for value in told["criterion"])
        except (KeyError, TypeError) as error:
            raise ArtifactError(f"{cls.__name__}.from_dict: {error} is missing or no option: write it again by to_dict") from None
        made.n_features_in_ = len(network.center)
        return made._keep(network)
