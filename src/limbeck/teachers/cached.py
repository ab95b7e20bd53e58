"""What a frozen teacher said once, written down and read again: its body is not needed any more.

Shen and Xing, "A Fast Knowledge Distillation Framework for Visual Recognition", ECCV 2022, arXiv:2112.01528, keep the soft labels of several crops of each
image; why student and teacher must see the same crop: Beyer et al., "Knowledge distillation: A good teacher is patient and consistent", CVPR 2022,
arXiv:2106.05237.
"""

from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from limbeck.core.errors import MismatchError
from limbeck.core.knowledge import Knowledge, Reads
from limbeck.core.task import Batch, Task
from limbeck.core.teacher import Teacher

from ._keep import Auto, Kept
from ._store import FORMAT, Store, read_header
from ._store_columns import WITNESSED, Keep, Views, check_recorded, kept_of, keys_of, knowledge, sketch
from ._store_tokens import HEADS, TOKENS, Tokens
from ._tokens import Where, by_token, counting, otherwise, seen, spread, where

__all__ = ["Cached"]

_FAR = 1e-2
"""How far a sketch may be from the recorded one, in root mean squares of the input: far above rounding, far below another crop."""


class Cached(Teacher):
    """What a frozen teacher said of every training example, in K views of it, recorded once and read by every later student.

    Epoch e of training shows view e mod K, which is the same draw of the augmentation that the teacher saw, so that the student learns exactly what it would
    have learnt from the teacher itself on these views. In a recipe the store is made on the way, in the run's `knowledge/`, and addressed by what it depends
    on; in Python `limbeck.pipeline.recorded.record` makes one. What is left out of the options is as the store has it.

    Of a text it is recorded what was said of each token that counts, by document and place: another shuffle, batch size, or packing of documents that fit the
    context reads the same store. Tokens that were seen in other company are refused.

    Args:
        views: K, the draws of the augmentation that are recorded of each example; 1 when it is recorded and this is left out.
        keep: {kind: dense} for whole logits; {kind: topk, k: 16, temperature: 4.0} for the k likeliest classes at one temperature and the mass of all others,
            tail: bucket (one class) or renormalized_biased (left out). Of a text also {kind: hidden, dtype: float32, bfloat16 or int8}, the states before the
            head, for any divergence at any temperature; {kind: samples, count: 50, temperature: 1.0}, draws with replacement; {kind: auto, bytes: 300} or
            {kind: auto, nats: 0.01}, whichever errs least in so many bytes a token, or takes the fewest for that error. Whole logits when it is recorded and
            this is left out.
        features: layers whose activations are recorded too, by module path.
        input: the field of a batch that the teacher was asked about; `paired` is a transfer set's other modality.
        dtype: float16 or float32, of all numbers but states; float32 for whole logits and float16 for the likeliest classes when it is recorded and this is
            left out.
        verify: compare every byte with its checksum when the store is opened, once a process; without it, the header and the files' sizes.

    Raises:
        ArtifactError: no store, or a damaged one.
        MismatchError: a store of something else than the options say, or than is asked; an example or a view that was not recorded, or in another form.

    Example:
        {kind: cached, of: teacher, views: 4, keep: {kind: topk, k: 8, temperature: 4.0}}
        {kind: cached, of: teacher, keep: {kind: hidden}}
    """

    def __init__(
        self,
        store: "str | Path",
        *,
        views: Views | None = None,
        keep: Keep | None = None,
        features: list[str] | None = None,
        input: str | None = None,
        dtype: Literal["float16", "float32"] | None = None,
        verify: bool = True,
    ) -> None:
        super().__init__()
        tokens = read_header(Path(store), FORMAT, TOKENS)["format"] == TOKENS
        self._store: Store | Tokens = (Tokens if tokens else Store).open(Path(store), verify=verify)
        told = self._store.header["recording"]
        given = {
            "views": views,
            "keep": keep and keep.model_dump(exclude={"tail"}),
            "features": features and sorted(set(features)),
            "input": input,
            "dtype": dtype,
        }
        for option, value in given.items():
            if value is not None and value != told[option]:
                raise MismatchError(
                    f"{self._store.folder} was recorded with {option}: {told[option]}, and {option}: {value} is asked for: record it again into another folder"
                )
        self.views = self._store.views
        self.seal: str = self._store.header["seal"]
        kept = kept_of(self._store.header["chosen"]["keep"] if tokens else told["keep"])
        self.keep: Kept = kept if keep is None or isinstance(keep, Auto) else keep
        self._head: dict[torch.device, dict[str, Tensor]] = {}
        self._input: str = told["input"]
        self._reads = Reads()

    def prepare(self, reads: Reads, task: Task) -> None:
        """Raises MismatchError for what was not recorded, or was recorded of another text than the task's."""
        check_recorded(reads, self._store.header["recording"]["features"], self._store.header["about"]["outputs"])
        self._reads = reads
        if isinstance(self._store, Tokens) and (then := self._store.header["made_of"].get("seen")) is not None:
            now = task.facts().preprocess.get("seen")
            if now is not None and (other := otherwise(then, now)) is not None:
                raise MismatchError(f"{self._store.folder} does not fit the task: {other}; record it for this task into another folder")

    @torch.no_grad()
    def forward(self, batch: Batch, student: Knowledge | None = None) -> Knowledge:
        store = self._store
        if isinstance(store, Tokens):
            return self._of_tokens(batch, store)
        rows = store.rows(*keys_of(batch, store.views))
        self._compare(batch, rows)
        device = batch["id"].device
        return knowledge(lambda name: store.read(name, rows), store.header["about"], store.header["columns"], self._reads, self.keep, device)

    def _of_tokens(self, batch: Batch, store: Tokens) -> Knowledge:
        if not by_token(batch):
            raise MismatchError(
                f"{store.folder} holds what was said of each token, and the batch is no rows of tokens with a label each (fields {', '.join(batch)}): teach a "
                "task of texts, language or masked"
            )
        chosen = counting(batch)
        at = where(batch, chosen, store.views)
        rows = store.rows(*at)
        self._compare_tokens(batch, chosen, at, rows, store)
        device = batch["input"].device
        head = self._heads(store, device)
        said = knowledge(lambda name: store.read(name, rows), store.header["about"], store.header["columns"], self._reads, self.keep, device, head)
        return spread(said, chosen)

    def _heads(self, store: Tokens, device: torch.device) -> dict[str, Tensor]:
        if device not in self._head and store.header["about"]["heads"] is not None:
            self._head[device] = {name: value.to(device) for name, value in load_file(store.folder / HEADS).items()}
        return self._head.get(device, {})

    def _compare_tokens(self, batch: Batch, chosen: Tensor, at: Where, rows: npt.NDArray[np.int64], store: Tokens) -> None:
        """Refuse tokens that stand behind others than those behind which the teacher saw them, told by the records that have a witness."""
        if self._input not in batch:
            return
        some, then = store.witnesses(rows)
        now = seen(batch[self._input], batch)[chosen].cpu().numpy()[some]
        if (other := now != then).any():
            one = some[other][0]
            raise MismatchError(
                f"place {at.places[one]} of document {at.documents[one]} in view {at.views[one]} stands behind other tokens than when {store.folder} was "
                f"recorded ({int(other.sum())} of {len(some)} compared differ): another corpus, tokenizer, context, cut or seed; record it for these"
            )

    def _compare(self, batch: Batch, rows: npt.NDArray[np.int64]) -> None:
        """Refuse inputs that are not those which the teacher saw, told by the records that have a sketch of theirs."""
        chosen = np.flatnonzero(rows % WITNESSED == 0)
        if "witness" not in self._store.header["columns"] or self._input not in batch or not len(chosen):
            return
        seen = batch[self._input][torch.from_numpy(chosen).to(batch["id"].device)].cpu()
        then = torch.from_numpy(self._store.read("witness", rows[chosen] // WITNESSED))
        size = seen.flatten(1).float().square().mean(1).sqrt() if seen.numel() else then
        if (other := ~((sketch(seen) - then).abs() <= _FAR * size + 1e-6)).any():
            at = int(chosen[int(other.nonzero()[0])])
            view = int(batch["view"][at]) if "view" in batch else 0
            raise MismatchError(
                f"the input of example {int(batch['id'][at])} in view {view} is not what the teacher saw when {self._store.folder} was recorded "
                f"({int(other.sum())} of {len(chosen)} compared differ): other data, another transform, seed or transfer set; record it for these"
            )

    def after_step(self, student: nn.Module) -> None:
        """What was said stands still."""
