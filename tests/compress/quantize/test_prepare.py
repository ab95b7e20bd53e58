"""Preparing for quantization-aware training: ranges of least error, the layers that are meant, training that helps, and one line for bad input."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.compress.quantize._fake import Fake, fake_quantize
from limbeck.compress.quantize._observe import best_range, best_steps
from limbeck.compress.quantize.convert import Convert
from limbeck.compress.quantize.prepare import Prepare
from limbeck.core.errors import DataError, MismatchError, RecipeError

from ._quantized import answer, bench, model, reloaded


def fakes(made: nn.Module) -> dict[str, Fake]:
    return {path: module for path, module in made.named_modules() if isinstance(module, Fake)}


def test_ranges_are_those_of_least_squared_error() -> None:
    draw = torch.Generator().manual_seed(0)
    rows = torch.randn(5, 200, generator=draw) * torch.tensor([[1.0], [10.0], [0.1], [0.0], [1.0]])
    steps = best_steps(rows, 7)
    assert steps[3] == steps[[0, 1, 2, 4]].median(), "zeros have no step of their own"
    for row, step in zip(rows[:3], steps, strict=False):
        tried = [(fake_quantize(row, row.abs().max() * share / 7, -7, 7) - row).square().sum().item() for share in torch.linspace(0.05, 1, 40)]
        assert (fake_quantize(row, step, -7, 7) - row).square().sum().item() <= min(tried) * 1.03
    sample = torch.randn(4000, generator=draw).exp() - 0.3
    low, high = best_range(sample, sample.min().item(), sample.max().item(), 15)
    assert sample.min() <= low < 0 < high < 0.8 * sample.max(), "the tail is cut off"


def test_what_is_prepared_keeps_paths_and_rounds_what_it_says() -> None:
    before = model("resnet", depth=8)
    kept = copy.deepcopy(before.state_dict())
    done = Prepare(weights=4, activations=3).operate(before, bench())
    assert [name for name, _ in before.named_modules()] == [name for name, _ in done.model.named_modules() if not name.endswith((".input", ".output"))]
    assert all(torch.equal(value, kept[name]) for name, value in before.state_dict().items()), "what was given stays"
    found = fakes(done.model)
    assert {path: (one.bits, one.told["activations"]) for path, one in found.items() if one.bits != 4} == {"stem.0": (8, 8), "head": (8, 8)}
    assert [path for path, one in found.items() if one.output is not None] == ["stem.0", *(f"layer{k}.0.conv2" for k in (1, 2, 3))], "sums read these"
    for layer in found.values():
        _, weight, _ = layer.operands(torch.zeros(1, *[1] * (layer.weight.ndim - 1)).expand(1, layer.weight.shape[1], *[1] * (layer.weight.ndim - 2)))
        assert all(len(channel.unique()) <= 2**layer.bits - 1 for channel in weight)
    assert torch.equal(answer(reloaded(model("resnet", depth=8, seed=1), (Prepare, done))), answer(done.model))


def test_a_rectified_output_starts_at_zero() -> None:
    prepared = Prepare().operate(model("cnn", width=4), bench()).model
    grid = fakes(prepared)["layer3.1"].output
    assert grid is not None and grid.zero == 0


@pytest.mark.parametrize("kind", ["mlp", "vit", "recurrent", "wrn", "exits"])
def test_more_bits_are_nearer_to_the_float_model(kind: str) -> None:
    options = {"vit": {"dim": 8, "depth": 1, "heads": 2}, "wrn": {"depth": 10, "width": 1}, "exits": {"of": {"kind": "cnn", "width": 4}, "at": ["layer1"]}}.get(
        kind, {}
    )
    before = model(kind, **options)
    wanted = answer(before)
    error = [(answer(Prepare(weights=bits, activations=bits, ends=None).operate(before, bench()).model) - wanted).square().mean() for bits in (2, 4, 8)]
    assert error[0] > 2 * error[1] > 4 * error[2]
    assert error[2] < 0.01 * wanted.square().mean()


def test_choices_of_layers_and_kinds() -> None:
    before = model("cnn", width=4)
    only = Prepare(only=["layer2"], activations=None, per_channel=False).operate(before, bench())
    assert list(fakes(only.model)) == ["layer2.1"] and fakes(only.model)["layer2.1"].weight_start.numel() == 1 and fakes(only.model)["layer2.1"].input is None
    rest = Prepare(keep_float=["layer2", "head"], fold=False).operate(before, bench())
    assert list(fakes(rest.model)) == ["layer1.0", "layer3.1"] and isinstance(rest.model.get_submodule("layer1.1"), nn.BatchNorm2d)
    both = Prepare(weights=4).operate(model("mlp"), bench())
    assert both.said == ["no weight has 4 bits: every layer is the first or the last, which have 8 (ends)"]
    moved = Prepare(ranges="average").operate(before, bench()).model
    moved.train()(100 * torch.randn(8, 2, 8, 8))
    grid = fakes(moved)["layer1.0"].input
    assert grid is not None and grid.seen[1] > 6 and not grid.growth.requires_grad


def test_training_mends_what_rounding_broke() -> None:
    torch.manual_seed(0)
    teacher = model("mlp", widths=(32,))
    made = Prepare(weights=2, activations=3, ends=None).operate(teacher, bench()).model
    x = torch.randn(256, 2, 8, 8)
    wanted = teacher(x).detach()

    def loss() -> Tensor:
        return F.mse_loss(made(x), wanted)

    before = loss().item()
    optimizer = torch.optim.Adam(made.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    assert loss().item() < 0.5 * before
    assert torch.equal(answer(Convert().operate(made.eval(), bench()).model), answer(made))


class Other(nn.Module):
    """Weights that are no layer's of a kind that can be quantized."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.silent, self.head = nn.ConvTranspose2d(2, 2, 2), nn.Linear(2, 2), nn.Linear(162, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.up(x).flatten(1))


