"""A memory of embeddings, student's and teacher's, one row for each example: in memory with the checkpoint, or on disk beside it.

Shapes: M rows, E the width of an embedding, K rows drawn, N examples.
"""

import math
from collections.abc import Mapping
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from limbeck.core.errors import DataError, MismatchError

from ._journal import Journal

__all__ = ["DTYPES", "Bank", "bank_bytes", "check_room", "uniform_kernel"]

Precision = Literal["float32", "float16"]
DTYPES: dict[Precision, torch.dtype] = {"float32": torch.float32, "float16": torch.float16}
_FREE = -1
"""The owner of a row that no example has yet."""


def bank_bytes(rows: int, width: int, dtype: Precision) -> int:
    """Return what a bank takes: two embeddings of each row, its example's id and label."""
    return rows * (2 * width * DTYPES[dtype].itemsize + 16)


def check_room(rows: int, width: int, dtype: Precision, device: torch.device) -> None:
    """Refuse a bank that does not fit into the memory that is free now.

    Raises:
        MismatchError: with both sizes, and the options that make it smaller.
    """
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    else:
        import psutil

        free = psutil.virtual_memory().available
    want = bank_bytes(rows, width, dtype)
    if want > free:
        raise MismatchError(
            f"CRD's bank of 2 x {rows} embeddings of {width} {dtype} takes {want / 1e9:.1f} GB and {device} has {free / 1e9:.1f} GB free: "
            f"take {'dtype: float16, ' if dtype == 'float32' else ''}bank: (fewer examples), or disk: (a folder)"
        )


def uniform_kernel(width: int, temperature: float) -> float:
    """Return the mean of exp(u.v / T) over unit vectors u of E elements, spread evenly, for any unit v: 0F1(E / 2; 1 / (4 T^2)).

    >>> round(uniform_kernel(1, 1.0), 6), round(math.cosh(1), 6), round(uniform_kernel(128, 0.07), 2)
    (1.543081, 1.543081, 2.21)
    """
    half, log_z = width / 2, -2 * math.log(2 * temperature)
    terms = [n * log_z - math.lgamma(n + half) + math.lgamma(half) - math.lgamma(n + 1) for n in range(int(1 / temperature) + 100)]
    return math.exp(torch.logsumexp(torch.tensor(terms, dtype=torch.float64), 0).item())


