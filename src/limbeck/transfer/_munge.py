"""Pseudo-examples between neighbours, and the loader that gives them.

Bucila, Caruana and Niculescu-Mizil, "Model compression", KDD 2006, algorithm 1.
Shapes: n rows, F features, A attributes (an attribute is one feature, or the block of features that a nominal or a sometimes missing column has), m pairs.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Unpack

import torch
from torch import Tensor

from limbeck.core.draw import bits, key, permutation
from limbeck.core.errors import DataError, RecipeError
from limbeck.core.task import Batch, How, Loader, starts

__all__ = ["Layout", "PseudoLoader", "between", "check_chances", "comparable", "layout_of", "munged", "normals", "uniform", "waves"]

_SWAP, _NOISE, _REAL = 1, 2, 3  # what a draw is for, so that no two uses of one seed share it
_AT_ONCE = 1 << 22
"""How many numbers are worked on at once."""
_BLOCK = 32
"""Ids of a pass are those of the rows plus the pass's number above these many bits."""


class Layout(NamedTuple):
    """How the features of a row make attributes: the attribute of each `[F]`, whether it is a number `[F]`, and where a number's mark for missing is `[F]`,
    -1 where it has none."""

    attribute: Tensor
    continuous: Tensor
    mark: Tensor

    @property
    def attributes(self) -> int:
        return int(self.attribute[-1]) + 1


def layout_of(preprocess: Mapping[str, Any], width: int) -> Layout:
    """Return the layout that `Facts.preprocess` tells of a table; every feature a number where it tells of none.

    Raises:
        DataError: columns that are not the features given.
    """
    attribute, continuous, mark = torch.arange(width), torch.ones(width, dtype=torch.bool), torch.full((width,), -1)
    columns = preprocess.get("columns", ())
    if columns and sum(column["width"] for column in columns) != width:
        raise DataError(f"the columns make {sum(column['width'] for column in columns)} features and the rows have {width}: they are not of one table")
    for number, column in enumerate(columns):
        block = slice(column["start"], column["start"] + column["width"])
        attribute[block] = number
        continuous[block] = False
        if column["kind"] == "numeric":
            continuous[column["start"]] = True
            if column["missing"]:
                mark[column["start"]] = column["start"] + 1
    return Layout(attribute, continuous, mark)


def comparable(rows: Tensor, layout: Layout) -> Tensor:
    """Return points `[n, F]` whose squared distances are MUNGE's: numbers brought linearly to 0..1, each unequal nominal attribute or mark for missing one."""
    low, high = rows.amin(0), rows.amax(0)
    span = torch.where(layout.continuous & (high > low), high - low, 1.0)
    marks = layout.mark[layout.mark >= 0]
    weight = torch.where(layout.continuous, 1.0, math.sqrt(0.5)).index_fill(0, marks, 1.0)
    return (rows - torch.where(layout.continuous, low, 0.0)) / span * weight


def waves(partner: Tensor) -> list[Tensor]:
    """Return rows `0..n-1` in groups: no two of a group touch one row, themselves or by their partner, and those that do come in their own order.

    So that taking groups whole, one after another, does what taking `0..n-1` one by one does.
    """
    last = [0] * len(partner)
    depth = torch.empty(len(partner), dtype=torch.long)
    for row, other in enumerate(partner.tolist()):
        wave = max(last[row], last[other]) + 1
        last[row] = last[other] = depth[row] = wave
    order = depth.argsort(stable=True)
    return list(order.split(depth.bincount()[1:].tolist()))


def uniform(counters: Tensor, with_key: int) -> Tensor:
    """Return numbers in [0, 1), float32, one for each counter."""
    return ((bits(counters, with_key) >> 40) & 0xFFFFFF).to(torch.float32) / (1 << 24)


def normals(counters: Tensor, with_key: int) -> tuple[Tensor, Tensor]:
    """Return two normal numbers, float32, for each counter (Box and Muller 1958)."""
    hashed = bits(counters, with_key)
    first = (((hashed >> 32) & 0xFFFFFFFF).double() + 0.5) / (1 << 32)
    angle = 2 * math.pi * (hashed & 0xFFFFFFFF).double() / (1 << 32)
    radius = (-2 * first.log()).sqrt()
    return (radius * angle.cos()).float(), (radius * angle.sin()).float()


def between(mine: Tensor, theirs: Tensor, swap: Tensor, noise: tuple[Tensor, Tensor], layout: Layout, s: float) -> tuple[Tensor, Tensor]:
    """Return what becomes of pairs of rows `[m, F]`: where `swap [m, F]`, each takes the other's value; a number with normal noise around it.

    The noise's deviation is |mine - theirs| / s; it has none where one of the two is missing. `noise`: normal numbers `[m, F]` for each side.
    """
    spread = (mine - theirs).abs() / s * layout.continuous
    marked = layout.mark >= 0
    if marked.any():
        missing = (mine[:, layout.mark[marked]] + theirs[:, layout.mark[marked]]) > 0
        spread[:, marked] = spread[:, marked].masked_fill(missing, 0.0)
    return torch.where(swap, theirs + spread * noise[0], mine), torch.where(swap, mine + spread * noise[1], theirs)


