"""Edges, pixel by pixel, and as a task's second modality."""

import math
from pathlib import Path

import numpy as np
import pytest

from limbeck.core.errors import RecipeError
from limbeck.tasks._edges import edges
from limbeck.tasks.image import Image


def naive(image: np.ndarray, scale: float) -> np.ndarray:
    height, width = image.shape
    found = np.zeros((height, width))

    def at(i: int, j: int) -> float:
        return float(image[min(max(i, 0), height - 1), min(max(j, 0), width - 1)])

    for i in range(height):
        for j in range(width):
            gx = sum(weight * (at(i + step, j + 1) - at(i + step, j - 1)) for step, weight in ((-1, 1), (0, 2), (1, 1)))
            gy = sum(weight * (at(i + 1, j + step) - at(i - 1, j + step)) for step, weight in ((-1, 1), (0, 2), (1, 1)))
            found[i, j] = min(math.hypot(gx, gy) / 4, scale)
    return found


@pytest.mark.parametrize(("kind", "scale"), [("uint8", 255.0), ("float32", 1.0)])
def test_edges_are_the_sobel_gradient(kind: str, scale: float) -> None:
    rng = np.random.default_rng(0)
    images = (rng.random((3, 2, 5, 7)) * scale).astype(kind)
    found = edges(images, scale)
    assert found.dtype == images.dtype
    for image, edge in zip(images.reshape(-1, 5, 7), found.reshape(-1, 5, 7), strict=True):
        assert np.abs(edge - naive(image, scale)).max() <= (0.5 if kind == "uint8" else 1e-5)


def test_a_step_is_as_high_as_the_scale_and_a_flat_image_has_none() -> None:
    step = np.zeros((1, 1, 4, 4), np.uint8)
    step[..., 2:] = 255
    assert edges(step, 255.0)[0, 0].tolist() == [[0, 255, 255, 0]] * 4
    assert not edges(np.full((1, 1, 4, 4), 9, np.uint8), 255.0).any()


def test_a_task_renders_its_edges_under_the_same_ids(tmp_path: Path) -> None:
    plain, rendered = Image(), Image(render="edges")
    assert plain.fingerprint() != rendered.fingerprint()
    a, b = (next(task.loader("train", batch_size=16).batches(0)) for task in (plain, rendered))
    assert a["id"].equal(b["id"]) and a["label"].equal(b["label"])
    assert not a["input"].equal(b["input"])
    assert rendered.facts().preprocess["kind"] == "edges"  # what predicts from image files refuses it
    with pytest.raises(RecipeError, match="render is 'depth'"):
        Image(render="depth")  # pyright: ignore[reportArgumentType]
