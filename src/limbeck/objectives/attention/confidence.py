"""Confidence: a weight, learnt of the teacher's feature, decides where the student must match it.

After Kendall and Gal, "What Uncertainties Do We Need in Bayesian Deep Learning for Computer Vision?", NIPS 2017, arXiv:1703.04977, sec. 3.1 and eq. 8 (learned
loss attenuation), with the weight between 0 and 1.

Shapes: N examples, D channels, P places (H x W of a map, T of a sequence, one of a vector).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.knowledge import Knowledge
from limbeck.core.schedule import Number, check_number
from limbeck.core.task import Batch
from limbeck.objectives._layered import Layered, Layers
from limbeck.objectives._precision import at_least_float32, place
from limbeck.objectives._projectors import projectors
from limbeck.objectives._shapes import check_alike

__all__ = ["Confidence", "confidence_loss"]


def confidence_loss(student: Tensor, teacher: Tensor, doubt: Tensor, *, tolerance: float = 1.0) -> Tensor:
    """Return the mean over places of exp(-s) d + tolerance s for each example, s >= 0 the doubt, d = mean_c (u - v)^2 / m the relative mismatch of a place.

    Features `[N, D]`, `[N, T, D]` or `[N, D, H, W]` of one shape, u the teacher's, v the student's, m the mean of u^2 over the example (1 where that is 0);
    doubt `[N, P]`; gives `[N]`. For a fixed d it is least at s = max(0, log(d / tolerance)), the weight exp(-s) = min(1, tolerance / d).

    Raises:
        MismatchError: features of unequal shapes, or a doubt of other places.

    >>> import torch
    >>> confidence_loss(torch.zeros(1, 4), torch.ones(1, 4), torch.zeros(1, 1)), confidence_loss(torch.zeros(1, 4), torch.ones(1, 4), torch.ones(1, 1))
    (tensor([1.]), tensor([1.3679]))
    """
    check_alike(student, teacher)
    ours, theirs = _places(at_least_float32(student)), _places(at_least_float32(teacher.detach()))
    if doubt.shape != ours.shape[:2]:
        raise MismatchError(f"the doubt is {list(doubt.shape)} and the features have {list(ours.shape[:2])} examples and places: give one number to each place")
    scale = _scale(theirs)
    mismatch = (ours / scale - theirs / scale).square().mean(2)
    return ((-doubt).exp() * mismatch + tolerance * doubt).mean(1)


def _places(feature: Tensor) -> Tensor:
    """A feature as places and channels, `[N, P, D]`."""
    if feature.ndim == 2:
        return feature.unsqueeze(1)
    return feature if feature.ndim == 3 else feature.flatten(2).transpose(1, 2)


def _scale(places: Tensor) -> Tensor:
    """The root mean square of each example, `[N, 1, 1]`; one where it is silent."""
    size = places.square().mean((1, 2), keepdim=True).sqrt()
    return torch.where(size == 0, torch.ones_like(size), size)


class _Doubt(nn.Sequential):
    """How much a place of the teacher's feature, in units of the example's size, is to be doubted: s >= 0, by two linear maps of its channels."""

    def __init__(self, teacher: Tensor, width: int) -> None:
        channels = teacher.shape[1] if teacher.ndim == 4 else teacher.shape[-1]
        where = place(teacher)
        last = nn.Linear(width, 1, **where)
        nn.init.constant_(last.bias, -3.0)  # a weight of about 0.95: training starts near plain matching
        super().__init__(nn.Linear(channels, width, **where), nn.Tanh(), last, nn.Softplus())


class Confidence(Layered):
    """Match features where it pays: mean over places of w d + tolerance (-log w), w in (0, 1) a learnt confidence in the place, one number per example.

    d is the squared error of the projected student, mean over channels, in units of the teacher's mean square over the example. A network of two layers
    reads the teacher's feature at a place of a map or sequence, or the whole vector (one weight per example), and says w = exp(-s). This is the learned
    attenuation of Kendall and Gal 2017, arXiv:1703.04977, eq. 8, times two: exp(-s) d + s, s the logarithm of a variance, in which the second term keeps
    w from going to zero. Two things differ. s >= 0, as a weight above one would let the loss of a good student fall without end: where the student comes
    within the tolerance, w rises to 1 and plain matching is left. And s is said of the teacher's feature, not of the student's, so that the student
    cannot talk its way out. For the best s a mismatch beyond the tolerance counts by its logarithm alone. The network is trained with the student
    and never shipped. No weight is published for distillation; 1 is where to begin.

    Args:
        layers: student's layer -> teacher's layer, such as {layer3: layer3}, or {head: head} for a weight on each example; auto takes the last stage's end.
        tolerance: the relative mismatch above which a place may be doubted; the price of doubt. May follow a schedule: a falling one forgives less and less.
        width: units of the hidden layer of the network.

    Raises:
        RecipeError: a tolerance of zero or less, a width below one.
        MismatchError: no teacher, or features that no projector brings together.

    Example:
        {kind: attention.confidence, layers: {layer3: layer3}, weight: 1.0}
    """

    wish = "last"
    perfect = "no"

    def __init__(self, *, layers: Layers = "auto", tolerance: Number = 1.0, width: int = 16) -> None:
        super().__init__(layers)
        check_number("tolerance", tolerance, positive=True)
        if width < 1:
            raise RecipeError(f"width is {width}; it must be a whole number of at least 1")
        self.tolerance = tolerance
        self.width = width
        self.projectors = nn.ModuleList()
        self.doubts = nn.ModuleList()

    def fit(self, features: Sequence[tuple[Tensor, Tensor]]) -> None:
        self.projectors = projectors(features, self.pairs)
        self.doubts = nn.ModuleList(_Doubt(theirs, self.width) for _, theirs in features)

    def forward(self, student: Knowledge, teacher: Knowledge | None, batch: Batch) -> Tensor:
        losses, tolerance = [], self.now(self.tolerance)
        for project, doubt, (ours, theirs) in zip(self.projectors, self.doubts, self.matched(student, teacher), strict=True):
            places = _places(at_least_float32(theirs))
            said = doubt(places / _scale(places)).squeeze(-1)
            losses.append(confidence_loss(project(ours), theirs, said, tolerance=tolerance))
        return torch.stack(losses).sum(0)
