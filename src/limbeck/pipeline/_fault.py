"""What pydantic finds wrong with a recipe, said in one line: where, what was given, the nearest valid choice."""

from typing import Any, get_args, get_origin

import pydantic
from pydantic import BaseModel

from limbeck.core.errors import did_you_mean

__all__ = ["first_fault"]


def first_fault(error: pydantic.ValidationError, tree: Any, whole: type[BaseModel]) -> str:
    """Turn pydantic's first complaint into one line with the nearest valid choice; of those about one option, the one that looked deepest into it."""
    traced = [(*_trace(each["loc"], tree, whole), each) for each in error.errors(include_url=False)]
    start = traced[0][0]
    about = [one for one in traced if one[0][: len(start)] == start]
    path, models, first = max(about, key=lambda one: (len(one[0]), not one[2]["type"].endswith("_type")))
    place, kind, last = ".".join(path), first["type"], str(first["loc"][-1])
    if kind == "extra_forbidden":
        return f"no option {last!r} in {'.'.join(path[:-1]) or 'the recipe'}{did_you_mean(last, {name for model in models for name in model.model_fields})}"
    if kind == "missing":
        return f"{place or 'the recipe'} needs the option {last!r}"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        tag, tags = str(first.get("ctx", {}).get("tag", "")), [str(_tag(model)) for model in _models(_within(models, path[-1]))]
        return f"{place} needs a kind{did_you_mean(tag, tags)}" if not tag else f"no kind {tag!r} for {place}{did_you_mean(tag, tags)}"
    given = " ".join(repr(first["input"]).split())
    return f"{place or 'the recipe'}: {first['msg'][0].lower()}{first['msg'][1:]}, not {given if len(given) <= 80 else f'{given[:77]}...'}"


def _trace(location: tuple[int | str, ...], tree: Any, whole: type[BaseModel]) -> tuple[list[str], list[Any]]:
    """Return the pieces of an error's location that are in the recipe, and the types about the last one.

    pydantic puts the kinds of union members among the pieces.
    """
    path: list[str] = []
    value, kind, about = tree, whole, [whole]
    for piece in location:
        if not (isinstance(value, list) and isinstance(piece, int)) and not (isinstance(value, dict) and piece in value):
            kind = next((model for model in _models(kind) if _tag(model) == piece), kind)
            continue
        about, kind = _models(kind) or [kind], _within(_models(kind) or [kind], str(piece))
        path.append(str(piece))
        value = value[piece]  # pyright: ignore[reportArgumentType, reportCallIssue]
    return path, about


def _models(kind: Any) -> list[Any]:
    """The models that a type admits: itself, or a union's members."""
    if isinstance(kind, type):
        return [kind] if issubclass(kind, BaseModel) else []
    return [model for inner in get_args(kind) if get_origin(kind) not in (list, dict) for model in _models(inner)]


def _tag(model: type[BaseModel]) -> Any:
    return model.model_fields["kind"].default if "kind" in model.model_fields else None


def _within(kinds: list[Any], piece: str) -> Any:
    """The type of what lies at `piece`: a field of one of the models, or an item of a list or mapping."""
    for model in kinds:
        if isinstance(model, type) and issubclass(model, BaseModel) and piece in model.model_fields:
            return model.model_fields[piece].annotation
    return get_args(kinds[0])[-1] if get_args(kinds[0]) else None
