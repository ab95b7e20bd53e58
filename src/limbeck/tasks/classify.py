"""Plain classification over a user's own loaders: one label for each example, cross-entropy, accuracy."""

import math
from collections.abc import Iterable, Mapping
from functools import cached_property, partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.core.errors import DataError, MismatchError, RecipeError
from limbeck.core.knowledge import Dense, Knowledge
from limbeck.core.task import Batch, Facts, Split

from ._adapter import as_batch, as_logits
from ._supply import Supplied, UserLoaders, labels_of

__all__ = ["Classify"]

_NO_LABEL = -(1 << 62)
"""torch's cross-entropy passes over one label, -100 by default, and calls its loss zero: here that is some number nobody writes."""


class Classify(Supplied):
    """Plain classification over a user's own loaders; without any it is the task of a user's own loop.

    `loss_n = w[y_n] * (logsumexp(logits_n) - logits_n[y_n])`, unreduced; a mean of it divides by the number of examples, not by the sum of their weights.

    `loaders`: split -> a torch DataLoader or another iterable of batches that can be iterated again and again; what a batch may be says `batch`.

    Args:
        input: the field of a mapping that holds the input; "input" and "pixel_values" are found by themselves.
        label: the field of a mapping that holds the labels; "label" and "labels" are found by themselves.
        class_weight: one weight for each class, for the loss.
        classes: how many classes there are, or "count" to read every training label once; class_weight and class_names say it as well.
        class_names: one name for each class.

    Raises:
        DataError: a loader that can be iterated only once, or is empty, or labels out of range.
        MismatchError: a batch or an output that is not what `batch` and `forward` describe.
        RecipeError: weights or names that do not fit `classes`.
    """

    kind = "classify"

    def __init__(
        self,
        loaders: Mapping[Split, Iterable[Any]] | None = None,
        *,
        input: str = "input",
        label: str = "label",
        class_weight: list[float] | None = None,
        classes: int | Literal["count"] | None = None,
        class_names: list[str] | None = None,
    ) -> None:
        self._given = UserLoaders(loaders, partial(as_batch, input=input, label=label), "Classify")
        super().__init__(self._given, partial(as_batch, input=input, label=label))
        told = [len(each) for each in (class_weight, class_names) if each is not None] + ([classes] if isinstance(classes, int) else [])
        if len(set(told)) > 1 or (told and told[0] < 2):
            raise RecipeError(f"class_weight, class_names and classes speak of {' and '.join(map(str, told))} classes; they must agree on 2 or more")
        if class_weight is not None and (not all(math.isfinite(w) and w >= 0 for w in class_weight) or not any(class_weight)):
            raise RecipeError(f"class_weight is {class_weight}; weights are finite numbers of zero or more, and one of them is above zero")
        self._count, self._names = classes, class_names
        self._classes = told[0] if told else None
        self._weight = None if class_weight is None else torch.tensor(class_weight)

    def forward(self, model: nn.Module, batch: Batch) -> Knowledge:
        """Call the model on the input; its logits `[N, C]` are its output, the output's `logits`, or the first of a tuple.

        A mapping with `main` holds several answers by name, logits each: those of a model's exits, branches or heads.
        """
        x = batch["input"]
        output = model(x)
        if isinstance(output, Mapping) and "main" in output:
            return Knowledge({name: Dense(as_logits(one, len(x))) for name, one in output.items()})
        return Knowledge({"main": Dense(as_logits(output, len(x)))})

    def loss(self, knowledge: Knowledge, batch: Batch) -> Tensor:
        logits, labels = knowledge.main.logits, labels_of(batch, "Classify")
        logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
        weight = self._weight
        if weight is not None:
            if len(weight) != knowledge.main.classes:
                raise MismatchError(f"class_weight has {len(weight)} weights, and the model gives {knowledge.main.classes} logits: give one for each")
            weight = weight.to(logits)
        try:
            return F.cross_entropy(logits, labels, weight, reduction="none", ignore_index=_NO_LABEL)
        except IndexError:  # what torch raises for a label out of range
            self._check_range(labels, knowledge.main.classes)
            raise

    def scores(self, knowledge: Knowledge, batch: Batch) -> dict[str, Tensor]:
        right = knowledge.main.logits.argmax(-1) == labels_of(batch, "Classify")
        return {"accuracy": right.float(), "loss": self.loss(knowledge, batch)}

    @staticmethod
    def _check_range(labels: Tensor, classes: int) -> None:
        low, high = (int(value) for value in labels.aminmax()) if len(labels) else (0, 0)
        if low < 0 or high >= classes:
            raise DataError(f"label {low if low < 0 else high} is out of range: there are {classes} classes, 0..{classes - 1}")

    def facts(self) -> Facts:
        """What the first training batch shows: it is drawn once for this, and torch's random state, and the loader's own generator, are put back.

        `examples` counts the data set of a torch DataLoader, and for another iterable takes every batch for as large as the first.

        Raises:
            DataError: nothing says how many classes there are, or a label is out of their range.
        """
        return self._facts

    @cached_property
    def _facts(self) -> Facts:
        first, examples = self._given.first()
        classes = self._classes
        if classes is None and self._count == "count":
            classes = max(int(labels_of(batch, "Classify").max()) for batch in self._given.every()) + 1
        if classes is None:
            raise DataError('nothing says how many classes there are: Classify(loaders, classes=10), or classes="count" to read every training label once')
        if "label" in first:
            self._check_range(first["label"], classes)
        names = tuple(self._names) if self._names is not None else tuple(str(label) for label in range(classes))
        return Facts(tuple(first["input"].shape[1:]), classes, names, examples, "label" in first)
