"""The graph convolutional network is the published formula."""

import pytest
import torch

from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.tap import Tap
from limbeck.models.gcn import GCN

EDGES = torch.tensor([[0, 1, 1, 2, 2, 3], [1, 0, 2, 1, 3, 2]])  # a path of four nodes; node 4 stands alone


def test_it_is_the_formula_with_dense_matrices() -> None:
    torch.manual_seed(0)
    model = GCN((3,), 2, hidden=4).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    x = torch.randn(5, 3, dtype=torch.float64)
    adjacency = torch.eye(5, dtype=torch.float64).index_put((EDGES[0], EDGES[1]), torch.ones((), dtype=torch.float64))
    scale = adjacency.sum(1).rsqrt()
    spread = scale[:, None] * adjacency * scale
    weights = dict(model.named_parameters())
    inner = "{}.convolution.lin.weight", "{}.convolution.bias"
    (first, first_bias), (last, last_bias) = ([weights[one.format(layer)] for one in inner] for layer in ("layer1", "head"))
    hidden = (spread @ x @ first.T + first_bias).relu()
    with Tap(model, ["layer1"]) as tap:
        logits = model(x, EDGES)
    torch.testing.assert_close(tap.features["layer1"], hidden)
    torch.testing.assert_close(logits, spread @ hidden @ last.T + last_bias)


def test_on_cora_it_has_the_paper_s_size() -> None:
    assert sum(parameter.numel() for parameter in GCN((1433,), 7).parameters()) == 1433 * 16 + 16 + 16 * 7 + 7 == 23_063


def test_what_it_cannot_be_built_for_is_refused() -> None:
    with pytest.raises(MismatchError, match=r"features \(F,\).*\(1, 8, 8\)"):
        GCN((1, 8, 8), 2)
    with pytest.raises(RecipeError, match="hidden is 0"):
        GCN((3,), 2, hidden=0)
    with pytest.raises(RecipeError, match="dropout is 1"):
        GCN((3,), 2, dropout=1.0)
