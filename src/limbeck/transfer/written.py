"""The teacher writes the transfer set: sequence-level distillation.

Kim and Rush, "Sequence-Level Knowledge Distillation", EMNLP 2016, arXiv:1606.07947.

Shapes: N rows of a batch, T tokens.
"""

import hashlib
from pathlib import Path
from typing import Annotated, Any, Literal, Unpack

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from limbeck.bridges.vocabulary import end_of
from limbeck.bridges.writing import IGNORED, check_prompt, check_sampling, coins, drawn, put, reader, stretches, write
from limbeck.core.errors import ArtifactError, DataError, MismatchError, RecipeError
from limbeck.core.files import lock, sweep
from limbeck.core.task import Batch, How, Loader, Task
from limbeck.core.transfer import Transfer

from ._beams import bleu, searched
from ._loaders import Changed, needed, taken
from ._written_set import Held, Shards

__all__ = ["Beam", "Greedy", "Sample", "Written"]


class _Shape(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Sample(_Shape):
    """Draw each token: softmax(logits / temperature), of the `top_k` likeliest, of the fewest that come to `top_p` together."""

    kind: Literal["sample"] = "sample"
    temperature: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    top_k: int | None = Field(default=None, ge=1)
    top_p: float | None = Field(default=None, gt=0, le=1)


class Greedy(_Shape):
    """Take the likeliest token each time."""

    kind: Literal["greedy"] = "greedy"


class Beam(_Shape):
    """Keep the `size` likeliest beginnings; take the likeliest text (their sec. 3.2), or of the beam the one with the best BLEU against the data's (3.3)."""

    kind: Literal["beam"] = "beam"
    size: int = Field(default=5, ge=1)
    interpolated: bool = False


Manner = Annotated[Sample | Greedy | Beam, Field(discriminator="kind")]
_SAMPLE = Sample()


class Written(Transfer):
    """Teach on text that the teacher wrote: each row's prompt is kept, and what follows it is the teacher's, written once and read in every epoch.

    `L = -sum_t log q(y_t | y_<t, x)`, y the teacher's answer to x (their eq. 7, with the supervised objective); any other objective counts on the same text, so
    that a frozen teacher may score it token by token besides (their "word-level on top"). Kim and Rush 2016, arXiv:1606.07947.

    A prompt is what the task masks before the first label that counts; of plain text, `prompt` of the row. Labels of the prompt do not count. A text goes on to
    its end token, to `tokens`, or to the end of its row (of its document, where documents share rows). What is written depends on (seed, the row's id, the
    place in it) and the writer: in a run it is kept in `knowledge/`, a shard at a time, and a run that was killed goes on with the next. Without a folder,
    in Python, rows are written as they are asked for, and kept in memory.

    Args:
        how: {kind: sample, temperature, top_k, top_p}, {kind: greedy} or {kind: beam, size, interpolated}.
        prompt: the share of a plain text that is read before the rest is written.
        tokens: how many are written at most; as many as there is room for where it is left out.
        batch: rows that are written side by side.
        shard: rows that are kept at once.

    Raises:
        RecipeError: numbers that cannot be meant.
        MismatchError: a task without token ids and labels, a teacher that was recorded, or a folder with another set.
        DataError: no row with anything to write.

    Example:
        {kind: written, of: teacher, how: {kind: beam, size: 5}, prompt: 0.25}
    """

    def __init__(
        self,
        writer: nn.Module | None,
        folder: Path | None = None,
        *,
        how: Manner = _SAMPLE,
        prompt: float = 0.5,
        tokens: int | None = None,
        batch: int = 32,
        shard: int = 256,
    ) -> None:
        check_prompt(prompt, tokens)
        if batch < 1 or shard < 1:
            raise RecipeError(f"batch is {batch} and shard {shard}; both are rows, 1 or more")
        if isinstance(how, Sample):
            check_sampling(how.temperature, how.top_k, how.top_p)
        self._writer, self._folder = writer, folder
        self._how: Sample | Greedy | Beam = how
        self._prompt, self._tokens, self._batch, self._shard = prompt, tokens, batch, shard

    def loader(self, task: Task, **how: Unpack[How]) -> Loader:
        """Raises DataError where no row has anything to write; with a folder, everything that is missing there is written first."""
        if how.get("views") is not None:
            raise MismatchError("a cached teacher knows what the data say, and this transfer set says something else: take teacher: {kind: frozen, of: ...}")
        seed, held = how.get("seed", 0), Held()
        if self._folder is not None:
            held = self._filled(self._folder, task, seed, how.get("device"))

        def change(batch: Batch, _view: int) -> Batch:
            needed(batch, "a written transfer set", "id", "input", "label")
            if (fresh := held.lacks(batch["id"])).any():
                rows = taken(batch, fresh.nonzero().flatten().to(batch["id"].device))
                held.add(rows["id"], self.write(task, rows, seed))
            return {**batch, **held.rows(batch["id"])}

        return Changed(task.loader("train", **how), task, change, None)

    def _filled(self, folder: Path, task: Task, seed: int, device: torch.device | None) -> Held:
        shards = Shards(folder, self._plan(task, seed, folder), -(-task.facts().examples // self._shard))
        if shards.missing():
            with lock(folder):
                sweep(folder)
                self._fill(shards, task, seed, device)
        held = shards.read()
        if not held.count():
            raise DataError("no training row has anything to write: its labels do not count, or its prompt fills it")
        return held

    def _fill(self, shards: Shards, task: Task, seed: int, device: torch.device | None) -> None:
        missing = shards.missing()
        loader = task.loader("train", batch_size=self._shard, seed=seed, device=device, whole=True)
        for number, raw in enumerate(loader.batches(0, skip=missing[0]), missing[0]):
            if number in missing:
                batch = task.batch(raw)
                needed(batch, "a written transfer set", "id", "input", "label")
                parts = [taken(batch, some) for some in torch.arange(len(batch["id"]), device=batch["id"].device).split(self._batch)]
                rows = [self.write(task, part, seed) for part in parts]
                shards.add(number, {"ids": batch["id"], **{name: torch.cat([row[name] for row in rows]) for name in ("input", "label")}})

    def _plan(self, task: Task, seed: int, folder: Path) -> dict[str, Any]:
        """What the set depends on, JSON-able; the writer is known by its weights, where there is one."""
        told = {"data": task.fingerprint(), "seed": seed, "how": self._how.model_dump(), "prompt": self._prompt, "tokens": self._tokens}
        told |= {"batch": self._batch, "shard": self._shard}
        return told | {"writer": Shards.writer(folder) if self._writer is None else _digest(self._writer)}

    @torch.no_grad()
    def write(self, task: Task, batch: Batch, seed: int) -> dict[str, Tensor]:
        """Return `input` and `label [N, T]` of a batch, with what the writer says after each prompt."""
        if self._writer is None:
            raise ArtifactError(f"{self._folder} lacks some of what was written, and there is no writer to go on: run the recipe again")
        some = stretches(batch, self._prompt, self._tokens)
        if not len(some):
            return {"input": batch["input"], "label": torch.full_like(batch["label"], IGNORED)}
        modes = {module: module.training for module in self._writer.modules()}
        self._writer.to(batch["input"].device).eval()
        try:
            facts = task.facts()
            prompts, segment = some.prompts(batch["input"])
            every = torch.cat([segment, segment.new_ones(len(some), int(some.room.max()))], 1)
            read, end = reader(self._writer, task, every, facts.classes), end_of(facts.preprocess)
            if isinstance(self._how, Beam):
                tokens, lengths, _ = searched(read, prompts, some.room, self._how.size, end)
                best = self._nearest(batch, some, tokens, lengths) if self._how.interpolated else torch.zeros_like(some.row)
                at = torch.arange(len(some), device=best.device)
                tokens, lengths = tokens[at, best], lengths[at, best]
            else:
                toss = coins(batch, some, seed)
                manner: dict[str, Any] = {"temperature": 0.0} if isinstance(self._how, Greedy) else self._how.model_dump(exclude={"kind"})
                tokens, lengths = write(read, prompts, some.room, lambda logits, step, of: drawn(logits, toss(step)[of], **manner), end)
        finally:
            for module, mode in modes.items():
                module.training = mode
        made = put(batch, some, tokens, lengths)
        return {"input": made["input"], "label": made["label"]}

    @staticmethod
    def _nearest(batch: Batch, some: Any, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Which of each beam is nearest to what the data say, `[M]`."""
        best = []
        for row, first, stop, beam, long in zip(
            some.row.tolist(), (some.start + some.prompt - 1).tolist(), (some.start + some.length).tolist(), tokens.tolist(), lengths.tolist(), strict=True
        ):
            reference = [one for one in batch["label"][row, first:stop].tolist() if one != IGNORED]
            scores = [bleu(made[:count], reference) for made, count in zip(beam, long, strict=True)]
            best.append(scores.index(max(scores)))
        return torch.tensor(best, device=tokens.device)


def _digest(model: nn.Module) -> str:
    """The SHA-256 of a model's class and state."""
    found = hashlib.sha256(type(model).__qualname__.encode())
    for name, value in model.state_dict().items():
        found.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return found.hexdigest()