class Bank:
    """Rows of unit embeddings `[M, E]` of both sides, each of the example that came to it first, the row's owner.

    It is no module and its tensors are no buffers: a wrapper for several processes would send buffers from one to all at every step. Every process makes the
    same changes, in order of id, to a bank of its own. `drawn [K]` are the rows to read until the next change: K draws with replacement among the rows that
    have owners, a function of how many changes there were, none as long as there is no owner.

    Raises:
        StorageError: `journal` names a folder that cannot be written.
    """

    def __init__(self, rows: int, width: int, dtype: Precision, device: torch.device, *, draws: int, momentum: float, journal: Journal | None = None) -> None:
        self.shape = (rows, width)
        self.dtype = DTYPES[dtype]
        self.draws, self.momentum = draws, momentum
        self.journal = journal
        self.updates = self.filled = 0
        self._row_of = np.full(0, _FREE, np.int32)  # by id
        self._empty(device)

    def _empty(self, device: torch.device) -> None:
        """No owners; on disk, no files yet."""
        rows, width = self.shape if self.journal is None else (0, self.shape[1])
        self.student = torch.zeros(rows, width, dtype=self.dtype, device=device)
        self.teacher = torch.zeros(rows, width, dtype=self.dtype, device=device)
        self.owners = torch.full((rows,), _FREE, device=device)
        self.labels = torch.full((rows,), _FREE, device=device)
        self._draw()

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        if self.journal is not None:
            raise MismatchError(f"CRD's bank is on disk, in {self.journal.folder}, and cannot be copied: copy an objective whose bank is in memory")
        other = type(self).__new__(type(self))
        memo[id(self)] = other
        for name, value in vars(self).items():
            setattr(other, name, value.clone() if isinstance(value, Tensor) else value.copy() if isinstance(value, np.ndarray) else value)
        return other

    def read(self, like: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return what was drawn: the embeddings of student and teacher `[K, E]`, as `like`, and their owners and labels `[K]`."""
        at = self.drawn
        student, teacher = (side.index_select(0, at).to(like) for side in (self.student, self.teacher))
        return student, teacher, self.owners.index_select(0, at).to(like.device), self.labels.index_select(0, at).to(like.device)

    def _draw(self) -> None:
        generator = torch.Generator().manual_seed(self.updates)
        count = self.draws if self.filled else 0
        self.drawn = torch.randint(max(self.filled, 1), (count,), generator=generator).to(self.student.device)

    @torch.no_grad()
    def take(self, ids: Tensor, labels: Tensor, student: Tensor, teacher: Tensor) -> None:
        """Move the rows of `ids [N]` towards `student` and `teacher [N, E]` and make them of unit length: row <- momentum row + (1 - momentum) new.

        An example without a row gets the next free one, whose first value is the embedding itself, and is passed over where there is none left. An id below
        zero is passed over too; of an id that is there twice the first counts.

        Raises:
            DataError: ids so large that a table of them does not pay.
        """
        given = ids.cpu().numpy()
        order = np.argsort(given, kind="stable")
        order = order[given[order] >= 0]
        order = order[np.diff(given[order], prepend=-1) > 0]
        if self.journal is not None and not self.journal.open:
            self._map()
        rows, fresh = self._rows(given[order])
        order, fresh, rows = order[rows != _FREE], fresh[rows != _FREE], rows[rows != _FREE]
        device = self.student.device
        at, of = torch.from_numpy(rows).to(device), torch.from_numpy(order)
        keep = torch.where(torch.from_numpy(fresh), 0.0, self.momentum).to(device)[:, None]
        if self.journal is not None:
            self.journal.note(at, [side[at] for side in self._sides()])
        for side, new in ((self.student, student), (self.teacher, teacher)):
            mixed = keep * side[at].float() + (1 - keep) * new.detach()[of.to(new.device)].to(device, torch.float32)
            side[at] = F.normalize(mixed, dim=1).to(self.dtype)
        self.owners[at], self.labels[at] = ids[of.to(ids.device)].to(device), labels[of.to(labels.device)].to(device)
        self.updates += 1
        self._draw()

    def _rows(self, ids: "np.ndarray[Any, Any]") -> tuple["np.ndarray[Any, Any]", "np.ndarray[Any, Any]"]:
        """The rows of sorted ids, -1 where there is none to be had, and which of them are new."""
        if len(ids) and ids[-1] >= len(self._row_of):
            most = 16 * self.shape[0] + (1 << 24)
            if ids[-1] >= most:
                raise DataError(f"an example's id is {ids[-1]}, and CRD's bank of {self.shape[0]} rows takes ids below {most}: number the examples from 0")
            grown = np.full(max(int(ids[-1]) + 1, 2 * len(self._row_of)), _FREE, np.int32)
            grown[: len(self._row_of)] = self._row_of
            self._row_of = grown
        fresh = self._row_of[ids] == _FREE
        new = ids[fresh][: self.shape[0] - self.filled]
        self._row_of[new] = np.arange(self.filled, self.filled + len(new), dtype=np.int32)
        self.filled += len(new)
        return self._row_of[ids].astype(np.int64), fresh

    def _sides(self) -> list[Tensor]:
        return [self.student, self.teacher, self.owners, self.labels]

    def _map(self) -> None:
        assert self.journal is not None
        self.journal.begin(self.updates)
        self.student, self.teacher, self.owners, self.labels = self.journal.map()
        self._index()

    def _index(self) -> None:
        """Learn from the owners which row is whose."""
        owners = self.owners.cpu().numpy()
        owners = owners[owners != _FREE]
        self.filled = len(owners)
        self._row_of = np.full(int(owners.max()) + 1 if len(owners) else 0, _FREE, np.int32)
        self._row_of[owners] = np.arange(len(owners), dtype=np.int32)
        self._draw()

    def state(self) -> dict[str, Tensor]:
        """Return what a checkpoint keeps: of a bank on disk only how often it was changed, and from here on its journal leads back to this moment."""
        updates = {"updates": torch.tensor(self.updates)}
        if self.journal is None:
            return updates | {"student": self.student, "teacher": self.teacher, "owners": self.owners, "labels": self.labels}
        if self.journal.open:
            self.journal.commit(self.updates)
        return updates

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `state` gave; a bank on disk is rolled back to that moment.

        Raises:
            ArtifactError: the journal does not lead there.
        """
        self.updates = int(state["updates"])
        if self.journal is not None:
            self.journal.open = False
            self.filled = 0
            self._empty(torch.device("cpu"))
            if self.updates:
                self._map()
            return
        for own, value in zip(self._sides(), (state["student"], state["teacher"], state["owners"], state["labels"]), strict=True):
            own.copy_(value)
        self._index()
