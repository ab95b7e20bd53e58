"""The keyword network: its shapes and its parameters, counted by hand."""

import pytest
import torch

from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.tap import Tap
from limbeck.models.ds_cnn import DSCNN


@pytest.mark.parametrize(("width", "blocks"), [(64, 4), (8, 2)])
def test_it_has_the_parameters_of_its_layers(width: int, blocks: int) -> None:
    model = DSCNN((1, 32, 41), 10, width=width, blocks=blocks)
    stem = 4 * 10 * width + 2 * width
    block = (9 * width + 2 * width) + (width * width + 2 * width)
    assert sum(one.numel() for one in model.parameters()) == stem + blocks * block + width * 10 + 10


def test_its_layers_have_the_sizes_that_it_says() -> None:
    model = DSCNN((1, 32, 41), 10, width=8, blocks=3).eval()
    with torch.no_grad(), Tap(model, ["stem", "layer3", "pool"]) as tap:
        assert model(torch.zeros(2, 1, 32, 41)).shape == (2, 10)
    assert [tap.features[name].shape for name in ("stem", "layer3", "pool")] == [(2, 8, 16, 20), (2, 8, 16, 20), (2, 8)]


def test_what_cannot_be_built() -> None:
    with pytest.raises(RecipeError, match="blocks is 0"):
        DSCNN((1, 32, 41), 10, blocks=0)
    with pytest.raises(MismatchError, match="reads images"):
        DSCNN((64,), 10)
