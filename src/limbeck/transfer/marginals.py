"""Rows drawn from the statistics of a table's columns alone: the data themselves are not needed.

Bucila, Caruana and Niculescu-Mizil, "Model compression", KDD 2006, sec. 3: RANDOM, and MUNGE on what it draws.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Unpack

import torch
from torch import Tensor

from limbeck.bridges.scikit_learn import nearest
from limbeck.core.artifact import Artifact
from limbeck.core.draw import key
from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.task import How, Loader, Task
from limbeck.core.transfer import Transfer

from ._munge import PseudoLoader, check_chances, comparable, layout_of, munged, uniform, waves

__all__ = ["Marginals", "drawn"]

_DRAWN, _MUNGED = 4, 5


class Marginals(Transfer):
    """Rows drawn from the statistics of a table's columns alone, which the teacher labels; no training row is read.

    Each column is drawn by itself: a number between two of its quantiles, a nominal value by its share, missing by its share. What the columns know of each
    other is lost, which is the price. With `p` above zero each pass is munged (see `transfer.munge`): swaps between rows of independent columns change nothing
    about their distribution, and the noise smears numbers beyond what the quantiles say.

    The statistics are those that the artifact of the stage `of` keeps of its own training data, else the task's. Epoch e draws `rows` new ones, a function of
    (seed, e); row i has the id `(e + 1) * 2^32 + i`, and no label.

    Args:
        rows: how many rows an epoch has; as many as there were training rows where it is not given.
        p: the probability that an attribute is swapped with the nearest neighbour's, 0 to 1; the neighbours of every pass are searched anew, which takes time.
        s: how many times smaller than the difference the noise of a swapped number is.

    Raises:
        RecipeError: options out of range.
        MismatchError: data that are no table of columns, or an artifact of another table.

    Example:
        {kind: marginals, of: teacher, rows: 20000}
    """

    def __init__(self, source: Artifact | None = None, *, rows: int | None = None, p: float = 0.0, s: float = 2.0) -> None:
        check_chances(p, s)
        if rows is not None and rows < 2:
            raise RecipeError(f"rows is {rows}; it is how many rows an epoch has, 2 or more")
        self._source, self._rows, self._p, self._s = source, rows, p, s

    def loader(self, task: Task, **how: Unpack[How]) -> Loader:
        if how.get("views") is not None:
            raise MismatchError(
                "marginals draws inputs that nobody recorded, and the teacher knows its answers to recorded ones alone: let the model itself teach"
            )
        facts = task.facts()
        told = facts.preprocess if self._source is None else self._source.spec["preprocess"]
        columns = told.get("columns")
        if not columns:
            whose = "the task's data" if self._source is None else str(self._source.path)
            raise MismatchError(
                f"{whose} tell nothing of columns (preprocessing {told.get('kind') or 'not known'}): marginals is for tables, task: {{kind: table}}"
            )
        width = sum(column["width"] for column in columns)
        if (width,) != facts.in_shape:
            raise MismatchError(f"the columns make {width} features, and the task's rows have shape {list(facts.in_shape)}: both must be of one table")
        count = self._rows or facts.examples
        ids, layout, seed = torch.arange(count), layout_of(told, width), how.get("seed", 0)

        def make(number: int) -> Tensor:
            rows = drawn(columns, ids, key(seed, number, _DRAWN))
            if not self._p:
                return rows
            partner = nearest(comparable(rows, layout))
            return munged(rows, ids, partner, waves(partner), layout, p=self._p, s=self._s, with_key=key(seed, number, _MUNGED))

        return PseudoLoader(torch.empty(0, width), ids, make, shape=(width,), labels=None, real=0.0, passes=None, **how)


def drawn(columns: Sequence[Mapping[str, Any]], ids: Tensor, with_key: int) -> Tensor:
    """Return one prepared row `[F]` for each id `[n]`, each column by itself, from the columns' statistics as `Facts.preprocess` has them."""
    made = torch.zeros(len(ids), sum(column["width"] for column in columns))
    for number, column in enumerate(columns):
        draw, start = uniform(ids * len(columns) + number, with_key).double(), column["start"]
        missing = draw < column["missing_share"]
        rest = (draw - column["missing_share"]) / max(1 - column["missing_share"], 1e-12)  # in [0, 1) for those that are there
        if column["kind"] == "numeric":
            levels, values = torch.tensor(column["quantiles"], dtype=torch.float64).T.contiguous()
            after = torch.searchsorted(levels, rest.clamp(0, 1), right=True).clamp(max=len(levels) - 1)
            share = (rest.clamp(0, 1) - levels[after - 1]) / (levels[after] - levels[after - 1])
            value = values[after - 1] + share * (values[after] - values[after - 1])
            made[:, start] = torch.where(missing, 0.0, (value - column["mean"]) / column["std"]).float()
        else:
            shares = torch.tensor(column["shares"], dtype=torch.float64).cumsum(0)
            place = torch.searchsorted(shares / shares[-1], rest.clamp(min=0), right=True).clamp(max=len(shares) - 1)
            known = (~missing).nonzero().flatten()
            made[known, start + place[known]] = 1.0
        if column["missing"]:
            made[:, start + column["width"] - 1] = missing.float()
    return made
