"""Low-rank adapters: nothing else learns, nothing else changes, and merged they compute the same."""

from typing import Any

import pytest
import torch
from tests.pretrained import V, hf

from limbeck.bridges.peft import adapters, merged
from limbeck.core.errors import RecipeError

X = torch.arange(18).view(2, 9) % (V - 3) + 3


def trained(model: Any, steps: int = 3) -> Any:
    moving = [one for one in model.parameters() if one.requires_grad]
    optimizer = torch.optim.SGD(moving, lr=0.5)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        said = model(X)
        (said if isinstance(said, torch.Tensor) else said.logits).square().mean().backward()
        optimizer.step()
    return model.eval()


@pytest.mark.parametrize(("kind", "head"), [("gpt2", "causal"), ("llama", "causal"), ("bert", "masked")])
def test_the_base_stays_to_the_bit_and_only_adapters_learn(kind: str, head: str) -> None:
    model = hf(kind, head, adapter={"kind": "lora", "r": 2, "alpha": 4.0})
    learn = {name for name, one in model.named_parameters() if one.requires_grad}
    assert learn and all(".lora_" in name for name in learn)
    before = {name: one.detach().clone() for name, one in model.named_parameters()}
    trained(model)
    moved = {name for name, one in model.named_parameters() if not torch.equal(one, before[name])}
    assert moved == learn


def test_what_is_merged_answers_alike_and_by_the_formula() -> None:
    model = trained(hf("gpt2", "causal", adapter={"kind": "lora", "r": 2, "alpha": 6.0}))
    layer = model.model.transformer.h[1].attn.c_attn
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    wanted = layer.base_layer.weight + 6.0 / 2 * (b @ a).T  # GPT-2 keeps its weights turned
    with torch.no_grad():
        apart = model(X).logits
        assert len(adapters(model.model)) == 3
        merged(model.model)
        assert not adapters(model.model)
        assert torch.allclose(model.model.transformer.h[1].attn.c_attn.weight, wanted, atol=1e-6)
        assert torch.allclose(model(X).logits, apart, atol=1e-5 * float(apart.abs().max()))


def test_a_classifiers_own_layers_learn_too() -> None:
    model = hf("bert", "classification", classes=3, adapter={"r": 2})
    learn = {name for name, one in model.named_parameters() if one.requires_grad}
    assert {name for name in learn if ".lora_" not in name} == {"model.classifier.weight", "model.classifier.bias"}


def test_what_is_kept_is_apart_and_built_again() -> None:
    from limbeck.models.hf import HF

    model = trained(hf("llama", "causal", adapter={"r": 2}))
    again = HF((16,), V, **model.options).eval()
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(X).logits, model(X).logits)
    assert {name for name, one in again.named_parameters() if one.requires_grad} == {name for name, one in model.named_parameters() if one.requires_grad}
    assert model.plain and again.plain


def test_an_adapted_head_is_not_taken_for_a_plain_one() -> None:
    model = trained(hf("llama", "causal", adapter={"r": 2, "targets": ["lm_head"]}))
    with torch.no_grad():
        assert torch.allclose(model(X).logits, model.model(input_ids=X).logits, atol=1e-6)
        assert not torch.allclose(model(X).logits, model.model.lm_head.base_layer(model.model.model(input_ids=X).last_hidden_state), atol=1e-3)


@pytest.mark.parametrize(
    ("kind", "adapter", "told"),
    [
        ("llama", {"targets": ["q_prj"]}, "no layer 'q_prj' to adapt in LlamaForCausalLM; did you mean 'q_proj'"),
        ("granite", {"targets": ["norm"]}, "cannot be adapted at norm"),
    ],
)
def test_targets_that_cannot_be_meant(kind: str, adapter: dict[str, Any], told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        hf(kind, "causal", adapter=adapter)


def test_an_architecture_of_which_no_targets_are_known_asks_for_them() -> None:
    with pytest.raises(RecipeError, match=r"no layers are known to adapt in a model of type distilbert.*q_lin"):
        hf("distilbert", "masked", adapter={"r": 2})
    assert adapters(hf("distilbert", "masked", adapter={"r": 2, "targets": ["q_lin", "v_lin"]}))
