"""`lenet5_caffe`: its parameters, its shapes, the frame around small images, and what it refuses."""

import pytest
import torch
from torch.nn import functional as F

from limbeck.core.errors import MismatchError
from limbeck.core.tap import Tap
from limbeck.models.lenet5_caffe import LeNet5Caffe


def test_its_parameters_on_grey_28x28_images() -> None:
    counts = {name: p.numel() for name, p in LeNet5Caffe((1, 28, 28), 10).named_parameters() if name.endswith("weight")}
    assert list(counts.values()) == [500, 25_000, 400_000, 5_000]
    assert sum(p.numel() for p in LeNet5Caffe((1, 28, 28), 10).parameters()) == 431_080


def test_it_computes_what_caffes_does() -> None:
    model, x = LeNet5Caffe((1, 28, 28), 10).double(), torch.randn(3, 1, 28, 28, dtype=torch.float64)
    first, first_bias, second, second_bias, third, third_bias, head, head_bias = model.state_dict().values()
    image = F.max_pool2d(F.conv2d(F.max_pool2d(F.conv2d(x, first, first_bias), 2), second, second_bias), 2)
    logits = (image.flatten(1) @ third.T + third_bias).clamp(min=0) @ head.T + head_bias
    assert torch.allclose(model(x), logits)


@pytest.mark.parametrize(
    ("side", "shapes"), [((28, 28), [(20, 12, 12), (50, 4, 4)]), ((16, 17), [(20, 6, 6), (50, 1, 1)]), ((5, 20), [(20, 6, 8), (50, 1, 2)])]
)
def test_the_ends_of_its_stages(side: tuple[int, int], shapes: list[tuple[int, ...]]) -> None:
    model = LeNet5Caffe((2, *side), 7).eval()
    with torch.no_grad(), Tap(model, ["layer1", "layer2", "layer3", "head"]) as tap:
        model(torch.randn(2, 2, *side))
    assert [tuple(feature.shape[1:]) for feature in tap.features.values()] == [*shapes, (500,), (7,)]


def test_a_small_image_is_framed_by_zeros() -> None:
    small = LeNet5Caffe((1, 9, 16), 3)
    large = LeNet5Caffe((1, 16, 16), 3)
    large.load_state_dict({name.replace("layer1.1", "layer1.0"): value for name, value in small.state_dict().items()})
    x = torch.randn(2, 1, 9, 16)
    assert torch.equal(small(x), large(F.pad(x, (0, 0, 3, 4))))


def test_what_is_no_image_is_refused() -> None:
    with pytest.raises(MismatchError, match="LeNet-5 reads images"):
        LeNet5Caffe((784,), 10)
