"""What a teacher says of each token of a text, recorded: measured on a sample first, then written by one process or by several.

Shapes: N rows, T tokens, n of them that count.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save
from torch import Tensor

from limbeck.core.errors import DataError, LockedError, MismatchError
from limbeck.core.events import Listener, Note
from limbeck.core.files import atomic_write, digest, lock, read_json, sha256, storage, write_json
from limbeck.core.knowledge import Knowledge
from limbeck.core.task import Batch
from limbeck.core.teacher import Teacher
from limbeck.teachers._budget import candidates, measured, picked
from limbeck.teachers._keep import Auto
from limbeck.teachers._store import read_header
from limbeck.teachers._store_columns import WITNESSED, Recording, columns, heads
from limbeck.teachers._store_tokens import HEADS, packed_keys, part_name, runs_of, sealed
from limbeck.teachers._store_writer import Writer, writing
from limbeck.teachers._tokens import Where, among, counters, counting, each, flattened, joined, seen, where

__all__ = ["SAMPLE", "TOKENS_AT_ONCE", "Texts", "told_of_tokens", "write_tokens"]

SAMPLE = 2048
"""Tokens on which it is measured what is lost of an answer."""
_LOOKED_AT = 8 * SAMPLE
"""Tokens of which these are drawn, where there are as many."""
_HEADERS, _RUN = 4608, 14
"""Bytes of headers, and of the index for each run of places, at the most."""
TOKENS_AT_ONCE = 8192
"""Tokens in a batch when a teacher is recorded."""


@dataclass(frozen=True)
class Texts:
    """What is recorded: batches of a view, all of them; some rows at random to measure on, and how many tokens there are, where the data can be asked twice."""

    batches: Callable[[int], Iterator[Batch]]
    sample: Callable[[], Iterator[Batch]] | None
    rank: int = 0
    world: int = 1


def write_tokens(folder: Path, plan: Mapping[str, Any], recording: Recording, teacher: Teacher, texts: Texts, listener: Listener, stage: str = "") -> bool:
    """Ask the teacher about every token that this process has to record and that is not recorded yet; return whether the store stands, all parts being there.

    Raises:
        RecipeError: a wish that nothing answers.
        DataError: answers that are not finite, a token that comes twice, or not in every view.
    """
    partial = folder.with_name(f"{folder.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    chosen = _chosen(partial, plan, recording, teacher, texts, listener, stage)
    name = part_name(texts.rank, texts.world)
    how = {**plan, **chosen}
    known = read_header(partial / name, 1) if (partial / name / "store.json").is_file() else {}
    if any(known.get(key) != value for key, value in how.items()):
        kept = recording.model_copy(update={"keep": Recording.model_validate({"keep": chosen["chosen"]["keep"]}).keep})
        with writing(partial / name, how, runs_of) as writer:
            if not writer.sealed:
                _fill(writer, partial / f"{name}.partial", kept, teacher, texts)
            writer.seal()
    return sealed(folder, plan, texts.world)


def told_of_tokens(header: Mapping[str, Any], size: int) -> str:
    """Return what a store holds, in a line."""
    keep, found = header["chosen"]["keep"], header["measured"]
    how = ", ".join([keep["kind"], *(f"{key} {value}" for key, value in keep.items() if key != "kind")])
    told = f"{header['records']:,} tokens of {header['documents']['count']:,} documents in {size / 2**20:.3g} MiB, {size / header['records']:.4g} bytes a token"
    lost = "its error was not measured: batches come once" if found is None else f"it errs by {found['nats']:.3g} nats, measured on {found['tokens']:,} tokens"
    return f"{told}; {how}: {lost}"


def _chosen(
    partial: Path, plan: Mapping[str, Any], recording: Recording, teacher: Teacher, texts: Texts, listener: Listener, stage: str
) -> dict[str, Any]:  # fmt: skip
    """What is kept and what that errs by, as whoever came first has measured it and written it down; the others wait for that."""
    if texts.sample is None:
        if isinstance(recording.keep, Auto):
            raise MismatchError("keep: auto measures a sample before it records, and batches may come only once: give the task itself, or say what to keep")
        return {"chosen": recording.told, "measured": None}
    path, asked = partial / "measured.json", digest(dict(plan))
    while not path.is_file() or read_json(path)["plan"] != asked:
        try:
            with storage(partial), lock(partial):
                if not path.is_file() or read_json(path)["plan"] != asked:
                    write_json(path, {"plan": asked, **_measured(recording, teacher, texts, texts.sample(), listener, stage)})
        except LockedError:
            time.sleep(0.05)
    found = read_json(path)
    return {"chosen": found["chosen"], "measured": found["measured"]}


def _measured(recording: Recording, teacher: Teacher, texts: Texts, sample: Iterable[Batch], listener: Listener, stage: str) -> dict[str, Any]:
    wish = recording.keep
    total, runs = (size * texts.world for size in _sizes(recording.views, texts))
    answers, keys = _sample(teacher, sample, min(1.0, 1.1 * SAMPLE / max(1, min(total, _LOOKED_AT))))
    temperature = wish.temperature if isinstance(wish, Auto) else 1.0
    ways = list(candidates(answers.answer, temperature)) if isinstance(wish, Auto) else [wish]
    found = [measured(answers, way, recording.model_copy(update={"features": ()}), keys, total, _HEADERS + _RUN * runs, temperature) for way in ways]
    best = picked(found, wish) if isinstance(wish, Auto) else found[0]
    if isinstance(wish, Auto):
        asked = f"{wish.bytes:g} bytes a token" if wish.bytes is not None else f"{wish.nats:g} nats"
        listener(Note(f"measured on {len(keys):,} tokens: {'; '.join(map(str, found))}. For {asked} this is kept: {best}", stage))
    return {
        "chosen": recording.model_copy(update={"keep": best.keep}).told,
        "measured": {"nats": best.nats, "tokens": len(keys), "bytes": best.bytes, "temperature": getattr(best.keep, "temperature", temperature)},
    }


def _sizes(views: int, texts: Texts) -> tuple[int, int]:
    """How many tokens count, and how many runs of places they are."""
    total = runs = 0
    for view in range(views):
        for batch in texts.batches(view):
            chosen = counting(batch)
            total += int(chosen.sum())
            goes_on = chosen[:, 1:] & chosen[:, :-1]
            if "document" in batch:
                goes_on &= batch["document"][:, 1:] == batch["document"][:, :-1]
            runs += int(chosen.sum()) - int(goes_on.sum())
    return total, runs


@torch.no_grad()
def _sample(teacher: Teacher, batches: Iterable[Batch], share: float) -> tuple[Knowledge, Tensor]:
    """The teacher's answers to some tokens, a share of those of rows at random, by hash, and their counters."""
    parts: list[tuple[Knowledge, Tensor]] = []
    count = 0
    for batch in batches:
        chosen = counting(batch)
        keys = counters(where(batch, chosen, 1)).to(chosen.device)
        few = min(math.ceil(len(keys) * share), SAMPLE - count)
        some = keys.argsort()[:few].sort().values
        if few:
            parts.append((_taken(flattened(teacher(batch), chosen), some), keys[some]))
        if (count := count + few) >= SAMPLE:
            break
    if not count:
        raise DataError("there is nothing to record: no token of the sample counts")
    outputs = {name: joined([said.outputs[name] for said, _ in parts]) for name in parts[0][0].outputs}
    return Knowledge(outputs), torch.cat([keys for _, keys in parts])


