"""The block of language models against its formula, in the open against the fused kernel, and positions that turn."""

import cmath
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.tap import Tap
from limbeck.models._transformer import Attention, Block, Past, _turn, check_sizes, ends, length_of, rotation

D, H = 8, 2


def linear(x: Tensor, p: Any, name: str) -> Tensor:
    return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]


def norm(x: Tensor, p: Any, name: str) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * p[f"{name}.weight"] + p[f"{name}.bias"]


def naive(x: Tensor, p: Any, allowed: Tensor, at: str = "") -> Tensor:
    """Attention token by token and head by head."""
    q, k, v = (linear(x, p, f"{at}{name}") for name in ("query", "key", "value"))
    out = torch.zeros_like(x)
    for n in range(x.shape[0]):
        for t in range(x.shape[1]):
            for h in range(H):
                part = slice(h * D // H, (h + 1) * D // H)
                seen = [s for s in range(x.shape[1]) if allowed[n, t, s]]
                weights = torch.stack([(q[n, t, part] @ k[n, s, part] / math.sqrt(D / H)).exp() for s in seen])
                out[n, t, part] = torch.stack([w / weights.sum() * v[n, s, part] for w, s in zip(weights, seen, strict=True)]).sum(0)
    return linear(out, p, f"{at}out")


@pytest.mark.parametrize("how", ["fused", "open"])
def test_attention_is_its_formula(how: Any) -> None:
    layer = Attention(D, H, 0.0, how).double()
    p, x = dict(layer.named_parameters()), torch.randn(2, 5, D, dtype=torch.float64)
    everybody = torch.ones(2, 5, 5, dtype=torch.bool)
    assert torch.allclose(layer(x), naive(x, p, everybody))
    assert torch.allclose(layer(x, causal=True), naive(x, p, everybody.tril()))
    some = (torch.rand(2, 5, 5) < 0.5) | torch.eye(5, dtype=torch.bool)
    assert torch.allclose(layer(x, some[:, None]), naive(x, p, some))


@pytest.mark.parametrize("order", ["pre", "post"])
def test_a_block_is_its_formula(order: Any) -> None:
    block = Block(D, H, 12, norm=order, dropout=0.0, how="fused").double()
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter)
    p, x = dict(block.named_parameters()), torch.randn(2, 4, D, dtype=torch.float64)
    allowed = torch.ones(2, 4, 4, dtype=torch.bool)

    def mlp(x: Tensor) -> Tensor:
        return linear(F.gelu(linear(x, p, "mlp.0")), p, "mlp.2")

    if order == "pre":
        y = x + naive(norm(x, p, "norm1"), p, allowed, "attention.")
        y = y + mlp(norm(y, p, "norm2"))
    else:
        y = norm(x + naive(x, p, allowed, "attention."), p, "norm1")
        y = norm(y + mlp(y), p, "norm2")
    assert torch.allclose(block(x), y)


def test_in_the_open_probabilities_can_be_read_and_are_those_of_the_fused_kernel() -> None:
    open_, fused = Attention(D, H, 0.0, "open"), Attention(D, H, 0.0, "fused")
    fused.load_state_dict(open_.state_dict())
    x = torch.randn(2, 5, D)
    with Tap(open_, ["softmax", "query"]) as tap:
        seen = open_(x, causal=True)
    assert torch.allclose(seen, fused(x, causal=True), atol=1e-6)
    probabilities = tap.features["softmax"]
    assert probabilities.shape == (2, H, 5, 5)
    assert torch.allclose(probabilities.sum(-1), torch.ones(2, H, 5))
    assert not probabilities.triu(1).any()
    assert tap.features["query"].shape == (2, 5, D)


@pytest.mark.parametrize("how", ["fused", "open"])
def test_what_was_read_before_need_not_be_read_again(how: Any) -> None:
    layer = Attention(D, H, 0.0, how)
    x, past = torch.randn(2, 6, D), Past()
    whole = layer(x, causal=True)
    first = layer(x[:, :4], causal=True, past=past)
    rest = [layer(x[:, at : at + 1], torch.ones(1, 1, 1, at + 1, dtype=torch.bool), past=past) for at in (4, 5)]
    assert torch.allclose(torch.cat([first, *rest], 1), whole, atol=1e-6)


def test_rotary_positions_turn_pairs_as_complex_numbers_and_scores_know_distances_alone() -> None:
    position = torch.tensor([[3, 10]])
    cosine, sine = rotation(position, 4)
    x = torch.randn(2, 1, 2, 4, dtype=torch.float64)
    turned = _turn(x, cosine, sine)
    for place, at in enumerate(position[0].tolist()):
        for pair in range(2):
            number = complex(x[0, 0, place, pair], x[0, 0, place, pair + 2]) * cmath.exp(1j * at * 10_000.0 ** (-2 * pair / 4))
            assert complex(turned[0, 0, place, pair], turned[0, 0, place, pair + 2]) == pytest.approx(number, rel=1e-5)
    near, far = (_turn(x, *rotation(torch.tensor([[first, first + 7]]), 4)) for first in (0, 1000))
    assert torch.allclose(near[:, :, 0] @ near[:, :, 1].transpose(1, 2), far[:, :, 0] @ far[:, :, 1].transpose(1, 2), atol=1e-3)


def test_dropout_is_for_training() -> None:
    for how in ("fused", "open"):
        block = Block(D, H, 16, norm="pre", dropout=0.5, how=how)
        x = torch.randn(2, 5, D)
        assert not torch.equal(block(x), block(x))
        block.eval()
        assert torch.equal(block(x), block(x))


def test_what_makes_no_transformer_is_refused() -> None:
    assert check_sizes("M", 3, 8, 1, 2, 1.5, 0.0, "fused") == 12
    good: dict[str, Any] = {"classes": 3, "dim": 8, "depth": 1, "heads": 2, "mlp_ratio": 4.0, "dropout": 0.0, "attention": "fused"}
    bad = {"dim": 0, "depth": 0, "heads": 3, "mlp_ratio": 0.01, "dropout": 1.0, "attention": "flash"}
    for name, value in bad.items():
        with pytest.raises(RecipeError):
            check_sizes("M", **{**good, name: value})
    with pytest.raises(MismatchError, match="0 classes"):
        check_sizes("M", **{**good, "classes": 0})
    with pytest.raises(MismatchError, match="M reads rows of token ids"):
        length_of("M", (1, 8, 8))
    assert ends(1) == {1: "layer1"}
    assert ends(4) == {2: "layer1", 3: "layer2", 4: "layer3"}
