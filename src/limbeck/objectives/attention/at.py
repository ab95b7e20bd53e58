"""Attention transfer: a student's activation maps weigh the places of an image as the teacher's do.

Zagoruyko and Komodakis, "Paying More Attention to Attention: Improving the Performance of Convolutional Neural Networks via Attention Transfer", ICLR 2017,
arXiv:1612.03928, eq. 1 and 2.

Shapes: N examples, D channels, H x W places in a map, T places in a sequence.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.knowledge import Knowledge
from limbeck.core.task import Batch
from limbeck.objectives._layered import Layered, Layers
from limbeck.objectives._options import check_choice
from limbeck.objectives._precision import at_least_float32
from limbeck.objectives._projectors import as_map

__all__ = ["AT", "at_loss"]


def at_loss(student: Tensor, teacher: Tensor, *, power: float = 2.0, distance: Literal["norm", "square"] = "norm") -> Tensor:
    """Return ||q_s - q_t||_2 / P for each example, q = vec(A) / ||vec(A)||_2, A = sum_d |F_d|^power over the channels of a feature F, P its places.

    Maps `[N, D, H, W]`, or sequences `[N, T, D]` of one length, give `[N]`; channels may differ; maps of unlike size have their A averaged down to the smaller.
    Of a map and a sequence, the tokens of patches are laid out as a map. `square` gives ||q_s - q_t||^2 / P, the mean of the squared differences.

    Raises:
        MismatchError: features that are no maps or sequences of as many examples, or two sequences of unlike length.

    >>> import torch
    >>> left, right = torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([[[[0.0, 3.0]]]])
    >>> at_loss(left, right), at_loss(left, right, distance="square")
    (tensor([0.7071]), tensor([1.]))
    """
    _check(student, teacher)
    ours, theirs = at_least_float32(student), at_least_float32(teacher.detach())
    if ours.ndim != theirs.ndim:
        ours, theirs = (as_map(ours, theirs.shape[2:]), theirs) if ours.ndim == 3 else (ours, as_map(theirs, ours.shape[2:]))
    ours, theirs = _attention(ours, power), _attention(theirs, power)
    if ours.shape[1:] != theirs.shape[1:]:
        size = (min(ours.shape[1], theirs.shape[1]), min(ours.shape[2], theirs.shape[2]))
        ours, theirs = F.adaptive_avg_pool2d(ours, size), F.adaptive_avg_pool2d(theirs, size)
    ours, theirs = ours.flatten(1), theirs.flatten(1)
    gap = F.normalize(ours) - F.normalize(theirs)
    apart = gap.square().sum(1) if distance == "square" else torch.linalg.vector_norm(gap, dim=1)
    return apart / gap.shape[1]


def _check(student: Tensor, teacher: Tensor) -> None:
    sequences = student.ndim == teacher.ndim == 3
    if {student.ndim, teacher.ndim} - {3, 4} or len(student) != len(teacher) or (sequences and student.shape[1] != teacher.shape[1]):
        raise MismatchError(
            f"the student's feature is {list(student.shape)} and the teacher's {list(teacher.shape)}: "
            "name two layers that give maps [N, D, H, W] or sequences [N, T, D], two sequences of one length T"
        )


def _attention(feature: Tensor, power: float) -> Tensor:
    """Where a feature is large: `[N, H, W]` or `[N, T]`, the largest place of each example one: the norm divides it out, and no square of it is lost."""
    channels = 1 if feature.ndim == 4 else 2
    places = feature.square().sum(channels) if power == 2 else feature.abs().pow(power).sum(channels)
    largest = places.detach().flatten(1).amax(1)
    return places / torch.where(largest == 0, torch.ones_like(largest), largest).reshape(-1, *[1] * (places.ndim - 1))


class AT(Layered):
    """Match activation maps: sum over pairs of layers of ||q_s - q_t||_2 / P, q the unit vector of A = sum_d |F_d|^2 over P places, one number per example.

    Zagoruyko and Komodakis 2017, arXiv:1612.03928, eq. 2, whose factor beta / 2, with beta = 10^3 divided by the elements of the map (and the batch, whose
    mean the loop takes), is here the 1 / P and a weight of 500. Their published code takes squares and means of squares, beta = 10^3 on top:
    `distance: square` with a weight of 1000. torchdistill calls the two `paper` (without the 1 / P) and `code`. Nothing is learnt; channels may differ.

    Args:
        layers: student's layer -> teacher's layer, maps or sequences, such as {layer2: layer2}; auto takes the ends of all stages, as the paper.
        power: the power of the activations, at least 1; higher looks at the strongest alone.
        distance: norm is the paper's, square that of the authors' code.

    Raises:
        RecipeError: a power below one, or another distance.
        MismatchError: no teacher, or features that have no places in common.

    Example:
        {kind: attention.at, layers: {layer1: layer1, layer2: layer2}, weight: 500}
    """

    usual = 500.0

    def __init__(self, *, layers: Layers = "auto", power: float = 2.0, distance: Literal["norm", "square"] = "norm") -> None:
        super().__init__(layers)
        if not (math.isfinite(power) and power >= 1):
            raise RecipeError(f"power is {power:g}; it must be a finite number of at least 1")
        check_choice(self, "distance", distance, ("norm", "square"))
        self.power = power
        self.distance: Literal["norm", "square"] = distance

    def fit(self, features: Sequence[tuple[Tensor, Tensor]]) -> None:
        for ours, theirs in features:
            _check(ours, theirs)

    def forward(self, student: Knowledge, teacher: Knowledge | None, batch: Batch) -> Tensor:
        losses = [at_loss(ours, theirs, power=self.power, distance=self.distance) for ours, theirs in self.matched(student, teacher)]
        return torch.stack(losses).sum(0)
