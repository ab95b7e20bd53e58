"""The bridge to transformers: configurations with changes over them, and what a model is, wherever it lies."""

import builtins
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.pretrained import CONFIGS, folder, hf, told

from limbeck.bridges import transformers as bridge
from limbeck.bridges._transformers_answer import form_of, way_of
from limbeck.core.errors import DataError, MissingDependency, RecipeError


def test_a_change_is_told_by_either_name() -> None:
    for name in ("n_layer", "num_hidden_layers"):
        assert bridge.config_of(told("gpt2"), {name: 7}, "x").num_hidden_layers == 7


def test_lists_that_have_an_entry_for_each_layer_are_cut_with_them() -> None:
    config = bridge.config_of(told("gemma3_text"), {"num_hidden_layers": 3}, "x")
    assert config.layer_types == ["sliding_attention", "full_attention", "sliding_attention"]


def test_a_configuration_tells_itself_whole() -> None:
    for kind in CONFIGS:
        config = bridge.config_of(told(kind), {}, "x")
        again = bridge.config_of(json.loads(json.dumps(bridge.told_of(config))), {}, "x")
        assert bridge.told_of(again) == bridge.told_of(config), kind


def test_other_classes_take_the_names_away(tmp_path: Path) -> None:
    config = bridge.config_of(told("bert", id2label={"0": "no", "1": "yes"}, label2id={"no": 0, "yes": 1}), {"num_labels": 3}, "x")
    assert len(config.id2label) == 3
    assert bridge.config_of(told("bert", id2label={"0": "no", "1": "yes"}), {"num_labels": 2}, "x").id2label[1] == "yes"


def test_content_is_of_the_bytes(tmp_path: Path) -> None:
    one = folder(tmp_path / "one", "gpt2", "causal")
    first = bridge.content(str(one))
    assert first.keys() == {"config.json", "model.safetensors"}
    one.rename(tmp_path / "two")
    assert bridge.content(str(tmp_path / "two")) == first
    (tmp_path / "two" / "config.json").write_text("{}")
    assert bridge.content(str(tmp_path / "two")) != first


@pytest.mark.parametrize(
    ("text", "told_of"),
    [
        (None, "has no config.json"),
        ("{", "is not JSON"),
        ("[]", "holds list"),
        ('{"model_type": "llama", "quantization_config": {"a": 1}}', "quantized weights"),
    ],
)
def test_folders_that_are_none(text: str | None, told_of: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises((DataError, RecipeError), match=told_of):
        bridge.config_of(tmp_path, {}, "x")


def test_a_folder_has_no_revision(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"revision is 'main', and .* is a folder"):
        bridge.located(str(tmp_path), "main")


def test_asking_leaves_a_model_as_it_was() -> None:
    model = hf("gpt2", "causal").model.train()
    before, rng = {name: one.clone() for name, one in model.state_dict().items()}, torch.random.get_rng_state()
    form_of(model, use_cache=False)
    way_of(model, use_cache=False)
    assert model.training and model.transformer.h[0].training
    assert torch.equal(torch.random.get_rng_state(), rng)
    assert all(torch.equal(one, before[name]) for name, one in model.state_dict().items())
    assert "forward" not in vars(model.lm_head)


def test_shapes_are_told_without_a_weight() -> None:
    model: Any = hf("llama", "causal").model
    own = {name: list(one.shape) for name, one in model.named_parameters(remove_duplicate=False)}
    assert bridge.shapes(model) == own
    assert bridge.shapes(model, {"intermediate_size": 20})["model.layers.0.mlp.up_proj.weight"] == [20, 24]


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = builtins.__import__

    def without(name: str, *more: Any, **named: Any) -> Any:
        if name.partition(".")[0] in ("transformers", "peft", "datasets"):
            raise ImportError(name)
        return plain(name, *more, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    from limbeck.bridges import datasets, peft

    for ask, extra in ((bridge.library, "language"), (peft._library, "peft"), (datasets._library, "language")):
        with pytest.raises(MissingDependency, match=rf'pip install "limbeck\[{extra}\]"'):
            ask()
    assert peft.adapters(torch.nn.Linear(1, 1)) == {} and bridge.inner(torch.nn.Linear(1, 1)) is None
