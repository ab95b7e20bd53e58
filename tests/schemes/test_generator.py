"""The generator: shapes, where its values end, and what it makes of the same noise."""

import pytest
import torch

from limbeck.core.errors import MismatchError
from limbeck.schemes._generator import Dcgan, Generator, check_image_shape


@pytest.mark.parametrize("in_shape", [(1, 28, 28), (3, 32, 32), (1, 8, 8), (2, 5, 9)])
def test_images_have_the_tasks_shape(in_shape: tuple[int, int, int]) -> None:
    made = Generator(Dcgan(latent=3, width=2), in_shape, {})
    assert made(made.noise(4)).shape == (4, *in_shape)


def test_a_normed_batch_has_mean_0_and_deviation_1_in_each_channel() -> None:
    made = Generator(Dcgan(latent=3, width=2), (3, 8, 8), {"mean": [0.5] * 3, "std": [0.2] * 3})
    x = made(made.noise(16))
    assert torch.allclose(x.mean((0, 2, 3)), torch.zeros(3), atol=1e-5)
    assert torch.allclose(x.var((0, 2, 3), correction=0), torch.ones(3), atol=1e-2)


def test_pixels_end_within_what_a_pixel_can_be() -> None:
    made = Generator(Dcgan(latent=3, width=2, end="pixels"), (1, 8, 8), {"mean": [0.5], "std": [0.25]})
    torch.nn.init.constant_(made.last.weight, 100.0)
    x = made(made.noise(16)).detach()
    assert x.min() == pytest.approx(-2.0, abs=1e-4) and x.max() == pytest.approx(2.0, abs=1e-4)


def test_examples_that_are_no_images_are_refused() -> None:
    with pytest.raises(MismatchError, match=r"shape \(7,\): take an image task"):
        check_image_shape((7,), "dafl")
