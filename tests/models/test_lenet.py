"""`lenet`: its parameters, the shapes at the ends of its stages, and what it refuses."""

import pytest
import torch

from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.tap import Tap
from limbeck.models.lenet import LeNet


@pytest.mark.parametrize(("width", "parameters"), [(1.0, 107_786), (0.5, 27_258)])
def test_its_parameters_on_grey_28x28_images(width: float, parameters: int) -> None:
    assert sum(p.numel() for p in LeNet((1, 28, 28), 10, width=width).parameters()) == parameters


def test_the_ends_of_its_stages() -> None:
    model = LeNet((3, 32, 30), 7, norm=True).eval()
    with torch.no_grad(), Tap(model, ["layer1", "layer2", "layer3", "layer4", "head"]) as tap:
        model(torch.randn(2, 3, 32, 30))
    assert [tuple(feature.shape) for feature in tap.features.values()] == [(2, 6, 16, 15), (2, 16, 8, 7), (2, 120), (2, 84), (2, 7)]
    assert sum(isinstance(module, torch.nn.modules.batchnorm._BatchNorm) for module in model.modules()) == 4


def test_it_sees_where_things_are() -> None:
    torch.manual_seed(0)
    x = torch.zeros(1, 1, 16, 16)
    x[..., 2:5, 2:5] = 1
    model = LeNet((1, 16, 16), 3)
    assert not torch.allclose(model(x), model(x.roll(8, -1)), atol=1e-4)


def test_what_cannot_be_meant_is_refused() -> None:
    with pytest.raises(MismatchError, match="LeNet reads images"):
        LeNet((13,), 2)
    for width in (0.0, -1.0, float("nan")):
        with pytest.raises(RecipeError, match="above zero"):
            LeNet((1, 8, 8), 2, width=width)
