"""Prediction sees what training saw: arrays and files, their units, and what does not fit."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Picture

from limbeck.core.errors import DataError, MismatchError
from limbeck.tasks._preprocess import statistics
from limbeck.tasks.image import Image, prepare

GREY = {"kind": "image", "mode": "L", "size": [4, 5], "scale": 255.0, "mean": [0.25], "std": [0.5]}
COLOUR = {"kind": "image", "mode": "RGB", "size": [4, 5], "scale": 255.0, "mean": [0.1, 0.2, 0.3], "std": [0.5, 0.4, 0.3]}
UNITS = {**GREY, "scale": 1.0}
MADE = np.random.default_rng(0)
L = MADE.integers(0, 256, (3, 4, 5), np.uint8)
RGB = MADE.integers(0, 256, (3, 4, 5, 3), np.uint8)


def expected(raw: np.ndarray, told: dict[str, Any], scale: float = 255.0) -> torch.Tensor:
    """`raw [N, H, W, C]`, by numpy in float64."""
    return torch.from_numpy((raw.astype(np.float64) / scale - told["mean"]) / told["std"]).permute(0, 3, 1, 2)


def close(got: torch.Tensor, want: torch.Tensor) -> bool:
    return got.dtype == torch.float32 and got.shape == want.shape and bool((got.double() - want).abs().max() < 1e-6)


def test_arrays_of_every_layout() -> None:
    for raw in (L, L[:, None], L[..., None], L.astype(np.float32), L.astype(np.float64)):
        assert close(prepare(raw, GREY), expected(L[..., None], GREY))
    for raw in (RGB, RGB.transpose(0, 3, 1, 2)):
        assert close(prepare(raw, COLOUR), expected(RGB, COLOUR))
    assert close(prepare(L[:1], GREY), expected(L[:1, ..., None], GREY))


def test_files(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", RGB)
    np.savez(tmp_path / "b.npz", RGB[:1])
    np.savez(tmp_path / "c.npz", x=RGB, y=np.arange(3))
    Picture.fromarray(RGB[1]).save(tmp_path / "d.png")
    for name, rows in (("a.npy", [0, 1, 2]), ("b.npz", [0]), ("c.npz", [0, 1, 2]), ("d.png", [1])):
        assert close(prepare(tmp_path / name, COLOUR), expected(RGB[rows], COLOUR))
    assert close(prepare([str(tmp_path / "d.png"), tmp_path / "a.npy"], COLOUR), expected(RGB[[1, 0, 1, 2]], COLOUR))


def test_an_image_file_is_brought_to_mode_and_size(tmp_path: Path) -> None:
    Picture.fromarray(RGB[0]).resize((50, 40), Picture.Resampling.NEAREST).save(tmp_path / "big.png")
    assert prepare(tmp_path / "big.png", GREY).shape == (1, 1, 4, 5)
    Picture.fromarray(L[0]).save(tmp_path / "grey.png")
    assert close(prepare(tmp_path / "grey.png", COLOUR), expected(L[:1, ..., None].repeat(3, 3), COLOUR))
    Picture.fromarray(np.full((4, 5), 255, np.uint8)).save(tmp_path / "white.png")
    sixteen = {**GREY, "scale": 16.0}
    assert torch.equal(prepare(tmp_path / "white.png", sixteen), torch.full((1, 1, 4, 5), 1.5))  # white means 1.0 whatever the data's own units
    assert torch.equal(prepare(np.full((1, 4, 5), 16, np.uint8), sixteen), torch.full((1, 1, 4, 5), 1.5))


def test_it_redoes_to_the_bit_what_training_did(mnist: Callable[..., Path]) -> None:
    task = Image(data="mnist", root=str(mnist()), validation=0)
    told = json.loads(json.dumps(dict(task.facts().preprocess)))
    (batch,) = task.loader("test", batch_size=20).batches(0)
    made = np.random.default_rng(0)
    made.integers(0, 256, (100, 6, 5))
    assert torch.equal(prepare(made.integers(0, 256, (20, 6, 5)).astype(np.uint8), told), batch["input"])


@pytest.mark.parametrize(
    ("raw", "told", "error", "message"),
    [
        (L[:, :3], GREY, MismatchError, r"shape 3x3x5; the model was trained on 4x5 with 1 channel\(s\): give N,1,4,5 or N,4,5$"),
        (L, COLOUR, MismatchError, "give N,3,4,5 or N,4,5,3"),
        (RGB, GREY, MismatchError, "shape 3x4x5x3"),
        (L[0], GREY, MismatchError, "shape 4x5;"),
        (L[:0], GREY, DataError, "holds no image"),
        (L.astype(np.int64), GREY, DataError, "holds int64"),
        (np.full((1, 4, 5), np.nan), GREY, DataError, "image 0 holds a value that is not finite"),
        (np.full((1, 4, 5), np.inf), UNITS, DataError, "not finite"),
        (np.full((1, 4, 5), 0.5), GREY, MismatchError, r"floats up to 0\.5; the model was trained on raw values 0\.\.255: multiply by 255"),
        (np.full((1, 4, 5), 300.0), GREY, MismatchError, r"values 300\.\.300; the model was trained on raw values 0\.\.255"),
        (np.full((1, 4, 5), -1.0), GREY, MismatchError, "values -1"),
        (np.full((1, 4, 5), 200, np.uint8), {**GREY, "scale": 16.0}, MismatchError, r"0\.\.16"),
        (L, {}, MismatchError, "its preprocessing is not known"),
        (L, {"kind": "text"}, MismatchError, "its preprocessing is text"),
    ],
)
def test_what_does_not_fit(raw: np.ndarray, told: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        prepare(raw, told)


def test_units_of_floats_are_their_own() -> None:
    raw = np.array([-3.0, 0.0, 0.5, 700.0]).repeat(5).reshape(1, 4, 5)
    assert torch.equal(prepare(raw, UNITS).double(), expected(raw[..., None], UNITS, 1.0))  # exact in float32


def test_files_that_do_not_fit(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "b.png").write_text("x")
    (tmp_path / "c.npy").write_text("x")
    np.savez(tmp_path / "d.npz", one=L, two=L)
    np.save(tmp_path / "e.npy", np.array([None]), allow_pickle=True)
    told = {"a.txt": "is neither an image", "b.png": "cannot read the image", "c.npy": "cannot read", "d.npz": "holds one, two", "e.npy": "Python objects"}
    for name, message in (told | {"f.png": "is missing", "g.npy": "cannot read"}).items():
        with pytest.raises(DataError, match=message) as caught:
            prepare(tmp_path / name, GREY)
        assert name in str(caught.value)
    with pytest.raises(DataError, match="nothing to predict"):
        prepare([], GREY)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_statistics_equal_numpys(dtype: torch.dtype) -> None:
    raw = torch.randint(0, 256, (2500, 3, 3, 2), generator=torch.Generator().manual_seed(0)).to(dtype)
    rows = torch.arange(0, 2500, 2)
    mean, std = statistics(raw, rows, 16.0)
    wanted = raw[rows].double().numpy() / 16
    assert np.allclose(mean, wanted.mean((0, 2, 3)), rtol=1e-12) and np.allclose(std, wanted.std((0, 2, 3)), rtol=1e-12)


def test_a_constant_channel_has_deviation_one() -> None:
    raw = torch.full((4, 1, 2, 2), 51, dtype=torch.uint8)
    assert statistics(raw, torch.arange(4), 255.0) == ([0.2], [1.0])
