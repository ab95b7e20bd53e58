"""What there is to choose from: parts, recipes, and the JSON Schema of a recipe."""

import ast
import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pydantic_core
from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue, models_json_schema

from limbeck.core import lookup
from limbeck.core.errors import RecipeError, did_you_mean
from limbeck.core.lookup import wanted

from .recipe import CompressStage, DistillStage, Drawing, ExportStage, GivenStage, ObjectiveSpec, Part, QuantizeStage, Recipe, TeacherSpec, TrainStage, builtin

__all__ = ["Entry", "OptionLine", "PartPage", "describe", "parts", "recipes", "schema"]

_TRAINED = {"model": "models", "objectives": "objectives", "transfer": "transfer", "scheme": "schemes"}
_PLACES: dict[tuple[type[BaseModel], str], str] = {
    (Recipe, "task"): "tasks",
    (Drawing, "partner"): "tasks",
    **{(stage, field): slot for stage in (TrainStage, DistillStage) for field, slot in _TRAINED.items()},
    (GivenStage, "model"): "models",
    (DistillStage, "teacher"): "teachers",
    (ExportStage, "format"): "export",
    (CompressStage, "method"): "compress",
    (QuantizeStage, "method"): "compress",
}
"""(model, field) of a recipe that holds a part -> the part's slot."""
_PARTS: tuple[type[BaseModel], ...] = (Part, Drawing, ObjectiveSpec, TeacherSpec)
_BESIDE: dict[str, type[BaseModel]] = {"objectives": ObjectiveSpec, "teachers": TeacherSpec, "transfer": Drawing, "schemes": Drawing}
"""Slot -> the model whose fields stand beside a part's own options."""
_PYTHON = r"^python:[\w.]+:\w+$"
_YEAR = re.compile(r"arXiv:\d|\b(19|20)\d\d\b")
_PAPER = re.compile(r"arXiv:\d|\"[^\"]+\".*\b(19|20)\d\d\b|\b(19|20)\d\d\b.*\"[^\"]+\"", re.DOTALL)


@dataclass(frozen=True)
class Entry:
    """A part in one line."""

    slot: str
    name: str
    doc: str


@dataclass(frozen=True)
class OptionLine:
    """An option as a person reads it; `default` is as JSON, empty where the option is required."""

    name: str
    type: str
    default: str
    required: bool
    doc: str


@dataclass(frozen=True)
class PartPage:
    """All that a part says of itself."""

    slot: str
    name: str
    doc: str
    paper: str
    needs: tuple[str, ...]
    options: tuple[OptionLine, ...]

    def as_dict(self) -> dict[str, Any]:
        """The page, JSON-able."""
        return asdict(self)


def parts() -> list[Entry]:
    """Return every part, by slot, with the first sentence of its file, none of them imported."""
    return [Entry(slot, name, _first_sentence(slot, name)) for slot in lookup.SLOTS for name in lookup.names(slot)]


def recipes() -> dict[str, str]:
    """Return the built-in recipes: name -> the comment at the head of its file."""
    found: dict[str, str] = {}
    for name, file in builtin().items():
        first = file.read_text().partition("\n")[0]
        found[name] = first.removeprefix("#").strip() if first.startswith("#") else ""
    return found


def _first_sentence(slot: str, name: str) -> str:
    file = Path(__file__).parent.parent / slot / f"{name.replace('.', '/')}.py"
    if not file.is_file():
        return "(of another package)"
    doc = ast.get_docstring(ast.parse(file.read_text())) or ""
    return doc.partition("\n")[0]


def describe(name: str) -> PartPage | str:
    """Return a part's page, or a built-in recipe's YAML.

    `name` is `slot.name`, a name or last part of a name that only one part has, or a recipe's.

    Raises:
        RecipeError: no such name, or several; the message names them, or the nearest.
    """
    if name in builtin():
        return builtin()[name].read_text()
    slot, known = _find(name)
    found = lookup.find(slot, known)
    options = lookup.options(found)
    lines = tuple(
        OptionLine(o.name, wanted(o.type), "" if o.required else _shown_default(o.default), o.required, " ".join(o.doc.split())) for o in options.values()
    )
    return PartPage(slot, known, _opening(found), _paper(found), tuple(_needs(slot, found)), lines)


