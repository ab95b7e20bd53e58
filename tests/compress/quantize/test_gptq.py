"""GPTQ: against least squares solved anew for each column; nearest rounding where H is diagonal; a smaller error than rounding to the nearest."""

from typing import Any

import pytest
import torch
from torch import nn

from limbeck.compress.quantize._integer import IntegerWeights
from limbeck.compress.quantize.convert import Convert
from limbeck.compress.quantize.gptq import GPTQ, columns, gptq_codes, squared_error
from limbeck.compress.quantize.prepare import Prepare
from limbeck.core.errors import DataError, MismatchError, RecipeError

from ._quantized import answer, bench, model, reloaded


def random(parts: int = 1, rows: int = 3, each: int = 6) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    mixed = torch.randn(parts, each, each, dtype=torch.float64, generator=draw)
    x = mixed @ torch.randn(parts, each, 40, dtype=torch.float64, generator=draw)
    return torch.randn(parts, rows, each, generator=draw), x @ x.mT, torch.full((parts, rows, 1), 0.3)


def by_least_squares(row: torch.Tensor, hessian: torch.Tensor, step: float, high: int) -> list[float]:
    """Round the first weight left; move the others to where the error is least, given all that are rounded: solved anew each time."""
    weight, codes = row.double().clone(), []
    for j in range(len(row)):
        code = float((weight[j] / step).round().clamp(-high, high))
        codes.append(code)
        if j + 1 < len(row):
            rest = torch.linalg.solve(hessian[j + 1 :, j + 1 :], hessian[j + 1 :, j : j + 1]) * (weight[j] - code * step)
            weight[j + 1 :] += rest[:, 0]
    return codes


@pytest.mark.parametrize("each", [6, 130])
def test_it_is_what_least_squares_says(each: int) -> None:
    weight, hessian, steps = random(rows=2, each=each)
    damped = hessian + 0.01 * hessian[0].diagonal().mean() * torch.eye(each, dtype=torch.float64)
    codes, kept = gptq_codes(weight, hessian, steps, 7, damping=0.01)
    assert codes[0].tolist() == [by_least_squares(row, damped[0], steps[0, 0, 0].item(), 7) for row in weight[0]]
    assert torch.equal(kept, steps)


def test_inputs_that_have_nothing_in_common_leave_nearest_rounding() -> None:
    weight, hessian, steps = random(parts=2)
    codes, _ = gptq_codes(weight, torch.diag_embed(hessian.diagonal(dim1=1, dim2=2)), steps, 7)
    assert torch.equal(codes, (weight / steps).round().clamp(-7, 7))


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(6, 4),
        nn.Conv1d(4, 6, 3, stride=2, padding=1),
        nn.Conv2d(4, 6, 3, dilation=2, padding="same", groups=2),
        nn.Conv2d(3, 2, (1, 3), padding=1, padding_mode="circular"),
    ],
)
def test_columns_times_weights_are_what_the_layer_gives(layer: nn.Module) -> None:
    weight = layer.get_parameter("weight")
    x = torch.randn(2, weight.shape[1] * getattr(layer, "groups", 1), *[7] * (weight.ndim - 2))
    wanted, bias = layer(x), layer.get_parameter("bias")
    found = columns(layer, x)  # [P, K, N L]
    sums = (weight.view(len(found), -1, found.shape[1]) @ found).flatten(0, 1) + bias[:, None]
    torch.testing.assert_close(sums, wanted.transpose(0, 1).flatten(1))


@pytest.mark.parametrize("bits", [4, 3, 8])
@pytest.mark.parametrize(
    ("kind", "options"), [("cnn", {"width": 4}), ("ds_cnn", {"width": 4, "blocks": 1}), ("mlp", {"widths": (12,)}), ("vit", {"dim": 8, "depth": 1, "heads": 2})]
)
def test_it_loses_less_than_nearest_rounding(kind: str, options: dict, bits: int) -> None:
    before = model(kind, **options)
    done = GPTQ(weights=bits, examples=128).operate(before, bench())
    share = 1.0 if kind == "ds_cnn" else 0.9  # pixels of noise have little in common for a depthwise convolution to use
    assert sum(row["error"] for row in done.layers) < share * sum(row["error_nearest"] for row in done.layers)
    for row in done.layers:
        layer = done.model.get_submodule(row["name"])
        assert isinstance(layer, IntegerWeights) and (layer.weight() / layer.steps.view(-1, *[1] * (len(layer.shape) - 1))).abs().max() < 2 ** (bits - 1) - 0.99
    assert torch.equal(answer(reloaded(model(kind, seed=1, **options), (GPTQ, done))), answer(done.model))


def test_groups_have_steps_of_their_own_and_lose_less() -> None:
    before = model("mlp", widths=(32,))
    done = [GPTQ(weights=3, group=group).operate(before, bench()) for group in (None, 8)]
    first = done[1].model.get_submodule("layer1.0")
    assert isinstance(first, IntegerWeights) and first.steps.shape == (32, 16)
    assert done[1].layers[0]["error"] < done[0].layers[0]["error"]
    assert torch.equal(answer(reloaded(model("mlp", widths=(32,), seed=1), (GPTQ, done[1]))), answer(done[1].model))
    weight, hessian, _ = random(each=8)
    codes, steps = gptq_codes(weight, hessian, torch.ones(1, 3, 2), 3, renew=True)
    assert steps.shape == (1, 3, 2) and squared_error(weight - (codes.unflatten(2, (2, 4)) * steps[..., None]).flatten(2), hessian) > 0


def test_a_prepared_model_keeps_its_steps() -> None:
    prepared = Prepare(weights=4, activations=4, ends=None).operate(model("cnn", width=4), bench())
    done, nearest = GPTQ().operate(prepared.model, bench()), Convert().operate(prepared.model, bench())
    assert all(row["error"] <= row["error_nearest"] * 1.001 for row in done.layers) and done.record == nearest.record
    for path in done.record["layers"]:
        one, other = (model.get_submodule(path) for model in (done.model, nearest.model))
        assert isinstance(one, IntegerWeights) and isinstance(other, IntegerWeights) and torch.equal(one.steps, other.steps)
    assert any(not torch.equal(a, b) for a, b in zip(done.model.state_dict().values(), nearest.model.state_dict().values(), strict=True))
    assert torch.equal(answer(reloaded(model("cnn", width=4, seed=1), (Prepare, prepared), (GPTQ, done))), answer(done.model))


def test_bad_input_gets_one_line() -> None:
    float_model = model("mlp", widths=(8,))
    with pytest.raises(MismatchError, match=r"not prepared: say how many bits"):
        GPTQ().operate(float_model, bench())
    with pytest.raises(MismatchError, match=r"prepared: leave `weights` out"):
        GPTQ(weights=4).operate(Prepare().operate(float_model, bench()).model, bench())
    with pytest.raises(DataError, match=r"layer1.0 reads zeros alone"):
        GPTQ(weights=4).operate(float_model, bench(torch.zeros(64, 2, 8, 8)))
    with pytest.raises(DataError, match=r"not finite"):
        GPTQ(weights=4).operate(float_model, bench(torch.full((64, 2, 8, 8), float("nan"))))
    wrong: tuple[tuple[dict[str, Any], str], ...] = (
        ({"damping": 0.0}, "damping"),
        ({"group": 4}, "give their bits"),
        ({"weights": 9}, "2 to 8 bits"),
        ({"examples": 0}, "examples"),
    )
    for options, line in wrong:
        with pytest.raises(RecipeError, match=line):
            GPTQ(**options)
