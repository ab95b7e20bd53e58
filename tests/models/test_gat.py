"""The graph attention network is the published formula."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.tap import Tap
from limbeck.models.gat import GAT

EDGES = torch.tensor([[0, 1, 1, 2, 2, 3], [1, 0, 2, 1, 3, 2]])  # a path of four nodes; node 4 stands alone


def attended(x: Tensor, weights: dict[str, Tensor], layer: str, heads: int) -> Tensor:
    """Each head's new features, `[M, heads, units]`, by a loop over nodes."""
    linear, source, target = (weights[f"{layer}.convolution.{name}"] for name in ("lin.weight", "att_src", "att_dst"))
    h = (x @ linear.T).view(len(x), heads, -1)
    rows = []
    for node in range(len(x)):
        neighbours = [*EDGES[0][EDGES[1] == node].tolist(), node]
        scores = torch.stack([F.leaky_relu((h[other] * source[0]).sum(-1) + (h[node] * target[0]).sum(-1), 0.2) for other in neighbours])
        rows.append((scores.softmax(0)[..., None] * h[neighbours]).sum(0))
    return torch.stack(rows)


def test_it_is_the_formula_with_a_loop_over_nodes() -> None:
    torch.manual_seed(0)
    model = GAT((3,), 2, hidden=4, heads=3, head_heads=2).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    x = torch.randn(5, 3, dtype=torch.float64)
    weights = dict(model.named_parameters())
    hidden = F.elu(attended(x, weights, "layer1", 3).flatten(1) + weights["layer1.convolution.bias"])
    with Tap(model, ["layer1"]) as tap:
        logits = model(x, EDGES)
    torch.testing.assert_close(tap.features["layer1"], hidden)
    torch.testing.assert_close(logits, attended(hidden, weights, "head", 2).mean(1) + weights["head.convolution.bias"])


def test_on_cora_it_has_the_paper_s_size() -> None:
    assert sum(parameter.numel() for parameter in GAT((1433,), 7).parameters()) == 92_373


def test_what_it_cannot_be_built_for_is_refused() -> None:
    with pytest.raises(MismatchError, match=r"features \(F,\).*\(1, 8, 8\)"):
        GAT((1, 8, 8), 2)
    with pytest.raises(RecipeError, match="head_heads is 0"):
        GAT((3,), 2, head_heads=0)
    with pytest.raises(RecipeError, match="dropout is 1"):
        GAT((3,), 2, dropout=1.0)
