"""One text in two tokenizers' tokens: each row comes with the same bytes as the teacher reads them.

Shapes: N rows of a batch, M of the training split, T tokens of a row, U tokens of it in the teacher's vocabulary, V' entries of that.
"""

from typing import Unpack

import torch
from torch import Tensor

from limbeck.bridges.vocabulary import Spelling, spelling
from limbeck.core.errors import MismatchError
from limbeck.core.task import Batch, How, Loader, Task
from limbeck.core.transfer import Transfer

from ._loaders import Changed, needed
from ._retold import IGNORED, Row, retold, spelt

__all__ = ["Retokenized", "twins"]

_READ = 512


def twins(theirs: Spelling, ours: Spelling) -> Tensor:
    """Return for each of their entries ours that spells the same bytes or has the same role, -1 where none does: `[V']` int64.

    >>> words = spelling({"tokenizer": {"kind": "bytes", "roles": ["eos"]}})
    >>> bool((twins(words, words) == torch.arange(257)).all())
    True
    """
    place = {spells: one for one, spells in reversed([*enumerate(ours.bytes)]) if spells}
    found = torch.full((len(theirs),), -1, dtype=torch.int64)
    for one, spells in enumerate(theirs.bytes):
        found[one] = place.pop(spells, -1) if spells else -1
    for role, one in theirs.roles.items():
        if role in ours.roles and ours.roles[role] not in found:
            found[one] = ours.roles[role]
    return found


class Retokenized(Transfer):
    """Give each row of the task the same text in the tokens of a second task: what a teacher of another vocabulary reads.

    A row is spelt out byte by byte and divided anew by the partner's tokenizer; special tokens keep their roles, and documents that share a row stay apart. The
    batch has `teacher_input`, `teacher_label`, `teacher_segment` and `teacher_position [N, U]`, which teacher `own_tokens` reads; `starts` and `ends [N, T]`,
    `teacher_starts` and `teacher_ends [N, U]`, the bytes that each prediction is about; `twins [N, V']`, the student's entry that spells what each of the
    teacher's does, -1 for none. A label of the teacher's counts where all of its bytes do for the student. Of a character that the edge of a row cuts, the
    teacher reads nothing. The training split is told anew once, and held in memory.

    Both tokenizers must spell a text as it is: bytes, or byte-level BPE without a normalizer (GPT-2's, Llama 3's, Qwen's).

    Raises:
        MismatchError: tokenizers that do not, rows that come to more of the teacher's tokens than its context holds, or a teacher of recorded views.

    Example:
        {kind: retokenized, partner: {kind: language, data: tinyshakespeare, root: data, tokenizer: {kind: bpe, size: 512}, context: 128}}
    """

    def __init__(self, partner: Task) -> None:
        self.partner = partner

    def loader(self, task: Task, **how: Unpack[How]) -> Loader:
        if how.get("views") is not None:
            raise MismatchError("a cached teacher knows the rows of its own tokenizer: take teacher: {kind: own_tokens, of: ...}")
        ours, theirs = spelling(task.facts().preprocess), spelling(self.partner.facts().preprocess)
        ids, held = self._told(task, ours, theirs)
        device = how.get("device")
        held = {name: value.to(device) for name, value in held.items()}
        order = ids.argsort()
        known, order, same = ids[order].to(device), order.to(device), twins(theirs, ours).to(device)

        def change(batch: Batch, _view: int) -> Batch:
            needed(batch, "a transfer set of two tokenizers", "id")
            rows = order[torch.searchsorted(known, batch["id"])]
            more = {name: value.index_select(0, rows).long() for name, value in held.items()}
            return {**batch, **more, "twins": same.expand(len(rows), -1)}

        return Changed(task.loader("train", **how), task, change, None)

    def _told(self, task: Task, ours: Spelling, theirs: Spelling) -> tuple[Tensor, dict[str, Tensor]]:
        ids, rows = list[Tensor](), list[tuple[Row, dict[str, list[int]]]]()
        for raw in task.loader("train", batch_size=_READ, whole=True).batches(0):
            batch = task.batch(raw)
            needed(batch, "a transfer set of two tokenizers", "id", "input", "label")
            ids.append(batch["id"].cpu())
            segments = batch["segment"].tolist() if "segment" in batch else [None] * len(batch["id"])
            some = [
                spelt(x, y, z, ours, f"row {one}")
                for x, y, z, one in zip(batch["input"].tolist(), batch["label"].tolist(), segments, batch["id"].tolist(), strict=True)
            ]
            texts = iter(theirs.encode([piece.text for row in some for stretch in row.stretches for piece in stretch]))
            for row, one in zip(some, batch["id"].tolist(), strict=True):
                encoded = [[next(texts) for _ in stretch] for stretch in row.stretches]
                rows.append((row, retold(row, encoded, theirs, f"row {one}")))
        return torch.cat(ids), self._laid(rows, theirs.roles.get("eos", 0), torch.cat(ids))

    def _laid(self, rows: list[tuple[Row, dict[str, list[int]]]], pad: int, ids: Tensor) -> dict[str, Tensor]:
        width = max(max((len(one["input"]) for _, one in rows), default=0), 1)
        context = self.partner.facts().in_shape[0]
        if width > context:
            at = next(place for place, (_, one) in enumerate(rows) if len(one["input"]) == width)
            raise MismatchError(
                f"row {int(ids[at])} comes to {width} of the teacher's tokens, and its context is {context}: raise the partner's context (and train the "
                "teacher with it), or lower the task's"
            )
        fill = {"input": pad, "label": IGNORED, "starts": -1, "ends": -1, "segment": 0, "position": 0}
        made = {
            f"teacher_{name}": torch.tensor([[*one[name], *[empty] * (width - len(one[name]))] for _, one in rows], dtype=torch.int32)
            for name, empty in fill.items()
        }
        return {**made, **{name: torch.tensor([getattr(row, name) for row, _ in rows], dtype=torch.int32) for name in ("starts", "ends")}}
