"""torch-geometric: the convolutions of graph networks.

Shapes: M nodes, E directed edges; a convolution takes `x [M, inputs]` and `edge_index [2, E]` (source, target).
"""

import re
import warnings
from types import ModuleType

from torch import nn

from limbeck.core.errors import MissingDependency

__all__ = ["gat_convolution", "gcn_convolution"]

_DEPRECATED = re.escape("`torch.jit.script` is deprecated. Please switch to `torch.compile` or `torch.export`.")


def gcn_convolution(inputs: int, outputs: int) -> nn.Module:
    """Return a graph convolution, self-loops added: D^-1/2 (A + I) D^-1/2 X W + b, `[M, outputs]`.

    Kipf & Welling, "Semi-Supervised Classification with Graph Convolutional Networks", ICLR 2017, arXiv:1609.02907, eq. 2.
    """
    return _library().GCNConv(inputs, outputs)


def gat_convolution(inputs: int, outputs: int, *, heads: int, concat: bool, dropout: float) -> nn.Module:
    """Return an attention over neighbours, self-loops added, with `dropout` of its weights: `[M, heads * outputs]`, or the mean `[M, outputs]` over heads.

    Velickovic et al., "Graph Attention Networks", ICLR 2018, arXiv:1710.10903, eq. 5 and 6.
    """
    return _library().GATConv(inputs, outputs, heads=heads, concat=concat, dropout=dropout)


def _library() -> ModuleType:
    """Import `torch_geometric.nn`; while it is imported it scripts functions of its own with what torch has deprecated."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", _DEPRECATED, DeprecationWarning, r"torch\.jit\._script")
        try:
            from torch_geometric import nn as layers
        except ModuleNotFoundError as error:
            if error.name != "torch_geometric":
                raise
            raise MissingDependency("torch-geometric", "graph", "a graph network") from None
    return layers
