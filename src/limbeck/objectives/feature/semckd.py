"""Semantic calibration: every layer of the student learns from every layer of the teacher, by attention that is learnt.

Chen et al., "Cross-Layer Distillation with Semantic Calibration", AAAI 2021, arXiv:2012.03236, eq. 4 to 8.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.knowledge import Knowledge
from limbeck.core.task import Batch
from limbeck.objectives._layered import Layered
from limbeck.objectives._precision import at_least_float32, place

from ._blocks import batch_mean, bottleneck
from ._maps import check_maps, smaller

__all__ = ["SemCKD", "semckd_loss"]


def semckd_loss(queries: Tensor, keys: Tensor, distances: Tensor) -> Tensor:
    """Return the mean over the student's layers of sum_t a_st d_st, a_s = softmax over the teacher's layers of q_s . k_t, for each example.

    `queries [N, S, E]` of the student's S layers, `keys [N, T, E]` of the teacher's T, `distances [N, S, T]` of their features give `[N]`.

    Raises:
        MismatchError: shapes that do not belong together.

    >>> import torch
    >>> semckd_loss(torch.zeros(1, 1, 2), torch.zeros(1, 2, 2), torch.tensor([[[1.0, 3.0]]]))
    tensor([2.])
    """
    if tuple(distances.shape) != (*queries.shape[:2], keys.shape[1]) or queries.shape[::2] != keys.shape[::2]:
        raise MismatchError(
            f"queries {list(queries.shape)}, keys {list(keys.shape)} and distances {list(distances.shape)}: they must be [N, S, E], [N, T, E] and [N, S, T]"
        )
    attention = F.softmax(at_least_float32(queries) @ at_least_float32(keys).transpose(1, 2), -1)
    return (attention * at_least_float32(distances)).sum((1, 2)) / queries.shape[1]


class SemCKD(Layered):
    """Let each layer of the student choose, example by example, which layers of the teacher to match: sum_t a_st MSE(p_st(s), t), mean over its layers.

    Chen et al. 2021, arXiv:2012.03236: the attention a comes from the rows of the batch's similarity matrices F F^T of each layer, embedded (two linear layers
    with a ReLU, a quarter of the batch wide, of length one); p is 1x1, 3x3 and 1x1 convolutions, twice the teacher's channels wide. The paper sums over the
    student's layers; the authors' code takes their mean, as here, with the paper's weight 400. The embedding reads a row of the similarity matrix, so that
    it belongs to one batch size: a smaller batch is filled up with zeros (the authors skip it), a larger one refused. Maps of unequal size meet at the
    smaller one. It reads a batch as a whole.

    Args:
        layers: the layers of both, {student: [layer1, layer2], teacher: [layer1, layer2, layer3]}; auto takes the ends of the stages.
        batch_size: examples in the largest batch that will be seen at once; left alone, those of the first one.

    Raises:
        RecipeError: layers that are not named for both sides, or a batch size below two.
        MismatchError: no teacher, features that are no maps, or a batch larger than was bound.

    Example:
        {kind: feature.semckd, layers: {student: [layer1, layer2], teacher: [layer1, layer2, layer3]}, weight: 400}
    """

    batchwise = True
    perfect = "no"
    usual = 400.0

    def __init__(self, *, layers: Literal["auto"] | dict[str, list[str]] = "auto", batch_size: int | None = None) -> None:
        super().__init__("auto")
        if batch_size is not None and batch_size < 2:
            raise RecipeError(f"batch_size is {batch_size}; SemCKD compares the examples of a batch and needs two or more")
        if layers != "auto":
            if set(layers) != {"student", "teacher"} or not all(layers.values()):
                raise RecipeError(f"layers of SemCKD are {layers!r}; they must read {{student: [layer1, layer2], teacher: [layer1, layer2]}}, or auto")
            self._cross(layers["student"], layers["teacher"])
        self.batch_size = batch_size
        self.queries, self.keys, self.projections = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()

    def _cross(self, student: Sequence[str], teacher: Sequence[str]) -> None:
        self._pairs = [(one, other) for one in dict.fromkeys(student) for other in dict.fromkeys(teacher)]
        self.undecided = False

    def chosen(self, student: Knowledge, teacher: Knowledge) -> None:
        ours, theirs = dict.fromkeys(one for one, _ in self.pairs), dict.fromkeys(other for _, other in self.pairs)
        self._cross(list(ours), list(theirs))
        self.said = (f"SemCKD weighs {', '.join(ours)} of the student against {', '.join(theirs)} of the teacher",)

    @property
    def _wide(self) -> int:
        """How many of the teacher's layers there are: `pairs` goes through them for each of the student's."""
        return len({other for _, other in self.pairs})

    def fit(self, features: Sequence[tuple[Tensor, Tensor]]) -> None:
        for (ours, theirs), names in zip(features, self.pairs, strict=True):
            check_maps(ours, theirs, names)
        first = features[0][0]
        self.batch_size = self.batch_size or len(first)
        where = place(first)
        self.queries = nn.ModuleList(_embedding(self.batch_size, first) for _ in range(len(features) // self._wide))
        self.keys = nn.ModuleList(_embedding(self.batch_size, first) for _ in range(self._wide))
        self.projections = nn.ModuleList(bottleneck(ours.shape[1], 2 * theirs.shape[1], theirs.shape[1], **where) for ours, theirs in features)

    def forward(self, student: Knowledge, teacher: Knowledge | None, batch: Batch) -> Tensor:
        dtype = self.queries[0].get_parameter("0.weight").dtype
        found = [(ours.to(dtype), theirs.to(dtype)) for ours, theirs in self.matched(student, teacher)]
        queries = [embed(self._similar(ours)) for embed, (ours, _) in zip(self.queries, found[:: self._wide], strict=True)]
        keys = [embed(self._similar(theirs)) for embed, (_, theirs) in zip(self.keys, found[: self._wide], strict=True)]
        distances = [_distance(project, ours, theirs) for project, (ours, theirs) in zip(self.projections, found, strict=True)]
        each = torch.stack(distances, 1).unflatten(1, (len(queries), len(keys)))  # [N, S, T]
        return batch_mean(semckd_loss(F.normalize(torch.stack(queries, 1), dim=-1), F.normalize(torch.stack(keys, 1), dim=-1), each))

    def _similar(self, x: Tensor) -> Tensor:
        """Similarities `[N, batch_size]` of each example with all of the batch."""
        n, most = len(x), self.batch_size or 0
        if n > most:
            raise MismatchError(f"SemCKD was bound to batches of {most} and this one has {n}: set batch_size: {n}, the largest batch that there will be")
        flat = x.flatten(1)
        return F.pad(flat @ flat.T, (0, most - n))


def _embedding(batch_size: int, student: Tensor) -> nn.Sequential:
    wide, where = max(batch_size // 4, 2), place(student)  # a direction needs two numbers
    return nn.Sequential(nn.Linear(batch_size, 2 * wide, **where), nn.ReLU(), nn.Linear(2 * wide, wide, **where))


def _distance(project: nn.Module, ours: Tensor, theirs: Tensor) -> Tensor:
    """The mean squared difference `[N]` of a teacher's map from a student's, projected, both at the smaller size."""
    ours, theirs = smaller(ours, theirs)
    return at_least_float32(project(ours) - theirs).square().flatten(1).mean(1)
