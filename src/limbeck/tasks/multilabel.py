"""Several labels at once: each class is a yes-or-no answer of its own.

Shapes: N examples, C classes.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.core.errors import DataError, MismatchError, RecipeError
from limbeck.core.knowledge import Dense, Knowledge
from limbeck.core.task import Batch, Facts, Split

from ._adapter import as_logits, real_numbers
from ._supply import fitting
from ._targets import Targeted

__all__ = ["MultiLabel"]


class MultiLabel(Targeted):
    """Several labels at once, over a user's own loaders or an `.npz`; without either it is the task of a user's own loop.

    `loss_n = -sum_c [w_c y_nc log sigmoid(z_nc) + (1 - y_nc) log sigmoid(-z_nc)]`, w being `pos_weight`: the sum over classes, which is the negative
    log-likelihood of an example's labels, and of the size of `response.bernoulli_kd`, so that weights of the two mean what they say. torch's
    BCEWithLogitsLoss is this divided by C.

    Labels are `[N, C]` of 0 and 1, of any type of number, C of 1 or more. Scores of an example: `lrap`, label ranking average precision, the mean over its
    labels of the share of labels among the classes that score as much or more (Tsoumakas et al. 2010, 1 for an example with no label or all); `f1`,
    `2 |said and true| / (|said| + |true|)`, said being what has a probability above 1/2 (1 where both are empty); `exact_match`, whether all C answers are
    right; `loss`. The test split is also judged as a whole, class by class: mean average precision, micro and macro F1.

    `loaders`: split -> a torch DataLoader or another iterable of batches that can be iterated again and again; what a batch may be says `batch`.

    Args:
        root: an .npz with x_train, y_train, x_test, y_test (or x, y), in the place of loaders: x `[M, F]` or images, y `[M, C]`, class_names if any.
        input: the field of a mapping that holds the input; "input" and "pixel_values" are found by themselves.
        label: the field of a mapping that holds the labels; "label" and "labels" are found by themselves.
        pos_weight: one weight for each class, for the loss of its positive labels.
        class_names: one name for each class.
        validation: the fraction of an .npz's training data held back for validation; 0 for none.
        split_seed: the seed of that choice.
        normalize: bring each feature, or image channel, of an .npz to mean 0 and deviation 1.

    Raises:
        DataError: a loader that can be iterated only once, or is empty, a file that is missing or damaged, or labels other than 0 and 1.
        MismatchError: a batch or an output that is not what `batch` and `forward` describe.
        RecipeError: loaders and a file, or weights and names that do not fit.
    """

    kind = "multilabel"
    metric = "lrap"

    def __init__(
        self,
        loaders: Mapping[Split, Iterable[Any]] | None = None,
        *,
        root: str | None = None,
        input: str = "input",
        label: str = "label",
        pos_weight: list[float] | None = None,
        class_names: list[str] | None = None,
        validation: float = 0.1,
        split_seed: int = 0,
        normalize: bool = True,
    ) -> None:
        if pos_weight is not None and not all(math.isfinite(weight) and weight > 0 for weight in pos_weight):
            raise RecipeError(f"pos_weight is {pos_weight}; weights are finite numbers above zero")
        if pos_weight is not None and class_names is not None and len(pos_weight) != len(class_names):
            raise RecipeError(f"pos_weight and class_names speak of {len(pos_weight)} and {len(class_names)} classes; they must agree")
        super().__init__(loaders, root, _yes_or_no, input=input, label=label, validation=validation, split_seed=split_seed, normalize=normalize)
        self._weight = None if pos_weight is None else torch.tensor(pos_weight)
        self._names = class_names

    def facts(self) -> Facts:
        """What the first training batch shows; its labels, `class_names` or `pos_weight` tell how many classes there are."""
        first, examples = self._supply.first()
        told = {"labels": first["label"].shape[1]} if "label" in first else {}
        told |= {} if self._names is None else {"class_names": len(self._names)}
        told |= {} if self._weight is None else {"pos_weight": len(self._weight)}
        if not told:
            raise DataError("nothing says how many classes there are: the batches have no labels; give class_names")
        if len(set(told.values())) > 1:
            raise MismatchError(f"how many classes there are: {', '.join(f'{count} by {name}' for name, count in told.items())}; they must agree")
        names = self._names or self._supply.names() or [str(number) for number in range(next(iter(told.values())))]
        return Facts(tuple(first["input"].shape[1:]), len(names), tuple(names), examples, "label" in first, self._supply.preprocess())

    def forward(self, model: nn.Module, batch: Batch) -> Knowledge:
        """Call the model on the input; its logits `[N, C]` are its output, the output's `logits`, or the first of a tuple."""
        x = batch["input"]
        return Knowledge({"main": Dense(as_logits(model(x), len(x), least=1, kind="MultiLabel"), "bernoulli")})

    def loss(self, knowledge: Knowledge, batch: Batch) -> Tensor:
        logits, labels = fitting(knowledge, batch, "MultiLabel")
        weight = self._weight
        if weight is not None:
            if len(weight) != logits.shape[1]:
                raise MismatchError(f"pos_weight has {len(weight)} weights, and the model gives {logits.shape[1]} logits: give one for each")
            weight = weight.to(logits)
        return F.binary_cross_entropy_with_logits(logits, labels, pos_weight=weight, reduction="none").sum(1)

    def scores(self, knowledge: Knowledge, batch: Batch) -> dict[str, Tensor]:
        logits, labels = fitting(knowledge, batch, "MultiLabel")
        true, said = labels > 0, logits > 0
        both, sizes = (true & said).sum(1), true.sum(1) + said.sum(1)
        return {
            "lrap": _ranking(logits, true),
            "f1": torch.where(sizes > 0, 2 * both / sizes.clamp(min=1), 1.0),
            "exact_match": (true == said).all(1).float(),
            "loss": self.loss(knowledge, batch),
        }


def _yes_or_no(value: object, count: int) -> Tensor:
    found = real_numbers(value, count, meant="C] of 0 and 1")
    wrong = (found != 0) & (found != 1)
    if wrong.any():
        row, column = (int(index) for index in wrong.nonzero()[0])
        raise DataError(f"label {found[row, column].item():g} of example {row}, class {column}: MultiLabel reads 0 (no) and 1 (yes), one for each class")
    return found.float()


def _ranking(logits: Tensor, true: Tensor) -> Tensor:
    """Label ranking average precision of each example, `[N]`; of equal logits each has the rank of the last."""
    down, order = logits.sort(dim=1, descending=True)
    hits = true.gather(1, order)
    up = down.neg().contiguous()
    rank = torch.searchsorted(up, up, right=True).clamp(1, logits.shape[1])  # how many score as much or more
    precision = hits.cumsum(1).gather(1, rank - 1) / rank
    found = (precision * hits).sum(1) / hits.sum(1).clamp(min=1)
    return torch.where(true.any(1), found, 1.0)
