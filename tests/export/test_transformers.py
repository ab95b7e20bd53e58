"""`export.transformers`: a folder that transformers opens by itself, with the same answers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.pretrained import V, hf, told
from torch import nn

from limbeck.core.errors import MismatchError
from limbeck.export.transformers import Transformers

CASES = [
    ("gpt2", "causal", "AutoModelForCausalLM"),
    ("llama", "causal", "AutoModelForCausalLM"),
    ("gemma2", "causal", "AutoModelForCausalLM"),
    ("bert", "masked", "AutoModelForMaskedLM"),
    ("distilbert", "masked", "AutoModelForMaskedLM"),
    ("roberta", "classification", "AutoModelForSequenceClassification"),
]


@pytest.mark.parametrize(("kind", "head", "auto"), CASES)
def test_from_pretrained_opens_it_and_answers_alike(kind: str, head: str, auto: str, tmp_path: Path) -> None:
    import transformers

    model, x = hf(kind, head, classes=5 if head == "classification" else V), torch.randint(3, V, (2, 9))
    Transformers().export(model, x, tmp_path / "model.safetensors")
    own = getattr(transformers, auto).from_pretrained(tmp_path, attn_implementation="eager" if kind == "gemma2" else "sdpa").eval()
    with torch.no_grad():
        said = model(x)
        assert torch.equal(own(input_ids=x).logits, model.model(input_ids=x).logits)
        assert torch.allclose(own(input_ids=x).logits, said if isinstance(said, torch.Tensor) else said.logits, atol=1e-5)


def test_adapters_are_added_to_the_weights(tmp_path: Path) -> None:
    import transformers

    model, x = hf("llama", "causal", adapter={"r": 2}), torch.randint(3, V, (2, 9))
    with torch.no_grad():
        for name, one in model.named_parameters():
            if "lora_B" in name:
                one.normal_()
    Transformers().export(model, x, tmp_path / "model.safetensors")
    assert not [name for name in load_file(tmp_path / "model.safetensors") if "lora" in name]
    own = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.allclose(own(input_ids=x).logits, model(x).logits, atol=1e-5)
    assert [name for name, _ in model.named_parameters() if "lora" in name], "the model itself keeps them apart"


def test_layers_that_the_configuration_does_not_tell_are_refused(tmp_path: Path) -> None:
    model = hf("llama", "causal", config=told("llama"))
    layers: Any = model.model.model.layers
    layers[1].mlp.down_proj = nn.Linear(30, 24, bias=False)
    with pytest.raises(MismatchError, match=r"'model\.layers\.1\.mlp\.down_proj\.weight' is \[24, 30\], and by its configuration \[24, 40\].*prune\.width"):
        Transformers().export(model, torch.zeros(1, 4), tmp_path / "model.safetensors")
    assert not list(tmp_path.iterdir())


def test_what_is_no_model_of_transformers(tmp_path: Path) -> None:
    with pytest.raises(MismatchError, match="a Linear is no model of transformers"):
        Transformers().export(nn.Linear(2, 2), torch.zeros(1, 2), tmp_path / "model.safetensors")
