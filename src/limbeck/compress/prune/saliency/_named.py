"""A saliency by its name, as a recipe gives it."""

from collections.abc import Mapping
from typing import Any

from limbeck.compress._method import Saliency
from limbeck.core.errors import RecipeError
from limbeck.core.lookup import build, names

__all__ = ["named"]

_FOLDER = "prune.saliency."


def named(given: str | Mapping[str, Any]) -> Saliency:
    """Return the saliency that `obd`, or `{kind: obd, examples: 1000}`, means; a short name is looked for among the saliencies first.

    Raises:
        RecipeError: no kind, a part that is none, an option that it has not, or a part that is no saliency.
    """
    options = {"kind": given} if isinstance(given, str) else dict(given)
    kind = options.pop("kind", None)
    if not isinstance(kind, str):
        raise RecipeError(f"a saliency needs a kind, as {{kind: obd}} has one; given is {given!r}")
    known = [name.removeprefix(_FOLDER) for name in names("compress") if name.startswith(_FOLDER)]
    made = build("compress", f"{_FOLDER}{kind}" if kind in known else kind, options)
    if not isinstance(made, Saliency):
        raise RecipeError(f"{kind!r} is no saliency; there are {', '.join(known)}")
    return made
