"""What an option may be."""

from collections.abc import Iterable

from torch import nn

from limbeck.core.errors import RecipeError, did_you_mean

__all__ = ["check_choice"]


def check_choice(objective: nn.Module, name: str, value: str, choices: Iterable[str]) -> None:
    """Refuse an option's value that is none of its choices.

    Raises:
        RecipeError: with the nearest of them.
    """
    if value not in choices:
        raise RecipeError(f"no {name} {value!r} for {type(objective).__name__}{did_you_mean(value, choices)}")
