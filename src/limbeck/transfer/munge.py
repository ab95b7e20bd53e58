"""Pseudo-examples between neighbours: MUNGE.

Bucila, Caruana and Niculescu-Mizil, "Model compression", KDD 2006, algorithm 1.
"""

from functools import partial
from typing import Unpack

import torch
from torch import Tensor

from limbeck.bridges.scikit_learn import nearest
from limbeck.core.draw import key
from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.task import How, Loader, Task
from limbeck.core.transfer import Transfer

from ._munge import PseudoLoader, check_chances, comparable, layout_of, munged, waves

__all__ = ["Munge"]

_READ = 1024


class Munge(Transfer):
    """Pseudo-examples between neighbours, which the teacher labels: MUNGE.

    In each pass over the training rows T, in the order of their ids, each e meets its nearest neighbour e' of T, and with probability p each attribute a of the
    two is swapped: a nominal attribute is exchanged; of a number e_a becomes a draw of N(e'_a, sd) and e'_a one of N(e_a, sd), sd = |e_a - e'_a| / s, both
    from the values of this moment. So a row changes at its own turn and at those of the rows whose neighbour it is. The nearest neighbour has the least sum of
    squared differences of numbers, each brought linearly to 0..1, and of 1 for each nominal attribute that differs; it is searched for once, among the rows as
    they were. Of a table, attributes are its columns (a value that is missing is exchanged as it is); of other data, each feature or pixel is a number.

    An epoch has as many examples as T. Pass k is a function of (seed, k, T) alone; the example made of row i has the id `(k + 1) * 2^32 + i`, and no label:
    match the teacher's answers (`response.*`). With `real` above zero, batches hold that share of true rows too, and `labelled` says which they are.

    Args:
        p: the probability that an attribute is swapped, 0 to 1; 0 gives the training rows again.
        s: the local variance parameter, above zero: how many times smaller than the difference the noise of a number is.
        passes: the paper's size multiplier k: epoch e gives pass e mod k; a new pass for every epoch where it is not given.
        real: the share of an epoch's examples that are training rows as they are, with their labels, 0 to 1.

    Raises:
        RecipeError: options out of range.
        MismatchError: inputs that are no rows of real numbers with an id each, or a teacher that knows its answers to recorded inputs alone.
        DataError: fewer than two rows.

    Example:
        {kind: munge, p: 0.2, s: 2.0}
    """

    def __init__(self, *, p: float = 0.2, s: float = 2.0, passes: int | None = None, real: float = 0.0) -> None:
        check_chances(p, s)
        if passes is not None and passes < 1:
            raise RecipeError(f"passes is {passes}; it is how many times over the rows are munged, 1 or more")
        if not 0 <= real <= 1:
            raise RecipeError(f"real is {real:g}; it is a share of the examples, 0 to 1")
        self._p, self._s, self._passes, self._real = p, s, passes, real

    def loader(self, task: Task, **how: Unpack[How]) -> Loader:
        if how.get("views") is not None:
            raise MismatchError("munge makes inputs that nobody recorded, and the teacher knows its answers to recorded ones alone: let the model itself teach")
        seed = how.get("seed", 0)
        rows, ids, labels = _training_rows(task, seed)
        flat = rows.flatten(1)
        layout = layout_of(task.facts().preprocess, flat.shape[1])
        partner = nearest(comparable(flat, layout))
        made = partial(munged, flat, ids, partner, waves(partner), layout, p=self._p, s=self._s)
        shape, known = tuple(rows.shape[1:]), labels if self._real else None
        return PseudoLoader(flat, ids, lambda number: made(with_key=key(seed, number)), shape=shape, labels=known, real=self._real, passes=self._passes, **how)


def _training_rows(task: Task, seed: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the inputs of the training split, their ids `[n]` and their labels, in the order of the ids."""
    batches = [task.batch(raw) for raw in task.loader("train", batch_size=_READ, seed=seed, whole=True).batches(0)]
    for batch in batches:
        x = batch["input"]
        if not x.is_floating_point() or x.ndim < 2 or any(field.shape[:1] != x.shape[:1] for field in batch.values()):
            told = ", ".join(f"{name} {value.dtype} {list(value.shape)}" for name, value in batch.items())
            raise MismatchError(f"munge takes examples that are rows of real numbers, and the batches have {told}: use transfer real")
        if "id" not in batch:
            raise MismatchError(
                f"munge needs to know which example is which and the batches have no field 'id' (fields {', '.join(batch)}): "
                'give mappings {"input": x, "label": y, "id": an int64 for each example}'
            )
    ids = torch.cat([batch["id"] for batch in batches])
    order = ids.argsort()
    if (ids[order].diff() == 0).any():
        raise MismatchError(f"two examples have the id {int(ids[order][:-1][ids[order].diff() == 0][0])}: ids must be unique")
    labels = torch.cat([batch["label"] for batch in batches])[order] if all("label" in batch for batch in batches) else None
    return torch.cat([batch["input"] for batch in batches])[order].float(), ids[order], labels
