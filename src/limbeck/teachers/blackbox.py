"""A teacher that answers and shows nothing else: a function, trees, an ONNX file, a server.

Shapes: N examples of a batch, C classes.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.knowledge import Dense, Knowledge, Reads
from limbeck.core.task import Batch, Task
from limbeck.core.teacher import Teacher

from ._answers import Answers, responses
from ._at_once import at_once
from ._kept import Kept, keys_of
from ._sources import Fitted, Folder, OpenAI, Source, Voice

__all__ = ["BlackBox"]


class BlackBox(Teacher):
    """A teacher that answers and shows nothing else: a Python function, trees, an ONNX file, a server.

    Its answers become a response of log-probabilities, `log((1 - C floor) p + floor)`. Labels alone become those of a distribution with `confidence` on the
    label and the rest spread evenly: hard labels, which hold no ranking of the other classes, so that a temperature above 1 has nothing to show. It has neither
    layers nor gradients to read.
    Bucila, Caruana & Niculescu-Mizil 2006, "Model compression", KDD; Orekondy et al. 2019, arXiv:1812.02766, for the name.

    `call`, from Python: what takes the inputs as a NumPy array `[N, ...]` and gives the answers, in the place of `source`.

    With `keep` an input is asked about once: the same values are the same question, whichever epoch, run or example they come from, so that an augmented
    input is a question of its own (`views` bounds how many there are).

    Args:
        source: what answers, by `kind`: python (call), fitted (estimator, options), onnx (path), http (url), openai (url, model, prompt).
        answers: what it gives: probabilities, log_probabilities, logits or labels.
        field: the batch's field that it is asked about.
        classes: how many classes there are; the task's where it is left out.
        confidence: the probability that a label stands for, where answers are labels.
        floor: the least probability of a class, for logarithms to be finite.
        keep: what was answered: `memory`, for this process, or a folder, which later runs and other processes read too; nothing where it is left out.
        views: how many draws of the augmentation it is asked about; epoch e takes draw e mod views.
        version: what tells a source of one name from its earlier self, such as the model behind a URL: a folder of the one is refused for the other.

    Raises:
        RecipeError: no source, or options that cannot be meant.
        MismatchError: an objective that reads its layers or gradients, or a folder that keeps another black box's answers.
        DataError: it cannot be reached, or answers with the wrong number of rows, rows that are no distribution, or what is not finite; answers before that
            are kept.
    """

    def __init__(
        self,
        call: Callable[[np.ndarray], Any] | None = None,
        *,
        source: Source | None = None,
        answers: Answers = "probabilities",
        field: str = "input",
        classes: int | None = None,
        confidence: float = 1.0,
        floor: float = 1e-6,
        keep: Literal["memory"] | Folder | None = None,
        views: int | None = None,
        version: str = "",
    ) -> None:
        super().__init__()
        if (call is None) == (source is None):
            raise RecipeError("a black box is either a source, source: {kind: ...}, or in Python a function: BlackBox(function)")
        if not 0 < confidence <= 1 or not 0 < floor <= 1e-2:
            raise RecipeError(f"confidence is {confidence:g} and floor is {floor:g}: a probability above 0, and one above 0 and at most 0.01")
        if confidence != 1 and answers != "labels":
            raise RecipeError(f"confidence is for labels, and answers are {answers}: leave it out")
        if (views is not None and views < 1) or (classes is not None and classes < 2):
            raise RecipeError(f"views is {views} and classes is {classes}: one or more, and two or more")
        if call is not None and isinstance(keep, Folder) and not version:
            raise RecipeError("a folder must know whose answers it keeps, and a function of one's own has no name to tell: give version='...'")
        self.views = views
        self._call, self._source, self._keep = call, source, keep
        self._answers: Answers = answers
        self._field, self._classes, self._confidence, self._floor, self._told = field, classes, confidence, floor, version
        self._voice: Voice | None = None
        self._kept: Kept | None = None

    def prepare(self, reads: Reads, task: Task) -> None:
        """Fit, open or look up what answers, and what it has answered before; raises MismatchError for what it cannot show."""
        wants = [*sorted(reads.features | reads.modules), *(["the gradient of its input"] if reads.input_gradient else [])]
        wants += ["its layers' shapes"] if reads.shapes else []
        if wants or reads.outputs != {"main"}:
            what = ", ".join(wants or sorted(reads.outputs - {"main"}))
            raise MismatchError(
                f"a black box answers and shows nothing else, and an objective reads {what}: take an objective of responses, such as response.kd"
            )
        if self._voice is not None:
            return
        call = self._call
        if self._source is not None:
            if self._classes is None:
                self._classes = len(self._source.tokens) if isinstance(self._source, OpenAI) and self._source.tokens else task.facts().classes
            self._voice = self._source.open(task, self._field, self._answers)
        else:
            assert call is not None
            self._voice = Voice(lambda inputs, ids: call(inputs))
        if self._keep is not None:
            self._kept = Kept(self._keep.path, self._identity(task)) if isinstance(self._keep, Folder) else Kept()

    def _identity(self, task: Task) -> dict[str, Any]:
        """What makes its answers what they are, JSON-able."""
        told = {"answers": self._answers, "classes": self._classes, "confidence": self._confidence, "floor": self._floor, "version": self._told}
        source = {"kind": "function"} if self._source is None else self._source.model_dump(mode="json")
        return {**told, "source": source | ({"data": self._source.fitted_to(task).fingerprint()} if isinstance(self._source, Fitted) else {})}

    @torch.no_grad()
    def forward(self, batch: Batch, student: Knowledge | None = None) -> Knowledge:
        assert self._voice is not None, "a teacher is prepared before it is asked"
        if self._field not in batch:
            raise MismatchError(f"a black box is asked about the field {self._field!r}, and the batch has {', '.join(batch)}: say which, field: ...")
        x = batch[self._field]
        inputs = (x.float() if x.dtype in (torch.float16, torch.bfloat16) else x).detach().cpu().numpy()
        ids = batch["id"].tolist() if "id" in batch else None
        found = self._ask(inputs, ids) if self._kept is None else self._recall(self._kept, inputs, ids)
        return Knowledge({"main": Dense(torch.from_numpy(found).to(x.device))})

    def _ask(self, inputs: np.ndarray, ids: list[int] | None) -> np.ndarray:
        found = {place: row for places, rows in self._answered(inputs, ids, range(len(inputs))) for place, row in zip(places, rows, strict=True)}
        return np.stack([found[place] for place in range(len(inputs))])

    def _recall(self, kept: Kept, inputs: np.ndarray, ids: list[int] | None) -> np.ndarray:
        keys = keys_of(inputs)
        try:
            for places, rows in self._answered(inputs, ids, kept.lacks(keys)):
                kept.add([keys[place] for place in places], rows)
        finally:
            kept.flush()
        return kept.rows(keys)

    def _answered(self, inputs: np.ndarray, ids: list[int] | None, places: Sequence[int]) -> Iterator[tuple[Sequence[int], np.ndarray]]:
        """Ask about some inputs, so many at a time, and give the answers as they come."""
        voice = self._voice
        assert voice is not None
        size = voice.rows or max(1, len(places))
        parts = [places[start : start + size] for start in range(0, len(places), size)]

        def one(part: Sequence[int]) -> np.ndarray:
            whose = None if ids is None else [ids[place] for place in part]
            said = voice.say(inputs[list(part)], whose)

            def who(row: int) -> str:
                return f"input {part[row]} of a batch" if whose is None else f"example {whose[row]}"

            return responses(said, self._answers, count=len(part), classes=self._classes, confidence=self._confidence, floor=self._floor, who=who)

        yield from at_once(parts, one, voice.parallel)

    def after_step(self, student: nn.Module) -> None:
        """A black box does not follow."""
