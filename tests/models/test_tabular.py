"""Waves against the formula, number by number, and what is refused."""

import math

import pytest
import torch

from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.lookup import build
from limbeck.core.tap import Tap
from limbeck.measure.size import parameters


def test_its_waves_are_the_formula() -> None:
    torch.manual_seed(0)
    model = build("models", "tabular", {"numbers": 2, "frequencies": 3, "units": 4, "widths": [5]}, in_shape=(6,), classes=2)
    torch.nn.init.normal_(model.waves.bias)
    x = torch.randn(7, 6)
    with Tap(model, ["waves", "layer1:in"]) as tap:
        model(x)
    expected = torch.zeros(7, 2, 4, dtype=torch.float64)
    for row in range(7):
        for number in range(2):
            angles = [2 * math.pi * c * float(x[row, number]) for c in model.waves.frequency[number].tolist()]
            waves = torch.tensor([*(math.sin(a) for a in angles), *(math.cos(a) for a in angles)], dtype=torch.float64)
            expected[row, number] = (waves @ model.waves.weight[number].double() + model.waves.bias[number, 0].double()).clamp(min=0)
    assert torch.allclose(tap.features["waves"].double(), expected.flatten(1), atol=1e-5)
    assert torch.equal(tap.features["layer1:in"], torch.cat([tap.features["waves"], x], 1))


def test_its_size_is_counted() -> None:
    model = build("models", "tabular", {"numbers": 2, "frequencies": 3, "units": 4, "widths": [5]}, in_shape=(6,), classes=2)
    assert parameters(model) == 2 * (3 + 6 * 4 + 4) + (6 + 8) * 5 + 5 + 5 * 2 + 2
    assert build("models", "tabular", {}, in_shape=(1, 3), classes=2)(torch.zeros(4, 1, 3)).shape == (4, 2)


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"numbers": 7}, MismatchError, "numbers is 7, and an example has 6 features"),
        ({"numbers": 0}, RecipeError, "numbers is 0"),
        ({"units": 0}, RecipeError, "units is 0"),
        ({"widths": [0]}, RecipeError, "a width of Tabular is 0"),
        ({"scale": 0.0}, RecipeError, "scale is 0"),
        ({"dropout": 1.0}, RecipeError, "dropout is 1"),
    ],
)
def test_what_cannot_be_built_is_refused(options: dict, kind: type, message: str) -> None:
    with pytest.raises(kind, match=message):
        build("models", "tabular", options, in_shape=(6,), classes=2)
