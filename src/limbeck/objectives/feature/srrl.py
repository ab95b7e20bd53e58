"""Softmax regression representation: the student's last feature, read by the teacher's classifier, says what the teacher's says.

Yang et al., "Knowledge Distillation via Softmax Regression Representation Learning", ICLR 2021, openreview ZzwDy_wiWv, sec. 3.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.knowledge import Knowledge, Needs, Reads
from limbeck.core.schedule import Number, check_number
from limbeck.core.task import Batch, Facts
from limbeck.objectives._held import Held
from limbeck.objectives._layered import Layered, Layers
from limbeck.objectives._options import check_choice
from limbeck.objectives._precision import at_least_float32, place
from limbeck.objectives._teacher import layers_of

from ._blocks import Norm, batch_mean

__all__ = ["SRRL", "srrl_loss"]

Form = Literal["l2", "cross_entropy"]


def srrl_loss(
    student: Tensor, teacher: Tensor, student_logits: Tensor, teacher_logits: Tensor, *, form: Form = "l2", feature: float = 1.0, regression: float = 1.0
) -> Tensor:
    """Return `feature` times the mean squared difference of two features plus `regression` times that of what the teacher's classifier makes of them.

    Features `[N, D]` and logits `[N, C]` give `[N]`, in float32 at least; nothing flows into `teacher` and `teacher_logits`. With `cross_entropy` the second
    part is -sum_c p_c log q_c, p and q the softmaxes of the teacher's and the student's logits.

    Raises:
        MismatchError: features or logits of unequal shapes.

    >>> import torch
    >>> srrl_loss(torch.zeros(1, 4), torch.ones(1, 4), torch.zeros(1, 2), torch.tensor([[3.0, -3.0]]), regression=0.5)
    tensor([5.5000])
    """
    for what, ours, theirs in (("feature", student, teacher), ("logits", student_logits, teacher_logits)):
        if ours.shape != theirs.shape:
            raise MismatchError(f"{what} of the student {list(ours.shape)}, of the teacher {list(theirs.shape)}: bring the student's to the teacher's shape")
    gap = at_least_float32(student) - teacher.detach()
    ours, theirs = at_least_float32(student_logits), at_least_float32(teacher_logits.detach())
    said = (ours - theirs).square().mean(-1) if form == "l2" else -(F.softmax(theirs, -1) * F.log_softmax(ours, -1)).sum(-1)
    return feature * gap.square().flatten(1).mean(1) + regression * said


class SRRL(Layered):
    """Match the last feature, and what the teacher's classifier W says of it: a ||c(s) - t||^2 / D + b ||W c(s) - W t||^2 / C, c a learnt connector.

    Yang et al. 2021: the feature loss and the softmax regression loss, whose squared-distance form the paper prefers to its cross-entropy form
    (`form: cross_entropy`). The paper writes squared norms; these are means over the D and C elements, as in the authors' code, where a = b = 1. The connector
    is theirs: a linear map without bias, batch norm, ReLU; the norm makes it a loss of the whole batch. A map (`layers: {layer4: layer4}`) is connected place
    by place and then averaged, as their ImageNet code does. The teacher's classifier stays as it is and out of the optimizer.

    Args:
        layers: student's layer -> teacher's layer; auto takes what both classifiers read, `head:in`.
        head: the teacher's classifier by its path; auto is the layer whose input `layers` names of the teacher, `head` of `head:in`.
        form: l2 compares the classifier's logits, cross_entropy its probabilities.
        feature: weight of the feature loss, a number or a schedule.
        regression: weight of the softmax regression loss, a number or a schedule.

    Raises:
        RecipeError: another form, a weight below zero, or a classifier that must be named.
        MismatchError: no teacher or one whose layers cannot be called, features of other ranks, a classifier that does not read the feature.

    Example:
        {kind: feature.srrl, layers: {pool: pool}, head: head, weight: 1.0}
    """

    wish = "vector"
    batchwise = True
    perfect = "no"

    def __init__(self, *, layers: Layers = "auto", head: str = "auto", form: Form = "l2", feature: Number = 1.0, regression: Number = 1.0) -> None:
        super().__init__(layers)
        check_choice(self, "form", form, ("l2", "cross_entropy"))
        check_number("feature", feature, positive=False)
        check_number("regression", regression, positive=False)
        if len(self._pairs) > 1:
            raise RecipeError(f"SRRL matches the one feature that the classifier reads, not {len(self._pairs)}: name one pair of layers")
        if head == "auto" and self._pairs and not self._pairs[0][1].endswith(":in"):
            raise RecipeError(f"SRRL must know the classifier that reads the teacher's {self._pairs[0][1]!r}: name it, such as head: head")
        self.form: Form = form
        self.head, self.feature, self.regression = head, feature, regression
        self.connector = nn.Sequential()
        self._held: Held[tuple[nn.Module, ...]] | None = None

    @property
    def classifier(self) -> str:
        """The path of the teacher's classifier, once the layers are chosen."""
        return self.pairs[0][1].removesuffix(":in") if self.head == "auto" else self.head

    def reading(self, student: Reads, teacher: Reads) -> Needs:
        return Needs(student, replace(teacher, modules=frozenset({self.classifier})))

    def fit(self, features: Sequence[tuple[Tensor, Tensor]]) -> None:
        ((ours, theirs),) = features
        if {ours.ndim, theirs.ndim} - {2, 4}:
            raise MismatchError(
                f"SRRL connects vectors [N, D] or maps [N, D, H, W]: the student's {self.pairs[0][0]!r} gives {list(ours.shape)}, "
                f"the teacher's {self.pairs[0][1]!r} {list(theirs.shape)}"
            )
        where, wide = place(ours), theirs.shape[1]
        self.connector = nn.Sequential(nn.Conv2d(ours.shape[1], wide, 1, bias=False, **where), Norm(wide, **where), nn.ReLU())

    def bound(self, student: Knowledge, teacher: Knowledge, facts: Facts | None) -> None:
        self._held = layers_of(self, teacher, [self.classifier])
        ((_, theirs),) = self.matched(student, teacher)
        try:
            self._classified(_vector(theirs))
        except RuntimeError as error:
            raise MismatchError(
                f"the teacher's {self.classifier!r} does not read its {self.pairs[0][1]!r}, {list(theirs.shape)} ({str(error).splitlines()[0]}): "
                "name the feature that the classifier reads"
            ) from None

    def forward(self, student: Knowledge, teacher: Knowledge | None, batch: Batch) -> Tensor:
        ((ours, theirs),) = self.matched(student, teacher)
        weight = self.connector[0].get_parameter("weight")
        connected = _vector(self.connector((ours if ours.ndim == 4 else ours[:, :, None, None]).to(weight.dtype)))
        target = _vector(theirs)
        with torch.no_grad():
            said = self._classified(target)
        losses = srrl_loss(
            connected, target, self._classified(connected), said, form=self.form, feature=self.now(self.feature), regression=self.now(self.regression)
        )
        return batch_mean(losses)

    def _classified(self, x: Tensor) -> Tensor:
        """The teacher's classifier on `x [N, D]`, in float32 at least; its parameters are constants here."""
        assert self._held is not None, "an objective is bound before it is asked"
        (head,) = self._held.value
        fixed = {name: _fixed(value, x) for name, value in (*head.named_parameters(), *head.named_buffers())}
        return functional_call(head, fixed, (x,))


def _fixed(value: Tensor, x: Tensor) -> Tensor:
    return value.detach().to(x.dtype) if value.is_floating_point() else value


def _vector(x: Tensor) -> Tensor:
    """A vector, or the average of a map over its places, in float32 at least."""
    x = at_least_float32(x)
    return x.flatten(2).mean(-1) if x.ndim == 4 else x
