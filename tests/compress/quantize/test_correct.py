"""Bias correction: every channel's mean is the float model's again."""

import pytest
import torch

from limbeck.compress.quantize._fake import Fake, bias_step, exactly
from limbeck.compress.quantize.convert import Convert
from limbeck.compress.quantize.correct import Correct
from limbeck.compress.quantize.prepare import Prepare
from limbeck.core.errors import MismatchError, RecipeError

from ._quantized import answer, bench, model, reloaded


@pytest.mark.parametrize("activations", [4, None])
@pytest.mark.parametrize(("kind", "options"), [("cnn", {"width": 4}), ("mlp", {"widths": (16,)}), ("recurrent", {"width": 8})])
def test_the_means_are_those_of_the_float_model(kind: str, options: dict, activations: int | None) -> None:
    prepared = Prepare(weights=3, activations=activations, ends=None, outputs=None).operate(model(kind, **options), bench())
    done = Correct(examples=128).operate(prepared.model, bench())
    batches = torch.cat([batch["input"] for batch in bench().batches(128)])
    head = done.model.get_submodule("head")
    assert isinstance(head, Fake)
    with torch.no_grad():
        with exactly(prepared.model):
            wanted = prepared.model(batches).mean(0)
        before, after = ((one(batches).mean(0) - wanted).abs() for one in (prepared.model, done.model))
        rounding = torch.zeros(1) if head.input is None else bias_step(head.weight_step(), head.input.step()) / 2  # [C]
    assert (after <= rounding * 1.01 + 1e-6).all(), "a bias is rounded to the step of the sums"
    assert before.max() > 10 * after.max() or activations
    assert before.max() > 1e-4 and all(row["mean_shift"] > 0 for row in done.layers)
    assert done.record["biases"] == (["layer1.state"] if kind == "recurrent" else [])
    fresh = model(kind, seed=1, **options)
    assert torch.equal(answer(reloaded(fresh, (Prepare, prepared), (Correct, done))), answer(done.model))
    stored = Convert().operate(done.model, bench())
    assert torch.equal(answer(stored.model), answer(done.model))
    assert torch.equal(answer(reloaded(fresh, (Prepare, prepared), (Correct, done), (Convert, stored))), answer(done.model))


def test_outputs_that_are_rounded_are_compared_before_that() -> None:
    prepared = Prepare(weights=3, activations=4).operate(model("cnn", width=4), bench())
    grids = [layer.output for layer in prepared.model.modules() if isinstance(layer, Fake)]
    done = Correct().operate(prepared.model, bench())
    assert [layer.output is None for layer in done.model.modules() if isinstance(layer, Fake)] == [grid is None for grid in grids] and any(grids)


def test_only_a_prepared_model_that_was_not_trained() -> None:
    with pytest.raises(MismatchError, match=r"prepare it first \(quantize.prepare\)"):
        Correct().operate(model("mlp"), bench())
    trained = Prepare().operate(model("mlp"), bench()).model
    layer = trained.get_submodule("head")
    assert isinstance(layer, Fake)
    with torch.no_grad():
        layer.weight_growth.add_(0.1)
    with pytest.raises(MismatchError, match=r"was trained since it was prepared"):
        Correct().operate(trained, bench())
    with pytest.raises(RecipeError, match="examples"):
        Correct(examples=0)
