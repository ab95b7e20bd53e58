"""Knowledge that is recorded once: the store of a stage's cached teacher, and any teacher's, from Python."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from limbeck.core import VERSION, lookup
from limbeck.core._complaint import complaint
from limbeck.core.artifact import Artifact
from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.events import Listener, Note, silent
from limbeck.core.files import digest
from limbeck.core.task import Batch, Loader, Task, default_task
from limbeck.core.teacher import Teacher, as_teacher
from limbeck.core.transfer import Transfer
from limbeck.tasks._text_task import RowsTask
from limbeck.teachers._store import FORMAT, Store, read_header
from limbeck.teachers._store_columns import WITNESSED, Keep, Recording, columns, keys_of, sketch
from limbeck.teachers._store_tokens import TOKENS, Tokens
from limbeck.teachers._store_writer import Writer, writing
from limbeck.teachers._tokens import by_token, otherwise
from limbeck.teachers.frozen import Frozen

from ._recorded_tokens import TOKENS_AT_ONCE, Texts, told_of_tokens, write_tokens
from .easy import _identity
from .easy import _told as _told_of
from .modules import load
from .recipe import DistillStage
from .resolve import drawing, from_store, make_drawing, recording_of

__all__ = ["record", "stand"]

BATCH = 256
"""Examples in a batch when a teacher is recorded."""


def stand(
    name: str,
    stage: DistillStage,
    teacher: Artifact,
    task: Task,
    out: Path,
    *,
    seed: int,
    digests: Mapping[str, str],
    source: Artifact | None,
    device: torch.device,
    listener: Listener,
) -> Path:
    """Make sure that the store of a stage's cached teacher stands in `out`'s `knowledge/`, and return its folder; only where it does not is the teacher loaded.

    `seed` is that of the stage's loader; `digests` those of what the stage takes from; `source` is what its transfer set draws from.

    Raises:
        MismatchError: a transfer set whose inputs cannot be found again, or a store of something else in its place.
    """
    assert from_store(stage.teacher)
    recording = recording_of(stage.teacher)
    told = drawing("transfer", stage.transfer, task, digests)
    made_of = {
        "teacher": teacher.digest, **_data(task, seed, plain=told["kind"] == "real"), "transfer": told, "limbeck": VERSION,
        "source": lookup.source_digest(stage.transfer.kind),
    }  # fmt: skip
    plan = {"made_of": made_of, "recording": recording.told}
    folder = out / "knowledge" / digest(plan)[:12]
    if _stands(folder, plan):
        return folder

    listener(Note(f"what {teacher.name} says is recorded: {task.facts().examples} examples, {recording.views} views of each", name))
    transfer: Transfer = make_drawing("transfer", stage.transfer, task, source)

    def loader(**how: Any) -> Loader:
        return transfer.loader(task, seed=seed, device=device, views=recording.views, **how)

    began = time.monotonic()
    asked = Frozen(load(teacher.path), input=recording.input).to(device)
    _record(folder, plan, recording, asked, task, loader, listener, name)
    listener(Note(f"recorded {_told(folder)} in {time.monotonic() - began:.1f} s", name))
    return folder


def record(
    teacher: nn.Module | Teacher,
    data: Task | Iterable[Any],
    folder: str | Path,
    *,
    views: int = 1,
    keep: Keep | Mapping[str, Any] | None = None,
    features: Sequence[str] = (),
    dtype: Literal["float16", "float32"] | None = None,
    task: Task | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    rank: int = 0,
    world: int = 1,
    listener: Listener = silent,
) -> Path:
    """Record what a teacher says into `folder`, for `Cached(folder)`; a store of the very same that stands is left as it is, one that a kill left is finished.

    Of a text, rows of tokens each of which is answered, what is said of each token is recorded by document and place.

    Args:
        teacher: any module, taken as frozen, or a teacher that stands still.
        data: a task, whose training split is shown whole, view after view; or batches, mappings with `id` and, for several views, `view`, in any order.
        views: draws of the augmentation of each example.
        keep: {"kind": "dense"}, {"kind": "topk", "k": 16, "temperature": 4.0}, and what else `Cached` says.
        features: layers whose activations are recorded too.
        dtype: float16 or float32; float32 for whole logits and float16 for the likeliest classes where it is left out.
        task: how the model is asked, for batches; classification where it is left out.
        seed: of a task's augmentation: that of the training to come.
        device: where the teacher computes.
        rank: which of `world` processes this is, each of which records its share of a text, beside the others; the last one closes the store.
        world: how many there are.

    Raises:
        MismatchError: batches without ids, or a store of another teacher, other data or other options in `folder`.
        DataError: answers that are not finite, an example that comes twice, or not in every view.

    Example:
        >>> import tempfile
        >>> from limbeck.teachers.cached import Cached
        >>> batch = {"input": torch.randn(8, 4), "label": torch.arange(8) % 3, "id": torch.arange(8)}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     cached = Cached(record(nn.Linear(4, 3), [batch], f"{folder}/store"))
        >>> cached.views
        1
    """
    place = torch.device(device)
    asked = as_teacher(teacher).to(place)
    if asked.reads_student or any(True for _ in asked.parameters()) or asked.views is not None:
        raise MismatchError(f"{type(asked).__name__} moves with a student, or is a record itself: only a teacher that stands still can be recorded")
    recording = _recording(
        {
            "views": views,
            "keep": keep or {"kind": "dense"},
            "features": tuple(features),
            "dtype": dtype,
            "input": asked.input if isinstance(asked, Frozen) else "input",
        }
    )
    if not 0 <= rank < world:
        raise MismatchError(f"this is process {rank} of {world}: rank goes from 0 to world - 1")
    ours = data if isinstance(data, Task) else None
    about: dict[str, Any] = {"data": None, "seed": None} if ours is None else _data(ours, seed, plain=True)
    made_of = {"teacher": [*_identity(asked), _told_of(asked)], **about, "limbeck": VERSION}
    plan = {"made_of": made_of, "recording": recording.told}
    target = Path(folder)
    if _stands(target, plan):
        return target
    reading = ours or task or default_task()
    if ours is None:
        assert not isinstance(data, Task)
        given = ({name: value.to(place) for name, value in reading.batch(raw).items()} for raw in data)
        _record_batches(target, plan, recording, asked, reading, given, rank, world, listener)
    else:

        def loader(**how: Any) -> Loader:
            return ours.loader("train", seed=seed, device=place, views=views, **how)

        _record(target, plan, recording, asked, ours, loader, listener, "", rank, world)
    if not target.exists():
        return target  # others have not written their parts yet
    listener(Note(f"recorded {_told(target)}"))
    return target


def _data(task: Task, seed: int, *, plain: bool) -> dict[str, Any]:
    """What of data and seed an answer depends on: of a text what each token was seen in, and the seed where something is drawn."""
    if (seen := task.facts().preprocess.get("seen") if isinstance(task, RowsTask) else None) is None:
        return {"data": task.fingerprint(), "seed": seed}
    return {"seen": seen, "seed": None if plain and isinstance(task, RowsTask) and task.change() is None else seed}


def _recording(given: Mapping[str, Any]) -> Recording:
    import pydantic

    try:
        return Recording.model_validate(dict(given))
    except pydantic.ValidationError as error:
        option = str(error.errors()[0]["loc"][0])
        about = [one for one in error.errors(include_url=False) if one["loc"][0] == option]
        raise RecipeError(complaint("record", option, Recording.model_fields[option].annotation, given[option], about)) from None


def _stands(folder: Path, plan: Mapping[str, Any]) -> bool:
    """Whether a store of this plan is there; refuse one of another."""
    if not folder.exists():
        return False
    found = _header(folder)
    for part in ("made_of", "recording"):
        for name, value in plan[part].items():
            if (then := found[part].get(name)) == value:
                continue
            if name == "seen" and isinstance(then, dict):
                raise MismatchError(f"{folder} is stale: {otherwise(then, value)}; delete it, or record into another folder")
            what = {"data": "other data, or another transform of them", "seen": "other data than this text", "teacher": "another teacher"}.get(
                name, f"{name}: {then}, and {name}: {value} is asked for"
            )
            raise MismatchError(f"{folder} is stale: it was recorded of {what}; delete it, or record into another folder")
    return True


def _header(folder: Path) -> Mapping[str, Any]:
    kind = Tokens if read_header(folder, FORMAT, TOKENS)["format"] == TOKENS else Store
    return kind.open(folder, verify=False).header


def _record(
    folder: Path,
    plan: Mapping[str, Any],
    recording: Recording,
    teacher: Teacher,
    task: Task,
    loader: Callable[..., Loader],
    listener: Listener,
    stage: str,
    rank: int = 0,
    world: int = 1,
) -> None:
    """Record a task's training split, whole, view after view."""
    first = next(loader(batch_size=1, whole=True).batches(0), None)
    if first is None or not by_token(first):
        _check_alone(recording, world)
        whole = loader(batch_size=BATCH, whole=True)
        _write(folder, plan, recording, teacher, task, lambda view, skip: whole.batches(view, skip=skip))
        return
    teacher.prepare(recording.reads, task)
    rows = max(1, TOKENS_AT_ONCE // first["input"].shape[1])
    every = loader(batch_size=rows, whole=True, rank=rank, world=world)
    some = max(1, min(rows, task.facts().examples))
    texts = Texts(every.batches, lambda: loader(batch_size=some).batches(0), rank, world)
    write_tokens(folder, plan, recording, teacher, texts, listener, stage)


def _record_batches(
    folder: Path,
    plan: Mapping[str, Any],
    recording: Recording,
    teacher: Teacher,
    task: Task,
    given: Iterator[Batch],
    rank: int,
    world: int,
    listener: Listener,
) -> None:
    """Record batches, which hold every view in one pass."""
    first = next(given, None)
    every = given if first is None else chain([first], given)

    def batches(view: int, skip: int = 0) -> Iterator[Batch]:
        if view == 0:
            yield from every

    if first is not None and by_token(first):
        teacher.prepare(recording.reads, task)
        write_tokens(folder, plan, recording, teacher, Texts(batches, None, rank, world), listener)
        return
    _check_alone(recording, world)
    _write(folder, plan, recording, teacher, task, batches)


def _check_alone(recording: Recording, world: int) -> None:
    """Refuse what is for texts alone."""
    if world > 1 or recording.keep.kind in ("hidden", "samples", "auto"):
        what = f"{world} processes write" if world > 1 else f"keep: {{kind: {recording.keep.kind}}} is of"
        raise RecipeError(f"{what} answers for each token of a text, and these batches are no rows of tokens with a label each: one process, and dense or topk")


def _write(folder: Path, plan: Mapping[str, Any], recording: Recording, teacher: Teacher, task: Task, batches: Callable[[int, int], Iterator[Batch]]) -> None:
    """Ask the teacher about every view of every example that is not recorded yet, and seal the store."""
    teacher.prepare(recording.reads, task)
    with writing(folder, plan) as writer:
        if not writer.sealed:
            for view in range(recording.views):
                known = writer.keys[writer.keys[:, 1] == view, 0]
                for batch in batches(view, len(known) // BATCH):
                    _add(writer, batch, teacher, recording)
        writer.seal()


def _add(writer: Writer, batch: Batch, teacher: Teacher, recording: Recording) -> None:
    ids, views = keys_of(batch, recording.views)
    if len(writer.keys) and (known := _among(ids, views, writer.keys)).any():  # of a writer that was killed
        if known.all():
            return
        batch = _rows(batch, torch.from_numpy(~known), len(ids))
        ids, views = ids[~known], views[~known]
    values, about = columns(teacher(batch), ids, recording)
    seen = batch.get(recording.input)
    if isinstance(seen, Tensor) and len(seen) == len(ids):
        values["witness"] = sketch(seen).cpu().numpy()
    writer.add(ids, views, values, about, every={"witness": WITNESSED})


def _among(ids: npt.NDArray[np.int64], views: npt.NDArray[np.int64], keys: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    found = np.zeros(len(ids), bool)
    for view in np.unique(views):
        found |= (views == view) & np.isin(ids, keys[keys[:, 1] == view, 0])
    return found


def _rows(batch: Batch, chosen: Tensor, count: int) -> Batch:
    return {name: value[chosen.to(value.device)] if value.shape[:1] == (count,) else value for name, value in batch.items()}


def _told(folder: Path) -> str:
    header = _header(folder)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if header["format"] == TOKENS:
        return told_of_tokens(header, size)
    records = header["views"] * header["examples"]
    return f"{records:,} records in {size / 2**20:.3g} MiB, {size / records:.3g} bytes each"