def munged(rows: Tensor, ids: Tensor, partner: Tensor, groups: list[Tensor], layout: Layout, *, p: float, s: float, with_key: int) -> Tensor:
    """Return one pass of algorithm 1 over rows `[n, F]`, in the order that they have: each row meets its partner, and both change.

    Whether attribute a of the pair of row i is swapped, and the noise, are functions of (key, ids[i], a). `groups` are `waves(partner)`.
    """
    made, attributes = rows.clone(), layout.attributes
    numeric = layout.continuous.nonzero().flatten()
    swap_key, noise_key = key(with_key, _SWAP), key(with_key, _NOISE)
    for group in groups:
        for mine in group.split(max(1, _AT_ONCE // rows.shape[1])):
            theirs = partner[mine]
            counters = ids[mine][:, None] * attributes + torch.arange(attributes)
            swap = (uniform(counters, swap_key) < p)[:, layout.attribute]
            noise = torch.zeros(2, *swap.shape)
            noise[0][:, numeric], noise[1][:, numeric] = normals(counters[:, layout.attribute[numeric]], noise_key)
            made[mine], made[theirs] = between(made[mine], made[theirs], swap, (noise[0], noise[1]), layout, s)
    return made


def check_chances(p: float, s: float) -> None:
    """Refuse a probability that is none, and a deviation without end."""
    if not 0 <= p <= 1:
        raise RecipeError(f"p is {p:g}; it is the probability that an attribute is swapped, 0 to 1")
    if not (math.isfinite(s) and s > 0):
        raise RecipeError(f"s is {s:g}; the noise of a number is |difference| / s, so that s is above zero")


class PseudoLoader(Loader):
    """Batches of pseudo-examples, as many an epoch as there are rows, shuffled by (seed, epoch) as a task's own are.

    `make(number)` gives the rows `[n, F]` of a pass; epoch e takes pass `e mod passes`, or pass e where `passes` is None. The example of row i in pass k has
    the id `(k + 1) * 2^32 + ids[i]`. Of an epoch's examples the share `real` are `rows [n, F]` as they are, with their own ids; with `labels`, batches say by
    `labelled` that these alone have one that holds.
    """

    def __init__(
        self,
        rows: Tensor,
        ids: Tensor,
        make: Callable[[int], Tensor],
        *,
        shape: tuple[int, ...],
        labels: Tensor | None,
        real: float,
        passes: int | None,
        **how: Unpack[How],
    ) -> None:
        self._starts = starts(len(ids), how, of="an epoch has {} examples")
        if len(ids) and (int(ids.min()) < 0 or int(ids.max()) >> _BLOCK):
            raise DataError(f"ids run from {int(ids.min())} to {int(ids.max())}; pseudo-examples are numbered from 2^32 on: give ids of 0 to 2^32 - 1")
        self._rows, self._ids, self._make, self._shape, self._labels, self._real, self._passes = rows, ids, make, shape, labels, real, passes
        self._size, self._seed, self._device, self._whole = how["batch_size"], how.get("seed", 0), how.get("device"), how.get("whole", False)
        self._last: tuple[int, Tensor] | None = None

    def __len__(self) -> int:
        return len(self._starts)

    def _pass(self, number: int) -> Tensor:
        if self._last is None or self._last[0] != number:
            self._last = number, self._make(number)
        return self._last[1]

    def batches(self, epoch: int, *, skip: int = 0) -> Iterator[Batch]:
        """Give the batches of `epoch` from number `skip` on: a pure function of (seed, epoch), whatever was drawn before."""
        number = epoch if self._passes is None else epoch % self._passes
        made = self._pass(number)
        order = torch.arange(len(self._ids)) if self._whole else permutation(len(self._ids), key(self._seed, epoch))
        real = uniform(self._ids, key(self._seed, epoch, _REAL)) < self._real
        for start in self._starts[skip:]:
            chosen = order[start : start + self._size]
            own, ids = real[chosen], self._ids[chosen]
            inputs = made[chosen] if not self._real else torch.where(own[:, None], self._rows[chosen], made[chosen])
            found = {"input": inputs.view(-1, *self._shape), "id": torch.where(own, ids, ids + ((number + 1) << _BLOCK))}
            if self._labels is not None:
                found |= {"label": self._labels[chosen], "labelled": own}
            yield found if self._device is None else {name: value.to(self._device) for name, value in found.items()}
