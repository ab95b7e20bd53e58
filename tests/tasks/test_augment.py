"""Augmentation: a pure function of (seed, view, example id), against a loop over pixels."""

import pytest
import torch
from torch import Tensor

from limbeck.core.errors import RecipeError
from limbeck.tasks._augment import Crop, Flip, Shift, augmented, check_reach, shifted


def naive(images: Tensor, rows: Tensor, columns: Tensor, fill: Tensor) -> Tensor:
    out = torch.empty_like(images)
    count, channels, height, width = images.shape
    for n in range(count):
        for c in range(channels):
            for i in range(height):
                for j in range(width):
                    a, b = i - int(rows[n]), j - int(columns[n])
                    out[n, c, i, j] = images[n, c, a, b] if 0 <= a < height and 0 <= b < width else fill[c]
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
@pytest.mark.parametrize("shape", [(25, 1, 5, 7), (25, 3, 6, 4), (1, 2, 3, 3)])
def test_shifted_equals_a_loop_over_pixels(shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    images = torch.randint(1, 200, shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    rows = (torch.arange(shape[0]) % 5) - 2
    columns = (torch.arange(shape[0]) // 5) - 2
    fill = torch.arange(shape[1]).to(dtype) + 201
    assert torch.equal(shifted(images, rows, columns, 2, fill), naive(images, rows, columns, fill))


IMAGES = torch.rand(64, 2, 8, 8, generator=torch.Generator().manual_seed(1)) + 1
IDS = torch.arange(64) * 7 + 3
FILL = torch.tensor([-0.5, 0.25])
ALL = [Shift(pixels=2), Crop(padding=3), Flip()]


@pytest.mark.parametrize("steps", [[Shift(pixels=2)], [Crop(padding=4)], [Flip()], ALL])
def test_a_draw_is_a_function_of_seed_view_and_id_alone(steps: list[Shift | Crop | Flip]) -> None:
    whole = augmented(IMAGES, IDS, steps, seed=5, view=2, fill=FILL)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(2))
    assert torch.equal(augmented(IMAGES[order], IDS[order], steps, seed=5, view=2, fill=FILL), whole[order])  # whatever the order
    for part in (slice(0, 1), slice(7, 20), slice(1, 64, 2)):  # whatever the batch and the rank; a batch of one
        assert torch.equal(augmented(IMAGES[part], IDS[part], steps, seed=5, view=2, fill=FILL), whole[part])
    assert not torch.equal(augmented(IMAGES, IDS, steps, seed=5, view=3, fill=FILL), whole)
    assert not torch.equal(augmented(IMAGES, IDS, steps, seed=6, view=2, fill=FILL), whole)


def test_every_shift_within_reach_comes_and_no_other() -> None:
    ids = torch.arange(2000)
    image = torch.zeros(1, 1, 7, 7)
    image[0, 0, 3, 3] = 1
    out = augmented(image.expand(2000, 1, 7, 7), ids, [Shift(pixels=2)], seed=0, view=0, fill=torch.zeros(1))
    places = out.flatten(1).argmax(1)
    assert {(int(p) // 7 - 3, int(p) % 7 - 3) for p in places} == {(i, j) for i in range(-2, 3) for j in range(-2, 3)}


def test_a_crop_with_padding_is_a_shift() -> None:
    crop = augmented(IMAGES, IDS, [Crop(padding=2)], seed=1, view=1, fill=FILL)
    assert torch.equal(crop, augmented(IMAGES, IDS, [Shift(pixels=2)], seed=1, view=1, fill=FILL))


def test_flip_mirrors_half_of_the_examples() -> None:
    ids = torch.arange(10_000)
    images = torch.tensor([[[[1.0, 2.0]]]]).expand(10_000, 1, 1, 2)
    out = augmented(images, ids, [Flip()], seed=0, view=0, fill=torch.zeros(1))
    mirrored = (out[:, 0, 0, 0] == 2).sum().item()
    assert torch.equal(out.sum(3), images.sum(3))
    assert abs(mirrored - 5000) < 200  # four standard deviations


def test_two_equal_steps_draw_apart() -> None:
    image = torch.zeros(1, 1, 9, 9)
    image[0, 0, 4, 4] = 1
    ids = torch.arange(500)
    out = augmented(image.expand(500, 1, 9, 9), ids, [Shift(pixels=1), Shift(pixels=1)], seed=0, view=0, fill=torch.zeros(1))
    rows = {int(p) // 9 - 4 for p in out.flatten(1).argmax(1)}
    assert rows == {-2, -1, 0, 1, 2}  # the same draw twice would give -2, 0, 2 alone


def test_no_step_does_nothing() -> None:
    assert augmented(IMAGES, IDS, [], seed=0, view=0, fill=FILL) is IMAGES


def test_a_shift_out_of_sight_is_refused() -> None:
    check_reach([Shift(pixels=7), Flip()], 8, 8)
    with pytest.raises(RecipeError, match=r"crop by 8 pixels moves images of 8x9 out of sight; stay below 8"):
        check_reach([Crop(padding=8)], 8, 9)
