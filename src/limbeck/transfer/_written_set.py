"""A written transfer set on disk: shards that are whole or absent, so that a kill loses one at the most.

FOLDER/written.json                       what the set depends on, and how many shards it has
FOLDER/000007-<sha256[:16]>.safetensors   shard 7: ids [n] int64, input and label [n, T] int32, named by the digest of its bytes

Shapes: n rows of a shard, M of the set, T tokens.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from limbeck.core.errors import ArtifactError, MismatchError
from limbeck.core.files import atomic_write, read_json, storage, write_json

__all__ = ["Held", "Shards"]

_FORMAT = 1


class Held:
    """Rows that were written, found by id: `input` and `label [M, T]`."""

    def __init__(self) -> None:
        self._place: dict[int, int] = {}
        self._parts: dict[str, list[Tensor]] = {"input": [], "label": []}

    def count(self) -> int:
        """How many labels count."""
        return sum(int((part >= 0).sum()) for part in self._parts["label"])

    def lacks(self, ids: Tensor) -> Tensor:
        """Say which of `ids [N]` are not there."""
        return torch.tensor([one not in self._place for one in ids.tolist()], dtype=torch.bool)

    def add(self, ids: Tensor, rows: Mapping[str, Tensor]) -> None:
        first = len(self._place)
        self._place |= {one: first + at for at, one in enumerate(ids.tolist())}
        for name, parts in self._parts.items():
            parts[:] = [torch.cat([*parts, rows[name].to("cpu", torch.int32)])]

    def rows(self, ids: Tensor) -> dict[str, Tensor]:
        """The rows of `ids [N]`, int64, where the ids are."""
        places = torch.tensor([self._place[one] for one in ids.tolist()], dtype=torch.int64)
        return {name: parts[0].index_select(0, places).to(ids.device, torch.int64) for name, parts in self._parts.items()}


class Shards:
    """The shards of a set in a folder.

    Raises:
        MismatchError: the folder holds a set that depends on something else.
        ArtifactError: shards without a word of what they are.
    """

    def __init__(self, folder: Path, plan: Mapping[str, Any], count: int) -> None:
        self._folder, self.count = folder, count
        told, file = {"format": _FORMAT, "plan": dict(plan), "shards": count}, folder / "written.json"
        with storage(folder):
            folder.mkdir(parents=True, exist_ok=True)
            if not file.is_file() and any(folder.glob("*.safetensors")):
                raise ArtifactError(f"{file} is missing beside what was written: nobody knows by whom; delete {folder}")
        if not file.is_file():
            write_json(file, told)
        found = read_json(file)
        if found != told:
            theirs = found.get("plan", {}) if isinstance(found, dict) else {}
            what = next((name for name in plan if theirs.get(name) != plan[name]), "its form")
            raise MismatchError(f"{folder} holds a set that was written otherwise ({what} differs): choose another folder, or delete it")

    @staticmethod
    def writer(folder: Path) -> str | None:
        """Who wrote what a folder holds, where somebody has begun."""
        file = folder / "written.json"
        found = read_json(file) if file.is_file() else None
        return found.get("plan", {}).get("writer") if isinstance(found, dict) else None

    def missing(self) -> list[int]:
        """The numbers of shards that are not there."""
        there = {int(path.name[:6]) for path in self._files()}
        return [number for number in range(self.count) if number not in there]

    def add(self, number: int, rows: Mapping[str, Tensor]) -> None:
        data = save({name: value.cpu().contiguous().to(torch.int64 if name == "ids" else torch.int32) for name, value in rows.items()})
        atomic_write(self._folder / f"{number:06d}-{hashlib.sha256(data).hexdigest()[:16]}.safetensors", data)

    def read(self) -> Held:
        """Return every row, each byte compared with the digest in its file's name.

        Raises:
            ArtifactError: a damaged shard.
        """
        parts: list[dict[str, Tensor]] = []
        for path in self._files():
            data = path.read_bytes()
            try:
                parts.append(load(data))
            except SafetensorError:
                parts.append({})
            if hashlib.sha256(data).hexdigest()[:16] != path.stem[7:] or parts[-1].keys() != {"ids", "input", "label"}:
                raise ArtifactError(f"{path} is damaged: delete it, and its rows are written again")
        held = Held()
        held.add(torch.cat([part["ids"] for part in parts]), {name: torch.cat([part[name] for part in parts]) for name in ("input", "label")})
        return held

    def _files(self) -> list[Path]:
        return sorted(self._folder.glob("[0-9]*-*.safetensors"))
