"""Stored integers: the same answers as the prepared model, bit for bit; fewer bytes; every model reloads."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from limbeck.compress.quantize._integer import IntegerWeights
from limbeck.compress.quantize.convert import Convert
from limbeck.compress.quantize.prepare import Prepare
from limbeck.core.errors import MismatchError, RecipeError

from ._quantized import answer, bench, model, reloaded

MODELS: dict[str, dict[str, Any]] = {
    "cnn": {"width": 4}, "resnet": {"depth": 8}, "wrn": {"depth": 10, "width": 1}, "lenet": {}, "mlp": {"widths": (16,)},
    "vit": {"dim": 8, "depth": 1, "heads": 2}, "recurrent": {"width": 8}, "ds_cnn": {"width": 4, "blocks": 1},
    "exits": {"of": {"kind": "cnn", "width": 4}, "at": ["layer1"]}, "two_stream": {"of": {"kind": "cnn", "width": 4}},
}  # fmt: skip


@pytest.mark.parametrize(("kind", "bits"), [*((kind, (4, 4)) for kind in MODELS), ("resnet", (8, 8)), ("vit", (2, None)), ("ds_cnn", (3, 8))])
def test_it_answers_as_the_prepared_model_does(kind: str, bits: tuple[int, int | None]) -> None:
    prepared = Prepare(weights=bits[0], activations=bits[1], examples=64).operate(model(kind, **MODELS[kind]), bench())
    done = Convert().operate(prepared.model, bench())
    assert torch.equal(answer(done.model), answer(prepared.model))
    fresh = model(kind, seed=1, **MODELS[kind])
    assert torch.equal(answer(reloaded(fresh, (Prepare, prepared), (Convert, done))), answer(done.model))
    assert done.metrics["parameters"] <= sum(parameter.numel() for parameter in fresh.parameters()) + 100  # a fold adds biases


@pytest.mark.parametrize("trained", ["learned", "average"])
@pytest.mark.parametrize("per_channel", [True, False])
def test_so_it_does_after_training(trained: str, per_channel: bool) -> None:
    prepared = Prepare(weights=4, activations=4, ranges=trained, per_channel=per_channel).operate(model("cnn", width=4), bench())  # pyright: ignore[reportArgumentType]
    optimizer = torch.optim.SGD(prepared.model.parameters(), lr=0.1, momentum=0.9)
    prepared.model.train()
    for batch in bench().batches(512, batch_size=32):
        optimizer.zero_grad()
        nn.functional.cross_entropy(prepared.model(batch["input"]), batch["label"]).backward()
        optimizer.step()
    assert torch.equal(answer(Convert().operate(prepared.model.eval(), bench()).model), answer(prepared.model))


def test_the_file_is_smaller(tmp_path: Path) -> None:
    before = model("cnn", width=32)
    save_file(before.state_dict(), tmp_path / "float.safetensors")
    size = {}
    for bits in (8, 4, 2):
        done = Convert(weights=bits).operate(before, bench())
        save_file(done.model.state_dict(), tmp_path / f"{bits}.safetensors")
        size[bits] = (tmp_path / f"{bits}.safetensors").stat().st_size
        again = reloaded(model("cnn", width=32, seed=1), (Convert, done))
        again.load_state_dict(load_file(tmp_path / f"{bits}.safetensors"))
        assert torch.equal(answer(again), answer(done.model))
        assert done.metrics["weight_bytes"] == sum(value.numel() * value.element_size() for value in done.model.state_dict().values())
    assert size[8] < (tmp_path / "float.safetensors").stat().st_size / 3.4
    assert 0.45 < size[4] / size[8] < 0.6 and size[2] < 0.65 * size[4]


def test_weights_of_a_float_model_are_rounded_to_the_nearest() -> None:
    before = model("mlp", widths=(16,))
    done = Convert(weights=4, group=16, keep_float=["head"]).operate(before, bench())
    layer, weight = done.model.get_submodule("layer1.0"), before.get_parameter("layer1.0.weight")
    assert isinstance(layer, IntegerWeights) and isinstance(done.model.get_submodule("head"), nn.Linear)
    steps = layer.steps.repeat_interleave(16, 1)
    inside = weight.abs() <= 7 * steps
    assert ((layer.weight() - weight).abs()[inside] <= 0.5001 * steps[inside]).all() and inside.float().mean() > 0.9
    coarse = Convert(weights=4, keep_float=["head"]).operate(before, bench())
    error = [(answer(one.model) - answer(before)).square().mean() for one in (done, coarse)]
    assert error[0] < error[1]
    assert torch.equal(answer(reloaded(model("mlp", widths=(16,), seed=1), (Convert, done))), answer(done.model))


def test_what_is_decided_is_said() -> None:
    said = Convert(weights=4, group=100).operate(model("mlp", widths=(16,)), bench()).said
    assert said[0] == "layer1.0 has one step for each channel: 128 weights do not part into groups of 100"
    assert said[-1].startswith("2 layers of 4 bits or fewer are packed in the file")
    with pytest.raises(MismatchError, match=r"not prepared: say how many bits its weights get"):
        Convert().operate(model("mlp"), bench())
    with pytest.raises(MismatchError, match=r"is prepared, and its layers know their bits"):
        Convert(weights=4).operate(Prepare().operate(model("mlp"), bench()).model, bench())
    with pytest.raises(MismatchError, match=r"quantized already"):
        Convert(weights=4).operate(Convert(weights=4).operate(model("mlp"), bench()).model, bench())
    wrong: tuple[tuple[dict[str, Any], str], ...] = (
        ({"weights": 4, "group": 1}, "group must be 2"),
        ({"group": 4}, "give their bits"),
        ({"weights": 1}, "2 to 8"),
    )
    for options, line in wrong:
        with pytest.raises(RecipeError, match=line):
            Convert(**options)
