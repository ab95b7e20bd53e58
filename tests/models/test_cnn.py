"""`cnn`: its parameters, the shapes at the ends of its stages, and what it refuses."""

import pytest
import torch

from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.tap import Tap
from limbeck.models.cnn import CNN


@pytest.mark.parametrize(("width", "parameters"), [(8, 3_818), (4, 1_050)])
def test_its_parameters_on_grey_28x28_images(width: int, parameters: int) -> None:
    assert sum(p.numel() for p in CNN((1, 28, 28), 10, width=width).parameters()) == parameters


@pytest.mark.parametrize(("in_shape", "half", "quarter"), [((1, 8, 8), 4, 2), ((1, 28, 28), 14, 7), ((3, 32, 32), 16, 8), ((2, 4, 4), 2, 1)])
def test_the_ends_of_its_stages(in_shape: tuple[int, int, int], half: int, quarter: int) -> None:
    model = CNN(in_shape, 10, width=4).eval()
    with torch.no_grad(), Tap(model, ["layer1", "layer2", "layer3", "pool"]) as tap:
        model(torch.randn(2, *in_shape))
    shapes = [tuple(feature.shape) for feature in tap.features.values()]
    assert shapes == [(2, 4, *in_shape[1:]), (2, 8, half, half), (2, 8, quarter, quarter), (2, 8)]
    assert torch.allclose(tap.features["pool"], tap.features["layer3"].mean((2, 3)), atol=1e-6)
    assert all(feature.min() >= 0 for feature in tap.features.values()), "a stage ends after its ReLU"


def test_a_stage_is_read_before_its_relu() -> None:
    model = CNN((1, 8, 8), 10, width=4).eval()
    with torch.no_grad(), Tap(model, ["layer1", "layer1.act:in", "layer3", "layer3.act:in"]) as tap:
        model(torch.randn(2, 1, 8, 8))
    for layer in ("layer1", "layer3"):
        before = tap.features[f"{layer}.act:in"]
        assert before.min() < 0
        assert torch.equal(before.relu(), tap.features[layer])
    assert list(model.state_dict())[:3] == ["layer1.0.weight", "layer1.0.bias", "layer1.1.weight"], "weights saved before fit"


def test_what_cannot_be_meant_is_refused() -> None:
    with pytest.raises(MismatchError, match=r"CNN reads images.*\(13,\).*mlp"):
        CNN((13,), 2)
    with pytest.raises(MismatchError, match="at least 4x4, not 3x9"):
        CNN((1, 3, 9), 2)
    with pytest.raises(RecipeError, match="width is 0"):
        CNN((1, 8, 8), 2, width=0)
