"""A two-layer graph convolutional network.

Kipf & Welling, "Semi-Supervised Classification with Graph Convolutional Networks", ICLR 2017, arXiv:1609.02907, eq. 9.
"""

from torch import Tensor, nn

from limbeck.bridges.geometric import gcn_convolution

from ._arguments import check_classes, check_rate, check_whole
from ._graph_layer import GraphLayer, node_features

__all__ = ["GCN"]


class GCN(nn.Module):
    """A two-layer graph convolutional network, by the definition and with the defaults of Kipf & Welling 2017: A' ReLU(A' X W1) W2, dropout before each layer.

    A' = D^-1/2 (A + I) D^-1/2. Stage ends: `layer1 [M, hidden]`, `head [M, C]`. On Cora (F = 1433, C = 7) it has 23,063 parameters.

    Args:
        hidden: units of the hidden layer.
        dropout: share of a layer's inputs dropped in training.

    Raises:
        MismatchError: examples that are no nodes with features (F,).
        RecipeError: a width below one, or a rate outside [0, 1).
        MissingDependency: torch-geometric is not installed.
    """

    def __init__(self, in_shape: tuple[int, ...], classes: int, *, hidden: int = 16, dropout: float = 0.5) -> None:
        super().__init__()
        check_classes("GCN", classes)
        check_whole("hidden", hidden)
        check_rate("dropout", dropout)
        self.layer1 = GraphLayer(gcn_convolution(node_features("GCN", in_shape), hidden), dropout=dropout, activation=nn.ReLU())
        self.head = GraphLayer(gcn_convolution(hidden, classes), dropout=dropout)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """Nodes `[M, F]` and edges `[2, E]` to logits `[M, C]`."""
        return self.head(self.layer1(x, edge_index), edge_index)