def _taken(said: Knowledge, some: Tensor) -> Knowledge:
    outputs = {name: each(one, lambda value: value[some]) for name, one in said.outputs.items()}
    return Knowledge(outputs, {path: value[some] for path, value in said.features.items()})


@torch.no_grad()
def _fill(writer: Writer, place: Path, recording: Recording, teacher: Teacher, texts: Texts) -> None:
    """Add every token that the writer has not yet."""
    known = np.sort(counters(_where(writer.keys)).numpy())
    told: dict[str, Any] = {}
    for view in range(recording.views):
        for batch in texts.batches(view):
            chosen = counting(batch)
            at = where(batch, chosen, recording.views)
            keys = counters(at)
            if not (new := ~among(keys.numpy(), known)).any():
                continue
            said, witness = flattened(teacher(batch), chosen), seen(batch[recording.input], batch)[chosen]
            if not new.all():
                some = torch.from_numpy(np.flatnonzero(new)).to(chosen.device)
                said, witness, keys, at = _taken(said, some), witness[some], keys[some.cpu()], Where(*(one[new] for one in at))
            values, about = columns(said, at.documents, recording, keys.to(chosen.device))
            values["witness"] = witness.cpu().numpy().astype("<u4")
            told |= _head(place, said, recording, told)
            writer.add(at.documents, packed_keys(*at)[:, 1], values, {**about, "heads": told["sha256"]}, every={"witness": WITNESSED})


def _head(place: Path, said: Knowledge, recording: Recording, told: Mapping[str, Any]) -> dict[str, Any]:
    """Write down the heads of the first answers, and see that those of all others are the same."""
    found = heads(said, recording.keep)
    if told:
        if any(not torch.equal(value, told["heads"][name]) for name, value in found.items() if value.data_ptr() != told["heads"][name].data_ptr()):
            raise MismatchError("the teacher's head changes from batch to batch, and it is kept once: keep: {kind: topk, k: 64, temperature: 1.0}")
        return {}
    if found and not (place / HEADS).is_file():
        atomic_write(place / HEADS, save(found))
    return {"heads": found, "sha256": sha256(place / HEADS) if found else None}


def _where(keys: npt.NDArray[np.int64]) -> Where:
    """What `packed_keys` made of views, documents and places."""
    return Where(keys[:, 1] >> 32, np.ascontiguousarray(keys[:, 0]), keys[:, 1] & 0xFFFFFFFF)
