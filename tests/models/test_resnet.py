"""`resnet`: the published parameter counts of both families, the shortcuts of each, and what it refuses."""

from typing import Any

import pytest
import torch
from torch import nn

from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.tap import Tap
from limbeck.models.resnet import ResNet

CIFAR = (3, 32, 32)


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("depth", "parameters", "table_6"), [(20, 269_722, 0.27), (32, 464_154, 0.46), (44, 658_586, 0.66), (56, 853_018, 0.85), (110, 1_727_962, 1.7)]
)
def test_the_parameters_of_he_et_al(depth: int, parameters: int, table_6: float) -> None:
    assert count(ResNet(CIFAR, 10, depth=depth)) == parameters
    assert parameters / 1e6 == pytest.approx(table_6, abs=0.05 if table_6 > 1 else 0.005)


@pytest.mark.parametrize(
    ("options", "parameters"),
    [
        ({"depth": 8, "width": 4}, 1_233_540),
        ({"depth": 32, "width": 4}, 7_433_860),
        ({"depth": 20, "shortcut": "B"}, 278_324),
        ({"depth": 56, "shortcut": "B"}, 861_620),
    ],
)
def test_the_parameters_of_the_family_of_crd(options: dict[str, Any], parameters: int) -> None:
    assert count(ResNet(CIFAR, 100, **options)) == parameters


@pytest.mark.parametrize("depth", [8, 14, 32])
def test_its_depth_counts_the_layers_with_weights(depth: int) -> None:
    model = ResNet(CIFAR, 10, depth=depth)
    assert sum(isinstance(m, (nn.Conv2d, nn.Linear)) for m in model.modules()) == depth


def test_option_a_keeps_every_second_pixel_and_adds_zeros() -> None:
    model = ResNet((1, 8, 8), 10, depth=8).eval()
    x = torch.randn(2, 16, 8, 8)
    shortcut = model.get_submodule("layer2.0.shortcut")(x)
    assert not list(model.get_submodule("layer2.0.shortcut").parameters())
    for place in range(32):
        expected = torch.stack([x[:, place - 8, 2 * h] for h in range(4)], 1)[..., ::2] if 8 <= place < 24 else torch.zeros(2, 4, 4)
        assert torch.equal(shortcut[:, place], expected)


@pytest.mark.parametrize("width", [1, 2])
def test_a_block_whose_convolutions_are_zero_is_its_shortcut(width: int) -> None:
    model = ResNet((1, 8, 8), 10, depth=8, width=width).eval()
    block = model.get_submodule("layer2.0")
    nn.init.zeros_(block.get_submodule("conv2").get_parameter("weight"))
    x = torch.randn(2, 16 * width, 8, 8)
    assert torch.equal(block(x), block.get_submodule("shortcut")(x).relu())


@pytest.mark.parametrize(("width", "stem"), [(1, 16), (4, 32)])
def test_the_ends_of_its_stages(width: int, stem: int) -> None:
    model = ResNet(CIFAR, 10, depth=8, width=width).eval()
    with torch.no_grad(), Tap(model, ["stem", "layer1", "layer2", "layer3", "pool"]) as tap:
        model(torch.randn(2, *CIFAR))
    assert [tuple(feature.shape[1:]) for feature in tap.features.values()] == [
        (stem, 32, 32), (16 * width, 32, 32), (32 * width, 16, 16), (64 * width, 8, 8), (64 * width,),
    ]  # fmt: skip


def test_a_block_is_read_before_the_relu_that_ends_it() -> None:
    model = ResNet((1, 8, 8), 10, depth=14).eval()
    with torch.no_grad(), Tap(model, ["layer1.0", "layer1.0.act:in", "layer2", "layer2.1.act:in"]) as tap:
        model(torch.randn(2, 1, 8, 8))
    for layer, before in (("layer1.0", "layer1.0.act:in"), ("layer2", "layer2.1.act:in")):
        assert tap.features[before].min() < 0
        assert torch.equal(tap.features[before].relu(), tap.features[layer])


@pytest.mark.parametrize(("depth", "nearest"), [(21, 20), (2, 8), (-4, 8), (109, 110), (18, 20)])
def test_a_depth_that_is_none_names_the_nearest(depth: int, nearest: int) -> None:
    with pytest.raises(RecipeError, match=rf"depth must be 6n\+2, not {depth}; nearest {nearest}$"):
        ResNet(CIFAR, 10, depth=depth)


def test_what_cannot_be_meant_is_refused() -> None:
    with pytest.raises(RecipeError, match="cannot cut a stem of 32 to 16"):
        ResNet(CIFAR, 10, stem=32)
    with pytest.raises(RecipeError, match="stem is 0"):
        ResNet(CIFAR, 10, stem=0)
    with pytest.raises(MismatchError, match=r"\(1, 40\)"):
        ResNet((1, 40), 10)
