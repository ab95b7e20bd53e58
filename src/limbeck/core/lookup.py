"""Find a part by name: the folder is the registry, the signature is the schema.

A part is the one public class of a module without a leading underscore in its slot's folder. What assembly hands it (a model's input shape,
a teacher's model) are its positional parameters; what a recipe may set are its keyword-only ones, whose defaults and types come from the signature
and whose meaning from the docstring's `Args:`.
"""

import difflib
import importlib
import importlib.machinery
import importlib.metadata
import importlib.util
import inspect
import re
import types
import typing
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pydantic

from ._complaint import complaint, shown, takes_bool, wanted
from .errors import LimbeckError, RecipeError, did_you_mean

__all__ = ["SLOTS", "Option", "build", "check_options", "find", "full_name", "names", "option_model", "options", "source_digest"]

SLOTS = {
    "objectives": "limbeck.core.objective:Objective",
    "teachers": "limbeck.core.teacher:Teacher",
    "transfer": "limbeck.core.transfer:Transfer",
    "schemes": "limbeck.core.scheme:Way",
    "tasks": "limbeck.core.task:Task",
    "models": "torch.nn:Module",
    "export": "limbeck.export:Exporter",
    "compress": "limbeck.compress:Method",
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
    short = {name.rpartition(".")[2]: name for name in known}
    near = difflib.get_close_matches(kind.rpartition(".")[2].casefold(), short, n=1)
    raise RecipeError(f"no part {kind!r} among {slot}{f'; did you mean {short[near[0]]!r}?' if near else did_you_mean(kind, known)}")


def _import(where: str, asked: str) -> Any:
    module_name, _, attribute = where.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise RecipeError(f"{asked}: there is no module {module_name!r}; it must be importable from the current folder or installed") from None
        raise RecipeError(f"{asked}: {module_name} imports {error.name!r}, which is not installed") from error
    except LimbeckError:
        raise
    except (ImportError, SyntaxError) as error:
        raise RecipeError(f"{asked}: {module_name} cannot be imported: {' '.join(str(error).split())}") from error
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
        _module_of(name)
        part = _import(name.removeprefix("python:"), name)
        if not callable(part):
            raise RecipeError(f"{name} is {shown(part)}; it must be a class or a function")
        return part
    where = _providers(slot)[name]
    loaded = _import(where, f"{slot}.{name}")
    if not inspect.ismodule(loaded):
        return loaded
    base = _import(SLOTS[slot], slot)
    public = [member for key, member in vars(loaded).items() if inspect.isclass(member) and not key.startswith("_")]
    parts = [member for member in public if member.__module__ == loaded.__name__ and issubclass(member, base) and not inspect.isabstract(member)]
    if len(parts) != 1:
        raise RecipeError(
            f"{where} must define exactly one public {SLOTS[slot].rpartition(':')[2]}; it defines {', '.join(p.__name__ for p in parts) or 'none'}"
        )
    return parts[0]


def _module_of(kind: str) -> str:
    """The module that `python:package.module:name` names."""
    match = re.fullmatch(r"python:([^\W\d]\w*(?:\.[^\W\d]\w*)*):[^\W\d]\w*", kind)
    if not match:
        raise RecipeError(f"{kind!r} must read python:package.module:name")
    return match[1]


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
        elif inside and (match := re.match(r"    (\w+)(?: \([^)]*\))?:(?: (.*)|$)", line)):
            current, found[match[1]] = match[1], (match[2] or "").strip()
        elif inside and current and line.startswith("        "):
            found[current] = f"{found[current]} {line.strip()}".strip()
    return found


def _signature(part: Any) -> inspect.Signature:
    try:
        return inspect.signature(part)
    except ValueError:
        raise RecipeError(f"{shown(part)} has no signature to read options from: name a Python class or function") from None


def _type(part: Any, parameter: inspect.Parameter) -> Any:
    """The type of one parameter; those that assembly hands over may name what is imported for type checking only, options may not."""
    if parameter.annotation is inspect.Parameter.empty:
        return Any
    made_by = inspect.unwrap(part.__init__ if inspect.isclass(part) else part)
    holder = types.SimpleNamespace(__annotations__={parameter.name: parameter.annotation})
    try:
        return typing.get_type_hints(holder, getattr(made_by, "__globals__", {}), include_extras=True)[parameter.name]
    except NameError as error:
        raise RecipeError(f"the type of option {parameter.name!r} of {shown(part)} cannot be read ({error}): import it at run time") from None


def _open_ended(part: Any) -> bool:
    """Whether a part takes any option: a function with `**kwargs`; a class says by name what it takes."""
    return not inspect.isclass(part) and any(p.kind is inspect.Parameter.VAR_KEYWORD for p in _signature(part).parameters.values())


@cache
def options(part: Any) -> Mapping[str, Option]:
    """Name -> option of a part: its keyword-only parameters; every parameter, for a function or class that a user named by `python:`."""
    docs = _docs(part)
    own = (part.__module__ or "").startswith("limbeck.")
    kinds = {inspect.Parameter.KEYWORD_ONLY} if own else {inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD}
    return types.MappingProxyType({
        p.name: Option(p.name, _type(part, p), p.default, docs.get(p.name, ""))
        for p in _signature(part).parameters.values() if p.kind in kinds and not p.name.startswith("_")
    })  # fmt: skip


@cache
def option_model(part: Any, given: frozenset[str] = frozenset()) -> type[pydantic.BaseModel]:
    """Return the pydantic model of a part's options, those in `given` (handed over by assembly) made optional."""
    fields: dict[str, Any] = {}
    for option in options(part).values():
        default = ... if option.required and option.name not in given else (None if option.required else option.default)
        fields[option.name] = (option.type, pydantic.Field(default=default, description=option.doc or None))
    config = pydantic.ConfigDict(extra="allow" if _open_ended(part) else "forbid", arbitrary_types_allowed=True, protected_namespaces=())
    with warnings.catch_warnings():  # an option may be called `copy` or `json`
        warnings.filterwarnings("ignore", r'Field name "\w+" in "\w+" shadows an attribute in parent "BaseModel"', UserWarning)
        return pydantic.create_model(getattr(part, "__name__", type(part).__name__), __config__=config, **fields)


def check_options(part: Any, values: Mapping[str, Any], label: str, given: frozenset[str] = frozenset()) -> dict[str, Any]:
    """Return a part's options in full, defaults filled in; an unknown, missing or mistyped one is a `RecipeError` with the way out.

    Raises:
        RecipeError: "no option 'temprature' for objectives.response.kd; did you mean 'temperature'?"
    """
    known = options(part)
    for key, value in values.items():
        if key not in known and not (_open_ended(part) and isinstance(key, str)):
            raise RecipeError(f"no option {key!r} for {label}{did_you_mean(str(key), known) or '; it has none'}")
        if key in known and isinstance(value, bool) and not takes_bool(known[key].type):
            raise RecipeError(f"option {key!r} of {label} must be {wanted(known[key].type)}, not {value}")
    try:
        model = option_model(part, given).model_validate(dict(values))
    except pydantic.ValidationError as error:
        name = str(error.errors()[0]["loc"][0])
        if name not in values:
            raise RecipeError(f"{label} needs the option {name!r}: {known[name].doc or wanted(known[name].type)}") from None
        about = [each for each in error.errors(include_url=False) if each["loc"][0] == name]
        raise RecipeError(complaint(label, name, known[name].type, values[name], about)) from None
    chosen = {name: getattr(model, name) for name in known if name not in given or name in values}
    return {**chosen, **(model.model_extra or {})}


def build(slot: str, kind: str, values: Mapping[str, Any], *args: Any, **given: Any) -> Any:
    """Make a part: options checked, what assembly hands over by keyword passed where the signature names it.

    Raises:
        RecipeError: an option that cannot be meant, or a part that is not what its slot holds.
    """
    part = find(slot, kind)
    accepted = _signature(part).parameters
    handed = {key: value for key, value in given.items() if key in accepted}
    label = kind if kind.startswith("python:") else f"{slot}.{full_name(slot, kind)}"
    placed = [p.name for p in accepted.values() if p.kind in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)][: len(args)]
    for name in placed:
        if name in values:
            raise RecipeError(f"option {name!r} of {label} is filled by limbeck itself: leave it out")
    checked = check_options(part, values, label, frozenset([*handed, *placed]))
    made = part(*args, **{**handed, **checked})
    base = _import(SLOTS[slot], slot)
    if not isinstance(made, base):
        raise RecipeError(f"{label} gives a {type(made).__name__}; a part of {slot} must be a {SLOTS[slot].replace(':', '.')}")
    return made


def source_digest(kind: str) -> str:
    """Return the digest of the file behind `python:package.module:name`, without importing it, and an empty string for a part that comes with limbeck."""
    if not kind.startswith("python:"):
        return ""
    from .files import sha256

    module = _module_of(kind)
    first, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(first)
    except ValueError:  # a module without a file, `__main__` of a notebook
        spec = None
    for piece in rest:  # `find_spec` of a dotted name would import the packages above it
        spec = importlib.machinery.PathFinder.find_spec(piece, list(spec.submodule_search_locations or ())) if spec else None
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        raise RecipeError(f"{kind}: there is no module {module!r}; it must be importable from the current folder or installed")
    return sha256(Path(spec.origin))
