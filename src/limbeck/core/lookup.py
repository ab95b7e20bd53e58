"""Find a part by name: the folder is the registry, the signature is the schema.

A part is the one public class of a module without a leading underscore in its slot's folder. What assembly hands it (a model's input shape,
a teacher's model) are its positional parameters; what a recipe may set are its keyword-only ones, whose defaults and types come from the signature
and whose meaning from the docstring's `Args:`.
"""

import importlib
import importlib.metadata
import importlib.util
import inspect
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pydantic

from .errors import RecipeError, did_you_mean

__all__ = ["SLOTS", "Option", "build", "check_options", "find", "full_name", "names", "option_model", "options", "source_digest"]

SLOTS = {
    "objectives": "limbeck.core.objective:Objective",
    "teachers": "limbeck.core.teacher:Teacher",
    "transfer": "limbeck.core.transfer:Transfer",
    "schemes": "limbeck.core.scheme:Scheme",
    "tasks": "limbeck.core.task:Task",
    "models": "torch.nn:Module",
    "export": "limbeck.core.graph:Exporter",
    "compress": "limbeck.core.graph:Compressor",
}
"""Slot (a folder of the package) -> the class that its parts derive from."""


@dataclass(frozen=True)
class Option:
    """One option of a part, as its signature has it."""

    name: str
    type: Any
    default: Any
    doc: str

    @property
    def required(self) -> bool:
        return self.default is inspect.Parameter.empty


@cache
def _providers(slot: str) -> Mapping[str, str]:
    """Name within the slot -> `module` or `module:Class` that provides it."""
    if slot not in SLOTS:
        raise RecipeError(f"no slot {slot!r}{did_you_mean(slot, SLOTS)}")
    root = Path(__file__).parent.parent / slot
    found: dict[str, str] = {}
    for file in sorted(root.rglob("*.py")):
        dotted = file.relative_to(root).with_suffix("").parts
        if not any(part.startswith("_") for part in dotted):
            found[".".join(dotted)] = f"limbeck.{slot}.{'.'.join(dotted)}"
    for entry in importlib.metadata.entry_points(group=f"limbeck.{slot}"):
        if entry.name in found and found[entry.name] != entry.value:
            raise RecipeError(f"two providers of {slot}.{entry.name}: {found[entry.name]} and {entry.value}; uninstall one, or rename its entry point")
        found[entry.name] = entry.value
    return types.MappingProxyType(found)


def names(slot: str) -> tuple[str, ...]:
    """The names of a slot's parts, without importing any of them.

    >>> "response.kd" in names("objectives")
    True
    """
    return tuple(_providers(slot))


def full_name(slot: str, kind: str) -> str:
    """Return the name within a slot that `kind` means: a full name, or a last part that only one name has."""
    kind = kind.removeprefix(f"{slot}.")
    known = names(slot)
    if kind in known or kind.startswith("python:"):
        return kind
    ends = [name for name in known if name.rpartition(".")[2] == kind]
    if len(ends) == 1:
        return ends[0]
    if ends:
        raise RecipeError(f"{kind!r} could be {' or '.join(f'{slot}.{name}' for name in ends)}: write it whole")
    raise RecipeError(f"no part {kind!r} among {slot}{did_you_mean(kind, known)}")


def _import(where: str, asked: str) -> Any:
    module_name, _, attribute = where.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise RecipeError(f"{asked}: there is no module {module_name!r}; it must be importable from the current folder or installed") from None
        raise
    if not attribute:
        return module
    if not hasattr(module, attribute):
        raise RecipeError(f"{asked}: {module_name} has no {attribute!r}{did_you_mean(attribute, [n for n in vars(module) if not n.startswith('_')])}")
    return getattr(module, attribute)


@cache
def find(slot: str, kind: str) -> Any:
    """Return the class (for `python:package.module:name`, the class or function) that a name means."""
    name = full_name(slot, kind)
    if name.startswith("python:"):
        where = name.removeprefix("python:")
        if ":" not in where:
            raise RecipeError(f"{name!r} must read python:package.module:name")
        return _import(where, name)
    where = _providers(slot)[name]
    loaded = _import(where, f"{slot}.{name}")
    if not inspect.ismodule(loaded):
        return loaded
    base = _import(SLOTS[slot], slot)
    public = [member for key, member in vars(loaded).items() if inspect.isclass(member) and not key.startswith("_")]
    parts = [member for member in public if member.__module__ == loaded.__name__ and issubclass(member, base) and not inspect.isabstract(member)]
    if len(parts) != 1:
        raise RecipeError(f"{where} must define exactly one public {base.__name__}; it defines {', '.join(p.__name__ for p in parts) or 'none'}")
    return parts[0]


