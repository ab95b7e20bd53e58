"""Image files by class: ROOT/CLASS/*, or ROOT/train/CLASS/* with ROOT/test/CLASS/* where there is a test split."""

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from limbeck.core.errors import DataError

from ._arrays import Arrays, assemble

__all__ = ["SUFFIXES", "Tree", "find_images", "read_folder", "read_image"]

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".ppm", ".pgm", ".tif", ".tiff"})
Mode = Literal["L", "RGB"]


@dataclass(frozen=True)
class Tree:
    """Class names, and (file, label) of the training images and of the test images, in order of class and file name."""

    root: Path
    names: tuple[str, ...]
    train: tuple[tuple[Path, int], ...]
    test: tuple[tuple[Path, int], ...]

    @property
    def files(self) -> list[Path]:
        return [path for path, _ in self.train + self.test]


def _by_class(folder: Path) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for inner in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
        found[inner.name] = sorted(path for path in inner.iterdir() if path.suffix.lower() in SUFFIXES and not path.name.startswith("."))
        if not found[inner.name]:
            raise DataError(f"{inner} holds no image ({', '.join(sorted(SUFFIXES))}): put some there, or remove the folder")
    return found


def find_images(root: Path) -> Tree:
    """Find the images of a folder without opening them; hidden files and other suffixes are passed over."""
    if not root.is_dir():
        raise DataError(f"{root} is no folder: `root` must hold a folder of images for each class")
    split = (root / "train").is_dir()
    train = _by_class(root / "train" if split else root)
    test = _by_class(root / "test") if split and (root / "test").is_dir() else {}
    if not train:
        raise DataError(f"{root / 'train' if split else root} holds no class: put the images of each class into a folder of its name")
    unknown = sorted(test.keys() - train.keys())
    if unknown:
        raise DataError(f"{root / 'test' / unknown[0]} is a class that {root / 'train'} has not: its classes are {', '.join(train)}")
    names = tuple(train)
    rows = [tuple((path, names.index(name)) for name, paths in part.items() for path in paths) for part in (train, test)]
    return Tree(root, names, rows[0], rows[1])


def read_image(path: Path, mode: Mode | None, size: tuple[int, int] | None) -> npt.NDArray[Any]:
    """Read an image file upright as uint8 `[C, H, W]`.

    `mode`: L (grey) or RGB, transparency dropped; None keeps grey for a grey file and gives RGB for others.
    `size` (H, W): scaled until it covers that, bilinear, and cut to its middle; None keeps the file's own.

    Raises:
        DataError: missing, truncated, corrupt, or of more than 8 bits.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as opened:
            if opened.mode.startswith(("I", "F")):
                raise DataError(f"{path} has pixels of more than 8 bits (mode {opened.mode}): store it with 8, or use an npz of floats")
            upright = ImageOps.exif_transpose(opened)
            picture = upright.convert(mode or ("L" if upright.mode in ("1", "L", "LA") else "RGB"))
    except FileNotFoundError:
        raise DataError(f"{path} is missing") from None
    except DataError:
        raise
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError) as error:
        raise DataError(f"cannot read the image {path} ({error}): it is truncated, corrupt or no image; mend or remove it") from None
    if size is not None and picture.size != size[::-1]:
        picture = ImageOps.fit(picture, (size[1], size[0]), Image.Resampling.BILINEAR)
    pixels = np.asarray(picture)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def read_folder(tree: Tree, size: int | None) -> Arrays:
    """Read the images of a tree: grey if all of them are, RGB otherwise; `size` makes them square, without it all must have one size."""
    read = [read_image(path, None, None if size is None else (size, size)) for path in tree.files]
    channels = max(len(image) for image in read)
    shape = read[0].shape[1:]
    for path, image in zip(tree.files, read, strict=True):
        if image.shape[1:] != shape:
            first, other = "x".join(map(str, shape)), "x".join(map(str, image.shape[1:]))
            raise DataError(f"{tree.files[0]} is {first} and {path} is {other}: set `size` to bring all images to one size")
    images = np.stack([image if len(image) == channels else image.repeat(channels, 0) for image in read])
    labels = np.array([label for _, label in tree.train + tree.test], np.int64)
    count = len(tree.train)
    test = (images[count:], labels[count:]) if tree.test else None
    return assemble(str(tree.root), (images[:count], labels[:count]), test, names=tree.names)
