"""A model that grows until it is good enough, instead of one that is cut: GMDH, as estimators of scikit-learn's manner.

They fit themselves, and are no method of the slot `compress`; a recipe names one as the source of a black-box teacher,
`python:limbeck.compress.grow:GMDHClassifier`.
"""

from ._classifier import GMDHClassifier
from ._regressor import GMDHRegressor

__all__ = ["GMDHClassifier", "GMDHRegressor"]
