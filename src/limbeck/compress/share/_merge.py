"""Rows that are much alike, merged pair by pair: F rows of D numbers."""

import numpy as np
from numpy.typing import NDArray

__all__ = ["merge"]


def merge(rows: NDArray[np.float64], *, distance: float = np.inf, least: int = 1) -> NDArray[np.int64]:
    """Return the group `[F]` of each row, numbered by their first members, such that each is replaced by its group's mean.

    The pair of groups a, b that is nearest by d = sqrt(2 n_a n_b / (n_a + n_b)) ||mean_a - mean_b|| / r goes first, r the root mean square of the rows' norms,
    until no pair is within `distance` or `least` groups are left. For two single rows d = ||a - b|| / r; always d^2 r^2 / 2 is what the merger adds to the sum
    of squared errors: Ward, "Hierarchical Grouping to Optimize an Objective Function", JASA 1963.

    >>> merge(np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.1]]), distance=0.2).tolist()
    [0, 1, 0]
    """
    means, counts = rows.copy(), np.ones(len(rows))
    norm = float(np.sqrt((rows**2).sum() / len(rows))) or 1.0
    squares = (means**2).sum(1)
    apart = np.maximum(squares[:, None] + squares - 2 * means @ means.T, 0.0)
    np.fill_diagonal(apart, np.inf)
    group = np.arange(len(rows))
    for _ in range(len(rows) - least):
        a, b = sorted(divmod(int(apart.argmin()), len(rows)))
        if np.sqrt(apart[a, b]) / norm > distance:
            break
        means[a] = (counts[a] * means[a] + counts[b] * means[b]) / (counts[a] + counts[b])
        counts[a] += counts[b]
        group[group == group[b]] = group[a]
        apart[b] = apart[:, b] = np.inf
        live = np.isfinite(apart[a])
        live[a] = False
        to = 2 * counts[a] * counts / (counts[a] + counts) * ((means - means[a]) ** 2).sum(1)
        apart[a, live] = apart[live, a] = to[live]
    return np.unique(group, return_inverse=True)[1]
