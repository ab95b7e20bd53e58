"""Folders of image files: layouts, modes and sizes, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from limbeck.core.errors import DataError
from limbeck.tasks._folder import find_images, read_folder, read_image

COLOUR = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)


def save(path: Path, pixels: np.ndarray, **how: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **how)
    return path


def test_classes_directly(tmp_path: Path) -> None:
    save(tmp_path / "dog" / "b.png", COLOUR)
    save(tmp_path / "dog" / "a.PNG", COLOUR[::-1])
    save(tmp_path / "cat" / "z.png", COLOUR[:, ::-1])
    (tmp_path / "dog" / "notes.txt").write_text("passed over")
    (tmp_path / ".cache").mkdir()
    arrays = read_folder(find_images(tmp_path), None)
    assert arrays.names == ("cat", "dog") and arrays.labels.tolist() == [0, 1, 1] and arrays.tests == 0 and arrays.scale == 255
    assert np.array_equal(arrays.images, np.stack([COLOUR[:, ::-1], COLOUR[::-1], COLOUR]).transpose(0, 3, 1, 2))


def test_train_and_test(tmp_path: Path) -> None:
    for part, name in (("train", "a"), ("train", "b"), ("test", "b")):
        save(tmp_path / part / name / "1.png", COLOUR)
    arrays = read_folder(find_images(tmp_path), None)
    assert arrays.tests == 1 and arrays.labels.tolist() == [0, 1, 1]
    save(tmp_path / "test" / "c" / "1.png", COLOUR)
    with pytest.raises(DataError, match=r"is a class that .* has not: its classes are a, b"):
        find_images(tmp_path)


def test_grey_only_where_all_are_grey(tmp_path: Path) -> None:
    grey = COLOUR[:, :, 0]
    save(tmp_path / "a" / "1.png", grey)
    save(tmp_path / "b" / "1.png", grey.T[:6].repeat(2, 1)[:, :8])
    assert read_folder(find_images(tmp_path), None).images.shape == (2, 1, 6, 8)
    save(tmp_path / "b" / "2.png", COLOUR)
    arrays = read_folder(find_images(tmp_path), None)
    assert arrays.images.shape == (3, 3, 6, 8) and all(np.array_equal(arrays.images[0, c], grey) for c in range(3))


def test_size(tmp_path: Path) -> None:
    save(tmp_path / "a" / "1.png", COLOUR)
    odd = save(tmp_path / "b" / "1.png", np.zeros((9, 5, 3), np.uint8))
    with pytest.raises(DataError, match=r"is 6x8 and .* is 9x5: set `size`") as caught:
        read_folder(find_images(tmp_path), None)
    assert str(odd) in str(caught.value)
    assert read_folder(find_images(tmp_path), 4).images.shape == (2, 3, 4, 4)
    wide = np.zeros((4, 8), np.uint8)
    wide[:, 2:6] = 200  # the middle square is what is kept: no side is squeezed
    assert (read_image(save(tmp_path / "w.png", wide), "L", (4, 4)) == 200).all()


def test_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    path = save(tmp_path / "a.png", COLOUR, exif=exif)
    assert np.array_equal(read_image(path, "RGB", None), np.rot90(COLOUR, -1).transpose(2, 0, 1))


@pytest.mark.parametrize(("kind", "suffix"), [*((k, s) for k in ("text", "empty", "cut") for s in ("png", "jpg", "bmp")), ("flipped", "png")])
def test_an_unreadable_image_is_named(tmp_path: Path, kind: str, suffix: str) -> None:
    save(tmp_path / "a" / "1.png", COLOUR)
    bad = save(tmp_path / "b" / f"1.{suffix}", np.random.default_rng(1).integers(0, 256, (40, 40, 3), np.uint8))
    whole = bad.read_bytes()
    if kind == "flipped":
        bad.write_bytes(whole[:100] + bytes(b ^ 0xFF for b in whole[100:140]) + whole[140:])
    else:
        bad.write_bytes({"text": b"no image", "empty": b"", "cut": whole[: len(whole) // 2]}[kind])
    with pytest.raises(DataError, match="cannot read the image") as caught:
        read_folder(find_images(tmp_path), 6)
    assert str(bad) in str(caught.value) and "\n" not in str(caught.value)


def test_deep_pixels_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", np.full((4, 4), 60_000, np.uint16))
    with pytest.raises(DataError, match="more than 8 bits"):
        read_image(path, None, None)


def test_empty_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no class"):
        find_images(tmp_path)
    (tmp_path / "a").mkdir()
    with pytest.raises(DataError, match="a holds no image"):
        find_images(tmp_path)
    with pytest.raises(DataError, match="is no folder"):
        find_images(tmp_path / "nowhere")
    save(tmp_path / "a" / "1.png", COLOUR)
    with pytest.raises(DataError, match=r"one class only \(a\)"):
        read_folder(find_images(tmp_path), None)
