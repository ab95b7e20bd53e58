"""Rows in files, and a journal that leads back to the moment of a checkpoint.

FOLDER/rows.json          the shape and precision of the rows
    student, teacher      their embeddings, mapped into memory; owners, labels likewise
    journal-000123        for each row that was changed since change number 123, what stood there at that moment; written before the row is

A process that is killed loses nothing: what it wrote is the kernel's by then. After a crash of the machine itself the newest pages may be missing, as of any
file that is mapped; each checkpoint writes them out.
"""

import json
import os
import shutil
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from limbeck.core.errors import ArtifactError, StorageError
from limbeck.core.files import lock, storage

__all__ = ["Journal"]

_HEAD = np.dtype([("rows", "<i8"), ("check", "<i8")])


class Journal:
    """The files of a bank on disk. No row is touched before `begin`; a second run in the folder is refused from then on.

    Raises:
        StorageError: a folder that cannot be written, or too little room on its disk.
    """

    KEPT: ClassVar[int] = 3
    """Checkpoints that the journal leads back to."""
    _NAMES = ("student", "teacher", "owners", "labels")

    def __init__(self, folder: Path, rows: int, width: int, dtype: torch.dtype) -> None:
        self.folder = folder
        self.open = False
        self._kinds = ((width, dtype), (width, dtype), (1, torch.int64), (1, torch.int64))
        self._rows = rows
        self._noted = np.zeros(0, bool)  # rows that the newest file of the journal holds
        self._newest = folder
        self._held = ExitStack()
        self._maps: list[Tensor] = []
        size = rows * sum(each * kind.itemsize for each, kind in self._kinds)
        with storage(folder):
            folder.mkdir(parents=True, exist_ok=True)
        there = sum((folder / name).stat().st_blocks * 512 for name in self._NAMES if (folder / name).is_file())
        free = shutil.disk_usage(folder).free + there
        if size > free:
            raise StorageError(f"CRD's bank takes {size / 1e9:.1f} GB on disk and {folder} has {free / 1e9:.1f} GB: choose another folder, or set bank:")

    def begin(self, change: int) -> None:
        """Bring the rows to where they stood before a change: afresh for number 0, else back by the journal.

        Raises:
            ArtifactError: the files are not of this bank, or do not lead there.
            LockedError: another run writes here.
        """
        self._held.close()
        self._held.enter_context(lock(self.folder))
        with storage(self.folder):
            if change:
                self._check(change)
            else:
                self._wipe()
            self._maps = [
                torch.from_file(str(self.folder / name), shared=True, size=self._rows * each, dtype=kind)
                for name, (each, kind) in zip(self._NAMES, self._kinds, strict=True)
            ]
            if change:
                self._roll_back(change)
            else:
                self._maps[2].fill_(-1)
                self._maps[3].fill_(-1)
                (self.folder / "rows.json").write_text(json.dumps(self._told))
            self._start(change)
        self.open = True

    def map(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the rows: two of `[M, E]`, two of `[M]`."""
        student, teacher, owners, labels = self._maps
        return student.view(self._rows, -1), teacher.view(self._rows, -1), owners, labels

    def note(self, rows: Tensor, values: Sequence[Tensor]) -> None:
        """Write down what stands in `rows [N]`, which are about to change; once is enough between two checkpoints."""
        new = torch.from_numpy(~self._noted[rows.numpy()])
        self._noted[rows.numpy()] = True
        body = b"".join(one[new].contiguous().view(-1).view(torch.uint8).numpy().tobytes() for one in (rows, *values))
        head = np.array([(int(new.sum()), zlib.crc32(body))], _HEAD).tobytes()
        with storage(self.folder), self._newest.open("ab", buffering=0) as file:
            file.write(head + body)

    def commit(self, change: int) -> None:
        """Write everything out, and begin a new file of the journal: it leads back to this moment, and to the `KEPT` - 1 before it."""
        with storage(self.folder):
            for path in (*(self.folder / name for name in self._NAMES), self._newest):
                with path.open("rb+") as file:
                    os.fsync(file.fileno())
            if self._segment(change) != self._newest:
                self._start(change)
            for old in self._segments()[: -self.KEPT]:
                self._segment(old).unlink()

    def _start(self, change: int) -> None:
        self._newest = self._segment(change)
        self._newest.write_bytes(b"")
        self._noted = np.zeros(self._rows, bool)

    def _segment(self, change: int) -> Path:
        return self.folder / f"journal-{change:06d}"

    def _segments(self) -> list[int]:
        """The change with which each file of the journal begins, oldest first."""
        return sorted(int(path.name.partition("-")[2]) for path in self.folder.glob("journal-*"))

    def _wipe(self) -> None:
        for path in (*(self.folder / name for name in (*self._NAMES, "rows.json")), *map(self._segment, self._segments())):
            path.unlink(missing_ok=True)

    @property
    def _told(self) -> dict[str, Any]:
        return {"rows": self._rows, "width": self._kinds[0][0], "dtype": str(self._kinds[0][1])}

    def _check(self, change: int) -> None:
        told = self.folder / "rows.json"
        whole = told.is_file() and all((self.folder / name).is_file() for name in self._NAMES)
        if not whole or json.loads(told.read_text()) != self._told:
            why = "does not hold such a bank"
        elif change not in self._segments():
            why = f"leads back to {', '.join(map(str, self._segments())) or 'none'} only"
        else:
            return
        raise ArtifactError(
            f"the checkpoint wants CRD's bank as it was after {change} steps, and {self.folder} {why}: put the folder back, or train from the start"
        )

    def _roll_back(self, change: int) -> None:
        """Put back what was overwritten since a checkpoint, newest first; killed on the way, it is done again with the same end."""
        for start in reversed(self._segments()):
            if start >= change:
                for rows, values in self._records(self._segment(start)):
                    for own, value in zip(self._maps, values, strict=True):
                        own.view(self._rows, -1)[rows] = value
                if start > change:
                    self._segment(start).unlink()

    def _records(self, path: Path) -> Iterator[tuple[Tensor, list[Tensor]]]:
        """Each whole record of a file: rows, and what stood there. One half-written when the process was killed is the last, and its rows were not touched."""
        with path.open("rb") as file:
            while len(head := file.read(_HEAD.itemsize)) == _HEAD.itemsize:
                count, check = (int(field) for field in np.frombuffer(head, _HEAD)[0])
                sizes = [count * 8, *(count * each * kind.itemsize for each, kind in self._kinds)]
                body = bytearray(file.read(sum(sizes)))
                if len(body) < sum(sizes) or zlib.crc32(body) != check:
                    return
                rows, *values = np.split(np.frombuffer(body, np.uint8), np.cumsum(sizes)[:-1])
                found = [torch.from_numpy(one).view(kind).view(count, each) for one, (each, kind) in zip(values, self._kinds, strict=True)]
                yield torch.from_numpy(rows).view(torch.int64), found
