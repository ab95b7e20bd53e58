"""Local structure preserving: how near each neighbour of a node is, in the student as in the teacher.

Yang et al., "Distilling Knowledge from Graph Convolutional Networks", CVPR 2020, arXiv:2003.10477.
"""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from limbeck.core.errors import MismatchError
from limbeck.core.knowledge import Knowledge, Needs, Reads
from limbeck.core.schedule import check_number
from limbeck.core.task import Batch
from limbeck.objectives._layered import Layered, Layers
from limbeck.objectives._options import check_choice
from limbeck.objectives._precision import at_least_float32
from limbeck.objectives._teacher import given

__all__ = ["LSP", "lsp_loss"]

Kernel = Literal["rbf", "linear", "poly", "euclidean", "laplace"]
Direction = Literal["student", "teacher"]


def lsp_loss(student: Tensor, teacher: Tensor, edge_index: Tensor, *, kernel: Kernel = "rbf", sigma: float = 100.0, direction: Direction = "student") -> Tensor:
    """Return KL(s_i || t_i) of each node's local structure, s_ij = exp(K(z_i, z_j)) / sum_k exp(K(z_i, z_k)) over the neighbours j, k of i.

    Features `[M, D]` and `[M, D']` of the same M nodes, and `edge_index [2, E]`, each column (j, i) making j a neighbour of i, give `[M]` in nats; a node
    without a neighbour, or with one, gives zero. K is `rbf` exp(-|z_i - z_j|^2 / (2 sigma)), `linear` z_i . z_j, `poly` (z_i . z_j)^2, `euclidean`
    |z_i - z_j|^2, or `laplace` exp(-|z_i - z_j|_1 / sigma). With `direction` teacher it is KL(t_i || s_i).

    Raises:
        MismatchError: features that are no vectors of the same nodes, or edges that are no whole numbers `[2, E]`.

    >>> import torch
    >>> edges = torch.tensor([[1, 2], [0, 0]])  # nodes 1 and 2 are the neighbours of node 0
    >>> lsp_loss(torch.tensor([[1.0], [0.0], [0.0]]), torch.tensor([[1.0], [0.0], [1.0986123]]), edges, kernel="linear")
    tensor([0.1438, 0.0000, 0.0000])
    """
    if student.ndim != 2 or teacher.ndim != 2 or len(student) != len(teacher):
        raise MismatchError(
            f"the student's feature is {list(student.shape)} and the teacher's {list(teacher.shape)}: both must be vectors of the same nodes, [M, D]"
        )
    if edge_index.ndim != 2 or len(edge_index) != 2 or edge_index.is_floating_point() or edge_index.dtype == torch.bool:
        raise MismatchError(
            f"edge_index is {edge_index.dtype} {list(edge_index.shape)}; it must be whole numbers [2, E], each column from a neighbour to a node"
        )
    log_s = _log_structure(at_least_float32(student), edge_index, kernel, sigma)
    log_t = _log_structure(at_least_float32(teacher.detach()), edge_index, kernel, sigma)
    each = log_s.exp() * (log_s - log_t) if direction == "student" else log_t.exp() * (log_t - log_s)
    return each.new_zeros(len(student)).index_add(0, edge_index[1], each)


def _log_structure(z: Tensor, edge_index: Tensor, kernel: Kernel, sigma: float) -> Tensor:
    """The logarithm of a local structure, `[E]`: a softmax over each node's neighbours."""
    source, target = edge_index
    one, other = z.index_select(0, source), z.index_select(0, target)
    match kernel:
        case "rbf":
            near = ((one - other).square().sum(-1) / (-2 * sigma)).exp()
        case "laplace":
            near = ((one - other).abs().sum(-1) / -sigma).exp()
        case "euclidean":
            near = (one - other).square().sum(-1)
        case "linear":
            near = (one * other).sum(-1)
        case "poly":
            near = (one * other).sum(-1).square()
    most = near.new_full((len(z),), -torch.inf).scatter_reduce(0, target, near.detach(), "amax")
    shifted = near - most.index_select(0, target)
    total = near.new_zeros(len(z)).index_add(0, target, shifted.exp())
    return shifted - total.log().index_select(0, target)


class LSP(Layered):
    """Match each node's local structure, the distribution over its neighbours by how near they are: mean over nodes of KL(student || teacher).

    Yang et al. 2020, arXiv:2003.10477. It reads the batch's `edge_index [2, E]`; student's and teacher's features may differ in width, for nothing is compared
    across. Only nodes that count (the mask) are averaged, and all are neighbours. Batchwise: a graph that is cut into batches loses the edges between them.
    The authors' code has `kernel: laplace, direction: teacher`, sigma 100. efficient-gnns (Joshi et al.) takes KL(teacher || student), cosines of features or
    their squares for `linear` and `poly`, 2 sigma = 2, and the mean over edges in the place of nodes.

    Args:
        layers: student's layer -> teacher's layer, such as {layer1: layer1}; auto takes what the last layer reads, in training after its dropout, where
            that can be told (of a GCN it can, of a GAT it cannot).
        kernel: rbf, linear, poly, euclidean or laplace: what makes a neighbour near.
        sigma: the width of rbf and laplace, above zero.
        direction: student for the paper's KL(student || teacher), teacher for KL(teacher || student).

    Raises:
        RecipeError: another kernel or direction, or a width of zero or less.
        MismatchError: no teacher, features that are no vectors, or a batch without edges.

    Example:
        {kind: graph.lsp, layers: {pool: pool}, weight: 100}
    """

    wish = "vector"
    batchwise = True

    def __init__(self, *, layers: Layers = "auto", kernel: Kernel = "rbf", sigma: float = 100.0, direction: Direction = "student") -> None:
        super().__init__(layers)
        check_choice(self, "kernel", kernel, get_args(Kernel))
        check_choice(self, "direction", direction, get_args(Direction))
        check_number("sigma", sigma, positive=True)
        self.kernel: Kernel = kernel
        self.sigma = sigma
        self.direction: Direction = direction

    def reading(self, student: Reads, teacher: Reads) -> Needs:
        return Needs(student, teacher, fields=frozenset({"edge_index"}))

    def fit(self, features: Sequence[tuple[Tensor, Tensor]]) -> None:
        for (ours, theirs), (one, other) in zip(features, self.pairs, strict=True):
            if ours.ndim != 2 or theirs.ndim != 2:
                told = f"the student's {one!r} gives {list(ours.shape)}, the teacher's {other!r} {list(theirs.shape)}"
                raise MismatchError(f"LSP compares nodes: {told}; name layers that give [M, D]")

    def forward(self, student: Knowledge, teacher: Knowledge | None, batch: Batch) -> Tensor:
        said = given(self, teacher)
        each = [
            lsp_loss(student.feature(one), said.feature(other), batch["edge_index"], kernel=self.kernel, sigma=self.sigma, direction=self.direction)
            for one, other in self.pairs
        ]
        total = torch.stack(each).sum(0)
        if student.mask is None:
            return total.mean()
        return torch.where(student.mask, total, 0.0).sum() / student.mask.sum().clamp(min=1)