def _find(name: str) -> tuple[str, str]:
    """The slot and full name that a part's name means, wherever it is."""
    everything = [(slot, known) for slot in lookup.SLOTS for known in lookup.names(slot)]
    slot, _, rest = name.partition(".")
    if slot in lookup.SLOTS and rest:
        return slot, lookup.full_name(slot, rest)
    exact = [pair for pair in everything if pair[1] == name]
    found = exact or [pair for pair in everything if pair[1].rpartition(".")[2] == name]
    if len(found) == 1:
        return found[0]
    if found:
        raise RecipeError(f"{name!r} could be {' or '.join(f'{slot}.{known}' for slot, known in found)}: write it whole")
    choices = {*builtin(), *(known for _, known in everything), *(known.rpartition(".")[2] for _, known in everything)}
    raise RecipeError(f"no part and no recipe {name!r}{did_you_mean(name, choices)} (limbeck list)")


def _opening(part: Any) -> str:
    """The first paragraph of a docstring, in one line."""
    return " ".join(inspect.cleandoc(part.__doc__ or "").partition("\n\n")[0].split())


def _paper(part: Any) -> str:
    """Where a part comes from: the first paragraph of its file, or the lines of its class, that cite; what follows the citation is left out."""
    module = inspect.getmodule(part)
    for paragraph in inspect.cleandoc((module.__doc__ if module else None) or "").split("\n\n"):
        lines = paragraph.splitlines()
        if _PAPER.search(paragraph):
            last = max(number for number, line in enumerate(lines) if _YEAR.search(line))
            return " ".join(" ".join(lines[: last + 1]).split()).rstrip(":")
    return " ".join(line.strip() for line in inspect.cleandoc(part.__doc__ or "").splitlines() if _PAPER.search(line))


def _needs(slot: str, part: Any) -> Iterator[str]:
    """What a part is given, and, for an objective that can be made without options, what it reads."""
    if slot != "objectives":
        from .resolve import HANDED  # with all of torch, which a list of parts does without

        handed = [name for name in inspect.signature(part).parameters if name in _handed(part) & HANDED.get(slot, frozenset())]
        yield from [f"{', '.join(handed)}: given by limbeck"] if handed else []
        return
    if any(option.required for option in lookup.options(part).values()):
        yield "what its options name"
        return
    try:
        made = part()
    except RecipeError:  # one or another option must say what to match
        yield "what its options name"
        return
    if made.undecided:
        yield "the layers that `layers` names, of student and teacher; auto chooses them"
        return
    for side, reads in (("student", made.needs.student), ("teacher", made.needs.teacher)):
        if reads is not None:
            read = [f"output {one}" for one in sorted(reads.outputs)] + [f"feature {one}" for one in sorted(reads.features)]
            read += ["gradient of the loss by the input"] if reads.input_gradient else []
            yield f"the {side}'s {', '.join(read)}"
    if made.needs.labels:
        yield "labels"
    if made.needs.ids:
        yield "ids"


def _shown_default(value: Any) -> str:
    return pydantic_core.to_json(value, fallback=repr).decode()


class _Generator(GenerateJsonSchema):
    """A type without a JSON form (in a part of another package) admits anything."""

    def handle_invalid_for_json_schema(self, schema: Any, error_info: str) -> JsonSchemaValue:
        return {}


def schema() -> dict[str, Any]:
    """Return the JSON Schema of a recipe (draft 2020-12): stages by `kind`, and for each part its own options.

    What only the whole recipe can tell (stages that are named, numbers that must agree, data that are there) is left to `limbeck check`.
    """
    found = {(slot, name): lookup.find(slot, name) for slot in lookup.SLOTS for name in lookup.names(slot)}
    options = {key: lookup.option_model(part, _handed(part)) for key, part in found.items()}
    every: list[type[BaseModel]] = [Recipe, *_PARTS, *dict.fromkeys(model for model, _ in _PLACES), *options.values()]
    generated, whole = models_json_schema([(model, "validation") for model in every], schema_generator=_Generator)
    known: dict[str, Any] = whole["$defs"]

    def name_of(model: type[BaseModel]) -> str:
        return generated[model, "validation"]["$ref"].rpartition("/")[2]

    untyped = {f"#/$defs/{name_of(model)}" for model in _PARTS}
    for (model, field), slot in _PLACES.items():
        properties = known[name_of(model)]["properties"]
        properties[field] = _placed(properties[field], slot, untyped)
    slots: dict[str, Any] = {}
    for slot in lookup.SLOTS:
        beside = known[name_of(_BESIDE[slot])] if slot in _BESIDE else {}
        cases = [_case(slot, name, known[name_of(options[slot, name])], found[slot, name], beside) for name in lookup.names(slot)]
        slots[slot] = {"oneOf": [*cases, *(_shortened(case) for case in cases if (slot, case["title"]) == ("models", "hf")), _users_own(beside)]}
    tasks = [case["properties"] for case in slots["tasks"]["oneOf"][:-1]]
    for stage in (TrainStage, DistillStage, GivenStage):
        known[name_of(stage)]["properties"]["task"]["properties"] = _any_of(tasks)
    top = known[name_of(Recipe)]
    _tagged(known)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **top, "$defs": _reached(top, {**known, **slots})}


