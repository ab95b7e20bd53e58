"""One layer of a graph network. Shapes: M nodes, E directed edges."""

from collections.abc import Sequence

from torch import Tensor, nn

from limbeck.core.errors import MismatchError

__all__ = ["GraphLayer", "node_features"]


class GraphLayer(nn.Module):
    """Dropout of the nodes' features, a convolution over the edges, and an activation where there is one."""

    def __init__(self, convolution: nn.Module, *, dropout: float, activation: nn.Module | None = None) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.convolution = convolution
        self.activation = activation

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """Nodes `[M, inputs]` and edges `[2, E]` to `[M, outputs]`."""
        x = self.convolution(self.dropout(x), edge_index)
        return x if self.activation is None else self.activation(x)


def node_features(model: str, in_shape: Sequence[int]) -> int:
    """Return F of a node's shape (F,); refuse another rank or no feature."""
    if len(in_shape) != 1 or in_shape[0] < 1:
        raise MismatchError(f"{model} reads the features (F,) of a graph's nodes, not examples of shape {tuple(in_shape)}: use the task graph")
    return in_shape[0]
