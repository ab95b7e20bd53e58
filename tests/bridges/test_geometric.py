"""torch-geometric's absence is one line; its presence brings the convolutions and no warning."""

import sys

import pytest
import torch

from limbeck.bridges.geometric import gat_convolution, gcn_convolution
from limbeck.core.errors import MissingDependency


def test_its_absence_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_geometric", None)
    with pytest.raises(MissingDependency, match=r'a graph network needs torch-geometric: pip install "limbeck\[graph\]"'):
        gcn_convolution(3, 2)


def test_the_convolutions_give_what_they_say() -> None:
    x, edges = torch.randn(5, 3), torch.tensor([[0, 1], [1, 0]])
    assert gcn_convolution(3, 2)(x, edges).shape == (5, 2)
    assert gat_convolution(3, 2, heads=4, concat=True, dropout=0.5)(x, edges).shape == (5, 8)
    assert gat_convolution(3, 2, heads=4, concat=False, dropout=0.5)(x, edges).shape == (5, 2)
