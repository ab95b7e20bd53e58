"""Instance relationship graphs: examples, the distances between them, and how a network moves them from layer to layer.

Liu et al., "Knowledge Distillation via Instance Relationship Graph", CVPR 2019, eq. 1-11 (sec. 3.1-3.4).
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.knowledge import Knowledge, Needs, Reads
from limbeck.core.schedule import Number, check_number
from limbeck.core.task import Batch, Facts
from limbeck.objectives._layered import Layered, Layers
from limbeck.objectives._options import check_choice
from limbeck.objectives._precision import at_least_float32
from limbeck.objectives._projectors import projectors
from limbeck.objectives._teacher import given
from limbeck.objectives.relation._geometry import centred_gram, flat, squared_distances

__all__ = ["IRG", "irg_loss"]


def irg_loss(
    student_vertices: Tensor,
    teacher_vertices: Tensor,
    student_layers: Sequence[Tensor],
    teacher_layers: Sequence[Tensor],
    *,
    vertices: float = 0.1,
    edges: float = 5.0,
    transformations: float = 5.0,
    edge_transformations: bool = False,
    scale: Literal["max", "none"] = "max",
    reduction: Literal["mean", "sum"] = "mean",
) -> Tensor:
    """Return vertices ||V_T - V_S||^2 + edges sum_l ||A_T^l - A_S^l||^2 + transformations sum_l ||L_T^l - L_S^l||^2.

    A^l(i, j) = ||f_l(x_i) - f_l(x_j)||^2 `[N, N]` of layer l; L^l(i) = ||f_l(x_i) - f_{l+1}(x_i)||^2 `[N]` between neighbours in the sequence of layers, the
    wider one averaged over neighbouring channels to the other's width; with `edge_transformations` also (||A_T^l - A_T^{l+1}||^2 - the student's)^2. Vertices
    `[N, ...]` of one shape, layers vectors `[N, D]`, sequences `[N, T, D]` or maps `[N, D, H, W]`, averaged over places; `scale: max` divides each A and L by
    its largest element. Squared norms are means over their elements, or sums. Gives a scalar.

    Raises:
        MismatchError: vertices of unequal shapes, other numbers of layers or of examples.

    >>> import torch
    >>> line = torch.tensor([[0.0], [1.0], [2.0]])
    >>> irg_loss(line, line, [line], [line.square()], edges=1.0, reduction="sum")  # 2 (3/16)^2 + 2 (5/16)^2
    tensor(0.2656)
    """
    if student_vertices.shape != teacher_vertices.shape or len(student_layers) != len(teacher_layers):
        raise MismatchError(
            f"the student's vertices are {list(student_vertices.shape)} and the teacher's {list(teacher_vertices.shape)}, "
            f"with {len(student_layers)} and {len(teacher_layers)} layers: both must be equal"
        )
    norm = F.mse_loss if reduction == "mean" else _sum_of_squares
    pairs = [flat(_pooled(ours), _pooled(theirs)) for ours, theirs in zip(student_layers, teacher_layers, strict=True)]
    ours, theirs = flat(student_vertices, teacher_vertices)
    if not len(ours):
        return ours.sum()
    loss = vertices * norm(ours, theirs)
    graphs = [(_edges(one, scale), _edges(other, scale)) for one, other in pairs]
    for one, other in graphs:
        loss = loss + edges * norm(one, other)
    for (ours, theirs), (our_next, their_next) in pairwise(pairs):
        loss = loss + transformations * norm(_moved(ours, our_next, scale), _moved(theirs, their_next, scale))
    if edge_transformations:
        for (ours, theirs), (our_next, their_next) in pairwise(graphs):
            loss = loss + transformations * (norm(ours, our_next) - norm(theirs, their_next)).square()
    return loss


def _sum_of_squares(one: Tensor, other: Tensor) -> Tensor:
    return (one - other).square().sum()


def _pooled(x: Tensor) -> Tensor:
    """A feature's vectors `[N, D]`: the mean over its places."""
    x = at_least_float32(x)
    return x.mean(1) if x.ndim == 3 else x.flatten(2).mean(2) if x.ndim > 3 else x


def _edges(x: Tensor, scale: str) -> Tensor:
    return _scaled(squared_distances(centred_gram(x)), scale).to(x.dtype)


def _moved(x: Tensor, following: Tensor, scale: str) -> Tensor:
    """How far each example goes from one layer to the next `[N]`."""
    width = min(x.shape[1], following.shape[1])
    gap = F.adaptive_avg_pool1d(x[:, None], width) - F.adaptive_avg_pool1d(following[:, None], width)
    return _scaled(gap[:, 0].square().sum(1), scale)


def _scaled(x: Tensor, scale: str) -> Tensor:
    if scale == "none":
        return x
    most = x.amax()
    return x / torch.where(most > 0, most, 1.0)


