"""What a model can be built for: shapes, classes and depths that are meant."""

from collections.abc import Sequence

from limbeck.core.errors import MismatchError, RecipeError

__all__ = ["check_classes", "check_rate", "check_whole", "image_channels", "nearest_depth"]


def check_classes(model: str, classes: int) -> None:
    """Refuse a head without an output."""
    if classes < 1:
        raise MismatchError(f"{model} cannot be built for {classes} classes: the task must name at least one")


def image_channels(model: str, in_shape: Sequence[int], *, least: int) -> int:
    """Return C of an image shape (C, H, W); refuse another rank, an empty axis, or a side below `least`, which the model's strides would use up."""
    if len(in_shape) != 3 or min(in_shape) < 1:
        raise MismatchError(
            f"{model} reads images (C, H, W), not examples of shape {tuple(in_shape)}: use an image task, or the model mlp, which reads any shape"
        )
    if min(in_shape[1:]) < least:
        raise MismatchError(f"{model} needs images of at least {least}x{least}, not {in_shape[1]}x{in_shape[2]}: use larger images, or the model mlp")
    return in_shape[0]


def check_whole(name: str, value: int) -> None:
    """Refuse a count below one."""
    if value < 1:
        raise RecipeError(f"{name} is {value}; it must be a whole number of at least 1")


def check_rate(name: str, value: float) -> None:
    """Refuse a dropout rate outside [0, 1)."""
    if not 0 <= value < 1:
        raise RecipeError(f"{name} is {value:g}; it must be at least 0 and below 1")


def nearest_depth(depth: int, offset: int) -> int:
    """Return n for a depth of 6n + offset, n >= 1; refuse another depth, naming the nearest.

    >>> nearest_depth(20, 2)
    3
    """
    n = max(1, round((depth - offset) / 6))
    if 6 * n + offset != depth:
        raise RecipeError(f"depth must be 6n+{offset}, not {depth}; nearest {6 * n + offset}")
    return n