def _docs(part: Any) -> dict[str, str]:
    """Parse `Args:` of a docstring: `name: what it means.`, continued on deeper lines."""
    lines = inspect.cleandoc(part.__doc__ or "").splitlines()
    found: dict[str, str] = {}
    inside, current = False, ""
    for line in lines:
        if line.strip() == "Args:":
            inside = True
        elif inside and line and not line.startswith(" "):
            inside = False
        elif inside and (match := re.match(r"    (\w+): (.*)", line)):
            current, found[match[1]] = match[1], match[2].strip()
        elif inside and current and line.startswith("        "):
            found[current] += " " + line.strip()
    return found


@cache
def options(part: Any) -> Mapping[str, Option]:
    """Name -> option of a part: its keyword-only parameters; every parameter, for a function or class that a user named by `python:`."""
    signature = inspect.signature(part)
    hints = typing.get_type_hints(part.__init__ if inspect.isclass(part) else part, include_extras=True)
    docs = _docs(part)
    own = (part.__module__ or "").startswith("limbeck.")
    kinds = {inspect.Parameter.KEYWORD_ONLY} if own else {inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD}
    return types.MappingProxyType({
        p.name: Option(p.name, hints.get(p.name, Any), p.default, docs.get(p.name, "")) for p in signature.parameters.values() if p.kind in kinds
    })  # fmt: skip


@cache
def option_model(part: Any, given: frozenset[str] = frozenset()) -> type[pydantic.BaseModel]:
    """Return the pydantic model of a part's options, those in `given` (handed over by assembly) made optional."""
    fields: dict[str, Any] = {}
    for option in options(part).values():
        default = ... if option.required and option.name not in given else (None if option.required else option.default)
        fields[option.name] = (option.type, pydantic.Field(default=default, description=option.doc or None))
    config = pydantic.ConfigDict(extra="forbid", arbitrary_types_allowed=True, protected_namespaces=())
    return pydantic.create_model(part.__name__, __config__=config, **fields)


def check_options(part: Any, values: Mapping[str, Any], label: str, given: frozenset[str] = frozenset()) -> dict[str, Any]:
    """Return a part's options in full, defaults filled in; an unknown, missing or mistyped one is a `RecipeError` with the way out.

    Raises:
        RecipeError: "no option 'temprature' for objectives.response.kd; did you mean 'temperature'?"
    """
    known = options(part)
    for key in values:
        if key not in known:
            raise RecipeError(f"no option {key!r} for {label}{did_you_mean(key, known)}")
    try:
        model = option_model(part, given).model_validate(dict(values))
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        path = ".".join(str(piece) for piece in first["loc"])
        if first["type"] == "missing":
            raise RecipeError(f"{label} needs the option {path!r}: {known[str(first['loc'][0])].doc or 'it has no default'}") from None
        raise RecipeError(f"option {path!r} of {label}: {first['msg']}, not {first['input']!r}") from None
    return {name: getattr(model, name) for name in known if name not in given or name in values}


def build(slot: str, kind: str, values: Mapping[str, Any], *args: Any, **given: Any) -> Any:
    """Make a part: options checked, what assembly hands over passed where the signature has a place for it."""
    part = find(slot, kind)
    accepted = inspect.signature(part).parameters
    wide = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in accepted.values())
    handed = {key: value for key, value in given.items() if key in accepted or wide}
    label = kind if kind.startswith("python:") else f"{slot}.{full_name(slot, kind)}"
    checked = check_options(part, values, label, frozenset(handed))
    return part(*args, **{**handed, **checked})


def source_digest(kind: str) -> str:
    """Return the digest of the file behind `python:package.module:name`, without importing it, and an empty string for a part that comes with limbeck."""
    if not kind.startswith("python:"):
        return ""
    from .files import sha256

    module = kind.removeprefix("python:").partition(":")[0]
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        spec = None
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        raise RecipeError(f"{kind}: there is no module {module!r}; it must be importable from the current folder or installed")
    return sha256(Path(spec.origin))
