"""A two-layer graph attention network.

Velickovic et al., "Graph Attention Networks", ICLR 2018, arXiv:1710.10903, sec. 3.3.
"""

from torch import Tensor, nn

from limbeck.bridges.geometric import gat_convolution

from ._arguments import check_classes, check_rate, check_whole
from ._graph_layer import GraphLayer, node_features

__all__ = ["GAT"]


class GAT(nn.Module):
    """A two-layer graph attention network, with the defaults of Velickovic et al. 2018 for Cora: 8 heads of 8 units and ELU, then one head that answers.

    Dropout falls on each layer's inputs and on its attention weights. Stage ends: `layer1 [M, heads * hidden]`, `head [M, C]`. On Cora (F = 1433, C = 7) it has
    92,373 parameters.

    Args:
        hidden: units of each head of the hidden layer.
        heads: attention heads of the hidden layer, put one beside the other.
        head_heads: attention heads of the last layer, averaged (8 for PubMed in the paper).
        dropout: share of a layer's inputs, and of its attention weights, dropped in training.

    Raises:
        MismatchError: examples that are no nodes with features (F,).
        RecipeError: a width or count below one, or a rate outside [0, 1).
        MissingDependency: torch-geometric is not installed.
    """

    def __init__(self, in_shape: tuple[int, ...], classes: int, *, hidden: int = 8, heads: int = 8, head_heads: int = 1, dropout: float = 0.6) -> None:
        super().__init__()
        check_classes("GAT", classes)
        for name, value in (("hidden", hidden), ("heads", heads), ("head_heads", head_heads)):
            check_whole(name, value)
        check_rate("dropout", dropout)
        first = gat_convolution(node_features("GAT", in_shape), hidden, heads=heads, concat=True, dropout=dropout)
        last = gat_convolution(hidden * heads, classes, heads=head_heads, concat=False, dropout=dropout)
        self.layer1 = GraphLayer(first, dropout=dropout, activation=nn.ELU())
        self.head = GraphLayer(last, dropout=dropout)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """Nodes `[M, F]` and edges `[2, E]` to logits `[M, C]`."""
        return self.head(self.layer1(x, edge_index), edge_index)