class IRG(Layered):
    """Match graphs whose vertices are the batch's examples: vertices, edges (squared distances) and what becomes of them from layer to layer.

    Liu et al. 2019: lambda_1 ||V_T - V_S||^2 for logits, lambda_2 sum_l ||A_T - A_S||^2 for layers, lambda_3 sum_l ||L_T - L_S||^2 for neighbouring layers, in
    the order of `layers`, one to one. The paper prints sums over examples and edges; here, as in later ports, they are means, and the
    weights those of a widely used port (Knowledge-Distillation-Zoo: 0.1, 5, 5). The authors' code divides edges and moves by their largest, which the printed
    formula does not (`scale: none`), and holds it constant on the way back, which is not done here. They follow examples within a stage, whose layers are of
    one width; from stage to stage the wider layer is averaged over neighbouring channels. The paper defines edge transformations and leaves them out.

    Args:
        layers: student's layer -> teacher's layer, in order, such as {layer1: layer1, layer2: layer2}; auto pairs the ends of all stages.
        of: both takes vertices from the logits and edges and moves from the layers, as the paper does; logits takes vertices and edges from the logits and
            reads no layer; features takes all from the layers, vertices from the last one, the student's projected where widths differ.
        vertices: lambda_1, of the vertices.
        edges: lambda_2, of each layer's edges.
        transformations: lambda_3, of each pair of neighbouring layers.
        edge_transformations: also match how far the edges move.
        scale: divide edges and moves by their largest in the batch (max), or not (none).
        reduction: means over examples and edges, or sums.

    Raises:
        RecipeError: options that cannot be meant, layers where of is logits.
        MismatchError: no teacher, logits of other classes.

    Example:
        {kind: graph.irg, layers: {layer1: layer1, layer2: layer2, layer3: layer3}}
    """

    batchwise = True

    def __init__(
        self,
        *,
        layers: Layers = "auto",
        of: Literal["logits", "features", "both"] = "both",
        vertices: Number = 0.1,
        edges: Number = 5.0,
        transformations: Number = 5.0,
        edge_transformations: bool = False,
        scale: Literal["max", "none"] = "max",
        reduction: Literal["mean", "sum"] = "mean",
    ) -> None:
        super().__init__(layers, reads=of != "logits")
        check_choice(self, "of", of, ("logits", "features", "both"))
        check_choice(self, "scale", scale, ("max", "none"))
        check_choice(self, "reduction", reduction, ("mean", "sum"))
        for name, number in (("vertices", vertices), ("edges", edges), ("transformations", transformations)):
            check_number(name, number, positive=False)
        if of == "logits" and layers != "auto":
            raise RecipeError("IRG of logits reads no layers: leave layers out, or take of: both")
        self.vertices, self.edges, self.transformations, self.edge_transformations = vertices, edges, transformations, edge_transformations
        self.of: Literal["logits", "features", "both"] = of
        self.scale: Literal["max", "none"] = scale
        self.reduction: Literal["mean", "sum"] = reduction
        self.project = nn.ModuleList()

    def reading(self, student: Reads, teacher: Reads) -> Needs:
        outputs = frozenset[str]() if self.of == "features" else frozenset({"main"})
        return Needs(replace(student, outputs=outputs), replace(teacher, outputs=outputs))

    def bound(self, student: Knowledge, teacher: Knowledge, facts: Facts | None) -> None:
        if self.of != "features" and student.main.logits.shape[1:] != teacher.main.logits.shape[1:]:
            ours, theirs = list(student.main.logits.shape), list(teacher.main.logits.shape)
            raise MismatchError(f"IRG compares logits, and the student's are {ours}, the teacher's {theirs}: take of: features")

    def fit(self, features: Sequence[tuple[Tensor, Tensor]]) -> None:
        if self.of == "features":
            ours, theirs = features[-1]
            self.project = projectors([(_pooled(ours), _pooled(theirs))], [self.pairs[-1]])

    def forward(self, student: Knowledge, teacher: Knowledge | None, batch: Batch) -> Tensor:
        matched = list(self.matched(student, teacher))
        ours, theirs = [one for one, _ in matched], [other for _, other in matched]
        if self.of == "features":
            vertices = self.project[0](_pooled(ours[-1])), _pooled(theirs[-1])
        else:
            vertices = self._logits(student, teacher)
        if self.of == "logits":
            ours, theirs = [vertices[0]], [vertices[1]]
        return irg_loss(
            *vertices,
            ours,
            theirs,
            vertices=self.now(self.vertices),
            edges=self.now(self.edges),
            transformations=self.now(self.transformations),
            edge_transformations=self.edge_transformations,
            scale=self.scale,
            reduction=self.reduction,
        )

    def _logits(self, student: Knowledge, teacher: Knowledge | None) -> tuple[Tensor, Tensor]:
        """Both sides' logits of the valid examples."""
        ours, theirs = student.main.logits, given(self, teacher).main.logits
        if len(ours) != len(theirs):
            raise MismatchError(f"IRG: the student's logits are of {len(ours)} examples and the teacher's of {len(theirs)}")
        return (ours, theirs) if student.mask is None else (ours[student.mask], theirs[student.mask])
