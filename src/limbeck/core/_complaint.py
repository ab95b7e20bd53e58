"""What pydantic finds wrong with an option, said in one line: which option of which part, what was given, what is needed."""

import inspect
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pydantic

from .errors import did_you_mean

_WORDS = {float: "a number", int: "a whole number", bool: "true or false", str: "text", Path: "a path", type(None): "nothing", Any: "anything"}
_WIDTH = 80
_LIMITS = ("greater", "less", "finite", "multiple", "too_", "string_too", "string_pattern", "value_error")
"""What the types begin with of errors about a value of the right type."""


def shown(value: Any) -> str:
    """Return a value as one short line."""
    text = " ".join(repr(value).split())
    return text if len(text) <= _WIDTH else f"{text[: _WIDTH - 3]}..."


def _leaves(kind: Any) -> list[Any]:
    """The types of a union, however nested and annotated."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return _leaves(inner[0])
    return [leaf for each in inner for leaf in _leaves(each)] if origin in (typing.Union, types.UnionType) else [kind]


def _models(kind: Any) -> dict[str, type[pydantic.BaseModel]]:
    """The `kind` of every model (a schedule, say) that a type admits -> the model."""
    models = [leaf for leaf in _leaves(kind) if inspect.isclass(leaf) and issubclass(leaf, pydantic.BaseModel)]
    return {str(model.model_fields["kind"].default) if "kind" in model.model_fields else model.__name__: model for model in models}


def _word(leaf: Any) -> str:
    origin = typing.get_origin(leaf)
    if origin is typing.Literal:
        return " or ".join(repr(choice) for choice in typing.get_args(leaf))
    holder = origin if inspect.isclass(origin) else leaf
    if leaf in _WORDS or not (inspect.isclass(holder) and issubclass(holder, (Mapping, Sequence, set, frozenset))):
        return _WORDS.get(leaf) or getattr(leaf, "__name__", str(leaf))
    return "a mapping" if issubclass(holder, Mapping) else "a list"


def wanted(kind: Any) -> str:
    """Say which values a type admits.

    >>> wanted(float | typing.Literal["auto"])
    "a number or 'auto'"
    """
    models = _models(kind)
    said = [_word(leaf) for leaf in _leaves(kind) if leaf not in models.values()]
    return " or ".join([*said, f"a mapping with kind: {' | '.join(models)}"] if models else said)


def takes_bool(kind: Any) -> bool:
    """Whether true and false are values of a type, and no mistake for a number."""
    return any(leaf in (bool, Any, object) or any(isinstance(choice, bool) for choice in typing.get_args(leaf)) for leaf in _leaves(kind))


def _place(location: Sequence[Any], value: Any) -> list[str]:
    """The pieces of an error's location that are in the value: pydantic puts names of union members among them."""
    path: list[str] = []
    for piece in location:
        if piece in value if isinstance(value, Mapping) else isinstance(value, (list, tuple)) and piece in range(len(value)):
            path.append(str(piece))
            value = value[piece]
    return path


def complaint(label: str, option: str, kind: Any, value: Any, errors: Sequence[Mapping[str, Any]]) -> str:
    """Say what is wrong with `option: value` of the part `label`, whose type is `kind`, from pydantic's errors about it."""
    inner = [error for error in errors if _place(error["loc"][1:], value) or error["type"] in ("missing", "union_tag_invalid", "union_tag_not_found")]
    error = (inner or errors)[0]
    last = str(error["loc"][-1])
    name = f"option {'.'.join([option, *_place(error['loc'][1:], value)])!r} of {label}"
    models = _models(kind)
    match error["type"]:
        case "union_tag_invalid":
            return f"{name} has no kind {error['ctx']['tag']!r}{did_you_mean(error['ctx']['tag'], models)}"
        case "union_tag_not_found":
            return f"{name} needs a kind{did_you_mean('', models)}; given is {shown(error['input'])}"
        case "extra_forbidden":
            known = [field for piece in error["loc"] if piece in models for field in models[piece].model_fields]
            return f"option {option!r} of {label} has no key {last!r}{did_you_mean(last, known)}"
        case "missing":
            return f"{name} lacks {last!r}; given is {shown(error['input'])}"
    if inner or error["type"].startswith(_LIMITS):
        return f"{name} {error['msg'].removeprefix('Value error, ').removeprefix('Input ')}; given is {shown(error['input'])}"
    return f"{name} must be {wanted(kind)}, not {shown(value)}"