def _handed(part: Any) -> frozenset[str]:
    """What assembly gives to a part by position."""
    return frozenset(p.name for p in inspect.signature(part).parameters.values() if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD)


def _case(slot: str, name: str, options: Mapping[str, Any], part: Any, beside: Mapping[str, Any]) -> dict[str, Any]:
    """One part: its kind, what stands beside its options, its options."""
    ways = _spellings(slot, name)
    kind = {"const": name} if len(ways) == 1 else {"enum": ways}
    return {
        "title": name,
        "description": " ".join((inspect.getdoc(part) or "").partition("\n\n")[0].split()),
        "type": "object",
        "properties": {"kind": kind, **_but_kind(beside), **options.get("properties", {})},
        "required": ["kind", *_required(beside), *options.get("required", ())],
        "additionalProperties": bool(options.get("additionalProperties", False)),
    }


def _shortened(case: Mapping[str, Any]) -> dict[str, Any]:
    """A model of transformers by `kind: hf:NAME_OR_PATH`, which says what it is made of."""
    properties = {name: value for name, value in case["properties"].items() if name != "of"} | {"kind": {"type": "string", "pattern": "^hf:."}}
    return {**case, "title": "hf:NAME_OR_PATH", "properties": properties, "required": [name for name in case["required"] if name != "of"]}


def _users_own(beside: Mapping[str, Any]) -> dict[str, Any]:
    """A user's own part, whose options only its own signature knows."""
    kind = {"type": "string", "pattern": _PYTHON}
    return {
        "title": "python:package.module:name",
        "type": "object",
        "properties": {"kind": kind, **_but_kind(beside)},
        "required": ["kind", *_required(beside)],
    }


def _but_kind(beside: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in beside.get("properties", {}).items() if key != "kind"}


def _required(beside: Mapping[str, Any]) -> list[str]:
    return [key for key in beside.get("required", ()) if key != "kind"]


def _any_of(cases: list[dict[str, Any]]) -> dict[str, Any]:
    """The options of several parts under one roof, for where only some are said and the part goes without saying."""
    told: dict[str, list[Any]] = {}
    for name, option in (item for case in cases for item in case.items() if item[0] != "kind"):
        told[name] = [*told.get(name, []), *([] if option in told.get(name, []) else [option])]
    return {name: ways[0] if len(ways) == 1 else {"anyOf": ways} for name, ways in told.items()}


def _spellings(slot: str, name: str) -> list[str]:
    """The ways to write a part's name within its slot: whole, and its last part where no other part has that."""
    short = name.rpartition(".")[2]
    ends = [known for known in lookup.names(slot) if known.rpartition(".")[2] == short]
    return [name] if short == name or len(ends) > 1 else [name, short]


def _placed(field: Any, slot: str, untyped: set[str]) -> Any:
    """Put a slot's parts where a field admits any part; where it also admits a bare name, those of the slot."""
    if isinstance(field, list):
        return [_placed(one, slot, untyped) for one in field]
    if not isinstance(field, dict):
        return field
    if field.get("$ref") in untyped:
        return {**field, "$ref": f"#/$defs/{slot}"}
    if field == {"type": "string"}:
        return {"anyOf": [{"enum": [way for name in lookup.names(slot) for way in _spellings(slot, name)]}, {"type": "string", "pattern": _PYTHON}]}
    return {key: value if key == "default" else _placed(value, slot, untyped) for key, value in field.items()}


def _tagged(known: dict[str, Any]) -> None:
    """Say in JSON Schema's own words what pydantic's `discriminator` means: each case needs its `kind`."""
    unions = [node for node in _nodes(known) if isinstance(node.get("discriminator"), dict) and "propertyName" in node["discriminator"]]
    for mapping in [union["discriminator"]["mapping"] for union in unions]:
        for case in mapping.values():
            model = known[case.rpartition("/")[2]]
            model["required"] = ["kind", *(key for key in model.get("required", ()) if key != "kind")]
    for union in unions:
        union.pop("discriminator", None)  # a union that stands in two places is one object


def _reached(top: Any, known: Mapping[str, Any]) -> dict[str, Any]:
    """The definitions that a schema refers to, and those that they refer to."""
    found: dict[str, Any] = {}
    left = [top]
    while left:
        for name in {str(node["$ref"]).rpartition("/")[2] for node in _nodes(left.pop()) if "$ref" in node} - found.keys():
            found[name] = known[name]
            left.append(known[name])
    return dict(sorted(found.items()))


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    """Every mapping in a schema."""
    if isinstance(tree, dict):
        yield tree
    for inner in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
        yield from _nodes(inner)
