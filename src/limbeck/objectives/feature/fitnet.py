"""Hints: a layer of the student, projected, matches a layer of the teacher.

Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015, arXiv:1412.6550, eq. 3.
"""

from typing import Literal

from torch import Tensor

from limbeck.core.errors import MismatchError, RecipeError, did_you_mean
from limbeck.core.knowledge import Knowledge, Needs, Reads
from limbeck.core.objective import Objective
from limbeck.core.task import Batch, Facts, Task
from limbeck.objectives._precision import at_least_float32
from limbeck.objectives._teacher import given

from ._projectors import Projector, projector

__all__ = ["FitNet", "fitnet_loss"]


def fitnet_loss(student: Tensor, teacher: Tensor, *, reduction: Literal["sum", "mean"] = "sum") -> Tensor:
    """Return half the squared distance of two features for each example, or with `mean` the mean of the squared differences over its elements.

    Features `[N, ...]` of one shape give `[N]`, in float32 at least; no gradient goes into the teacher.

    Raises:
        MismatchError: features of unequal shapes.

    >>> import torch
    >>> fitnet_loss(torch.zeros(1, 4), torch.ones(1, 4)), fitnet_loss(torch.zeros(1, 4), torch.ones(1, 4), reduction="mean")
    (tensor([2.]), tensor([1.]))
    """
    if student.shape != teacher.shape:
        raise MismatchError(
            f"the student's feature is {list(student.shape)} and the teacher's {list(teacher.shape)}: project the one to the other's shape first"
        )
    gap = at_least_float32(student) - teacher.detach()
    squares = gap.square().flatten(1)
    return squares.sum(-1) / 2 if reduction == "sum" else squares.mean(-1)


class FitNet(Objective):
    """Match a layer of the teacher by a projected layer of the student: ||u - r(v)||^2 / 2, u the teacher's feature, v the student's, one number per example.

    Romero et al. 2015, arXiv:1412.6550, eq. 3: the sum over the elements of the feature. Later toolkits take the mean over all elements without the half
    (`reduction: mean`), smaller by half the number of elements: mind the weight. The projector r, learnt along with the student, is built only where shapes
    differ: a 1x1 convolution for maps (after resizing to the teacher's size; the paper's r shrinks a map by a larger kernel instead), a linear layer for
    vectors and sequences. Between equal shapes there is none, where the paper always has one.

    Args:
        student: path of the student's layer, such as layer2.
        teacher: path of the teacher's layer.
        reduction: sum is the paper's half of the sum of squares over a feature's elements; mean is their mean, as in most toolkits.

    Raises:
        RecipeError: another reduction.
        MismatchError: no teacher, or features of different ranks.

    Example:
        {kind: feature.fitnet, student: layer2, teacher: layer2, reduction: mean, weight: 100}
    """

    def __init__(self, *, student: str, teacher: str, reduction: Literal["sum", "mean"] = "sum") -> None:
        super().__init__()
        if reduction not in ("sum", "mean"):
            raise RecipeError(f"no reduction {reduction!r} for FitNet{did_you_mean(reduction, ('sum', 'mean'))}")
        self.student, self.teacher = student, teacher
        self.reduction: Literal["sum", "mean"] = reduction
        self.projector: Projector | None = None
        self._shapes: tuple[list[int], list[int]] | None = None

    @property
    def needs(self) -> Needs:
        none = frozenset[str]()
        return Needs(student=Reads(none, frozenset({self.student})), teacher=Reads(none, frozenset({self.teacher})))

    def bind(self, student: Knowledge, teacher: Knowledge | None, task: Task, facts: Facts | None) -> None:
        ours, theirs = student.feature(self.student), given(self, teacher).feature(self.teacher)
        shapes = list(ours.shape[1:]), list(theirs.shape[1:])
        if self._shapes is None:
            self.projector = projector(ours, theirs, names=(self.student, self.teacher))
            self._shapes = shapes
        elif shapes != self._shapes:
            raise MismatchError(
                f"FitNet was bound to features {self._shapes[0]} (student) and {self._shapes[1]} (teacher), not to {shapes[0]} and {shapes[1]}: make a new one"
            )

    def forward(self, student: Knowledge, teacher: Knowledge | None, batch: Batch) -> Tensor:
        feature = student.feature(self.student)
        projected = feature if self.projector is None else self.projector(feature)
        return fitnet_loss(projected, given(self, teacher).feature(self.teacher), reduction=self.reduction)