def test_what_stays_float_is_named() -> None:
    assert Prepare().operate(Other(), bench()).said == [
        "up stays float: ConvTranspose2d is no nn.Conv1d, nn.Conv2d or nn.Linear",
        "silent stays float: it does not run by itself",
    ]


def test_bad_input_gets_one_line_and_changes_nothing() -> None:
    before = model("cnn", width=4)
    kept = copy.deepcopy(before.state_dict())
    with pytest.raises(RecipeError, match=r"keep_float: there is no layer 'layer9' to quantize; did you mean"):
        Prepare(keep_float=["layer9"]).operate(before, bench())
    with pytest.raises(MismatchError, match=r"no layer of CNN is left to quantize"):
        Prepare(keep_float=["layer1", "layer2", "layer3", "head"]).operate(before, bench())
    with pytest.raises(DataError, match=r"layer1.0 gives numbers that are not finite|layer1.0 reads numbers that are not finite"):
        Prepare().operate(before, bench(torch.full((64, 2, 8, 8), float("nan"))))
    with pytest.raises(DataError, match=r"all that layer1.0 reads on the 512 calibration inputs is 1: no range"):
        Prepare().operate(before, bench(torch.ones(64, 2, 8, 8)))
    with pytest.raises(MismatchError, match=r"is quantized already: convert it"):
        Prepare().operate(Prepare().operate(before, bench()).model, bench())
    with pytest.raises(MismatchError, match=r"is quantized already: start from the float model"):
        Prepare().operate(Convert(weights=8).operate(before, bench()).model, bench())
    with pytest.raises(MismatchError, match=r"has no layer to quantize"):
        Prepare().operate(nn.Sequential(nn.Flatten()), bench())
    broken = model("cnn", width=4)
    with torch.no_grad():
        broken.get_parameter("head.weight")[0, 0] = float("inf")
    with pytest.raises(DataError, match=r"weights of head are not finite"):
        Prepare().operate(broken, bench())
    assert all(torch.equal(value, kept[name]) for name, value in before.state_dict().items())
    wrong: tuple[tuple[dict[str, Any], str], ...] = (
        ({"weights": 1}, "weights must be 2 to 8 bits"),
        ({"activations": 9}, "activations must"),
        ({"ranges": "guess"}, "learned or average"),
        ({"examples": 0}, "examples"),
    )
    for options, line in wrong:
        with pytest.raises(RecipeError, match=line):
            Prepare(**options)
