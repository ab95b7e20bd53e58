"""`wrn`: the published parameter counts, a block against its formula, and what it refuses."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from limbeck.core.errors import RecipeError
from limbeck.core.tap import Tap
from limbeck.models.wrn import WRN

CIFAR = (3, 32, 32)


@pytest.mark.parametrize(("depth", "width", "parameters"), [(16, 2, 703_284), (40, 1, 569_780), (40, 2, 2_255_156)])
def test_the_published_parameters_at_100_classes(depth: int, width: int, parameters: int) -> None:
    assert sum(p.numel() for p in WRN(CIFAR, 100, depth=depth, width=width).parameters()) == parameters


def test_the_parameters_of_wrn_28_10() -> None:
    with torch.device("meta"):
        assert round(sum(p.numel() for p in WRN(CIFAR, 10, depth=28, width=10).parameters()) / 1e6, 1) == 36.5


@pytest.mark.parametrize(("where", "channels"), [("layer1.0", 16), ("layer2.1", 64)])
def test_a_block_normalises_first_and_projects_what_it_activated(where: str, channels: int) -> None:
    model = WRN((1, 8, 8), 10).double().eval()
    block = model.get_submodule(where)
    x = torch.randn(2, channels, 8, 8, dtype=torch.float64)
    scale = 1 / (1 + 1e-5) ** 0.5  # fresh batch norm in evaluation
    active = (x * scale).clamp(min=0)
    inner = F.conv2d(active, block.get_submodule("conv1").get_parameter("weight"), padding=1)
    inner = F.conv2d((inner * scale).clamp(min=0), block.get_submodule("conv2").get_parameter("weight"), padding=1)
    shortcut = F.conv2d(active, block.get_submodule("shortcut").get_parameter("weight")) if where == "layer1.0" else x
    assert torch.allclose(block(x), inner + shortcut)


def test_the_ends_of_its_stages() -> None:
    model = WRN(CIFAR, 10, depth=10, width=2).eval()
    with torch.no_grad(), Tap(model, ["layer1", "layer2", "layer3", "norm", "pool"]) as tap:
        model(torch.randn(2, *CIFAR))
    assert [tuple(feature.shape[1:]) for feature in tap.features.values()] == [(32, 32, 32), (64, 16, 16), (128, 8, 8), (128, 8, 8), (128,)]
    assert tap.features["layer1"].min() < 0 <= tap.features["norm"].min()


def test_what_enters_the_relu_after_a_stage_is_read_there() -> None:
    model = WRN((1, 8, 8), 10, depth=10).eval()
    with torch.no_grad(), Tap(model, ["layer1", "layer2.0.act:in", "layer3", "norm.act:in", "norm"]) as tap:
        model(torch.randn(2, 1, 8, 8))
    said = tap.features
    scale = 1 / (1 + 1e-5) ** 0.5  # fresh batch norm in evaluation
    for stage, before in (("layer1", "layer2.0.act:in"), ("layer3", "norm.act:in")):
        assert torch.allclose(said[before], said[stage] * scale)
    assert torch.equal(said["norm.act:in"].relu(), said["norm"])


def test_dropout_is_where_it_was_asked_for() -> None:
    assert not [m for m in WRN((1, 8, 8), 2, depth=10).modules() if isinstance(m, nn.Dropout)]
    rates = [m.p for m in WRN((1, 8, 8), 2, depth=16, dropout=0.3).modules() if isinstance(m, nn.Dropout)]
    assert rates == [0.3] * 6


@pytest.mark.parametrize(("depth", "nearest"), [(20, 22), (3, 10), (41, 40)])
def test_a_depth_that_is_none_names_the_nearest(depth: int, nearest: int) -> None:
    with pytest.raises(RecipeError, match=rf"depth must be 6n\+4, not {depth}; nearest {nearest}$"):
        WRN(CIFAR, 10, depth=depth)
    with pytest.raises(RecipeError, match="dropout is 1;"):
        WRN(CIFAR, 10, dropout=1.0)
