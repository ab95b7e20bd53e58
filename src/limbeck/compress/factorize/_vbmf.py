"""How many singular values of a noisy matrix are no noise: empirical variational Bayes, solved globally.

Nakajima, Sugiyama, Babacan and Tomioka, "Global analytic solution of fully-observed variational Bayesian matrix factorization", JMLR 14, 2013, sec. 4 and 6.

Shapes: a matrix of L x M numbers, L <= M.
"""

import math

import numpy as np
import numpy.typing as npt
from torch import Tensor

__all__ = ["vbmf_rank"]

Values = npt.NDArray[np.float64]
_TAU = 2.5129
"""The root that their threshold is a multiple of, for small L / M."""


def vbmf_rank(matrix: Tensor) -> int:
    """Return the rank that empirical variational Bayes keeps, the noise's variance being estimated too; zero where it finds noise alone."""
    from scipy.optimize import minimize_scalar

    values = np.linalg.svd(matrix.double().cpu().numpy(), compute_uv=False)
    least, most = sorted(matrix.shape)
    total = float(np.square(values).sum())
    if total == 0:
        return 0
    alpha = least / most
    tau = _TAU * math.sqrt(alpha)
    threshold = (1 + tau) * (1 + alpha / tau)
    above = min(math.ceil(least / (1 + alpha)) - 1, least) - 1
    rest = np.square(values[above + 1 :])
    upper = total / (least * most)
    lower = max(float(rest[0]) / (most * threshold), float(rest.mean()) / most) if len(rest) else 0.0
    lower = min(max(lower, 1e-12 * upper), upper)  # a matrix of exact low rank has no noise at all
    found = minimize_scalar(_free_energy, bounds=(math.log(lower), math.log(upper)), args=(values, least, most, alpha, threshold), method="bounded")
    return int((values > math.sqrt(most * math.exp(found.x) * threshold)).sum())


def _free_energy(log_variance: float, values: Values, least: int, most: int, alpha: float, threshold: float) -> float:
    """The free energy as a function of the noise's variance, up to a constant: every direction has `x + log variance`, those above the noise a term more."""
    x = np.square(values) / (most * math.exp(log_variance))
    strong = x[x > threshold] - (1 + alpha)
    tau = (strong + np.sqrt(np.square(strong) - 4 * alpha)) / 2
    return float(x.sum() + least * log_variance + (np.log(tau + 1) + alpha * np.log(tau / alpha + 1) - tau).sum())
