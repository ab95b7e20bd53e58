"""Our own models as models of transformers: the same answers to the last bit, and the same gradient."""

from typing import Any

import pytest
import torch
from torch import nn

from limbeck.core.errors import MismatchError
from limbeck.models._as_hf import as_hf
from limbeck.models.cnn import CNN
from limbeck.models.encoder import Encoder
from limbeck.models.gpt import GPT

V, T = 23, 12
SMALL: dict[str, Any] = {"dim": 24, "depth": 3, "heads": 3}


def drawn(model: nn.Module) -> Any:
    for one in model.parameters():
        nn.init.normal_(one, std=0.3)
    return model.eval()


@pytest.mark.parametrize(
    ("how", "kind"),
    [
        ({}, "gpt2"),
        ({"tied": False, "mlp_ratio": 2.5}, "gpt2"),
        ({"positions": "rope"}, "gpt_neox"),
        ({"positions": "rope", "tied": False}, "gpt_neox"),
        ({"attention": "open"}, "gpt2"),
    ],
)
def test_a_gpt_is_a_gpt_2_or_a_gpt_neox(how: dict[str, Any], kind: str) -> None:
    model, x = drawn(GPT((T,), V, **SMALL, **how)), torch.randint(0, V, (3, T))
    made = as_hf(model)
    assert made.model.config.model_type == kind
    segment = torch.tensor([[1] * 5 + [2] * 7]).expand(3, -1)
    with torch.no_grad():
        assert torch.allclose(made(x).logits, model(x).logits, atol=1e-5)
        assert torch.allclose(made(x, segment).logits, model(x, segment).logits, atol=1e-5)
        assert torch.allclose(made.model(input_ids=x).logits, model(x).logits, atol=1e-5)
    assert sum(one.numel() for one in made.parameters()) == sum(one.numel() for one in model.parameters())


def test_an_encoder_of_masked_tokens_is_a_bert() -> None:
    model, x = drawn(Encoder((T,), V, **SMALL)), torch.randint(0, V, (3, T))
    seen = (torch.arange(T) < torch.tensor([[12], [7], [3]])).long()
    made = as_hf(model)
    with torch.no_grad():
        assert torch.allclose(made(x, attention=seen).logits, model(x, seen).logits, atol=1e-5)
    assert sum(one.numel() for one in made.parameters()) == sum(one.numel() for one in model.parameters()) + 24, "but for the one segment of zeros"


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (lambda: Encoder((T,), 3, vocabulary=V, **SMALL), "classifies rows does so by one linear layer"),
        (lambda: Encoder((T,), V, norm="pre", **SMALL), "norm: pre has no counterpart"),
        (lambda: CNN((1, 8, 8), 3), "a CNN is no language model that transformers knows"),
    ],
)
def test_what_none_computes_is_refused_with_why(model: Any, told: str) -> None:
    with pytest.raises(MismatchError, match=told):
        as_hf(model())


def test_blocks_of_several_sizes_cannot_be_told_by_one_configuration() -> None:
    model = drawn(GPT((T,), V, **SMALL))
    model.blocks[1].mlp[0], model.blocks[1].mlp[2] = nn.Linear(24, 60), nn.Linear(60, 24)
    with pytest.raises(MismatchError, match=r"differ in size.* prune\.width"):
        as_hf(model)
