"""What there is to choose from: parts, recipes, and the JSON Schema of a recipe."""

import ast
import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pydantic_core
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue, models_json_schema

from ..core import lookup
from ..core.errors import RecipeError, did_you_mean
from ..core.lookup import wanted
from ..core.objective import Objective
from .recipe import Recipe, builtin

__all__ = ["Entry", "OptionLine", "PartPage", "describe", "parts", "recipes", "schema"]

_PLACES = {
    ("Recipe", "task"): "tasks", ("TrainStage", "model"): "models", ("TrainStage", "objectives"): "objectives", ("TrainStage", "transfer"): "transfer",
    ("TrainStage", "scheme"): "schemes", ("DistillStage", "teacher"): "teachers", ("ExportStage", "format"): "export", ("QuantizeStage", "method"): "compress",
}  # fmt: skip
"""(model, field) of a recipe that holds a part -> the part's slot; a distill stage has the fields of a train stage."""
_BESIDE = {"objectives": "ObjectiveSpec", "teachers": "TeacherSpec"}
"""Slot -> the recipe's model whose fields stand beside a part's own options."""
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
    """Where a part comes from: the first paragraph of its file that cites, or the citing lines of its class."""
    module = inspect.getmodule(part)
    paragraphs = inspect.cleandoc((module.__doc__ if module else None) or "").split("\n\n")
    cited = [paragraph for paragraph in paragraphs if _PAPER.search(paragraph)][:1]
    lines = cited or [line for line in inspect.cleandoc(part.__doc__ or "").splitlines() if _PAPER.search(line)]
    return " ".join(" ".join(lines).split())


def _needs(slot: str, part: Any) -> Iterator[str]:
    """What a part is given, and, for an objective that can be made without options, what it reads."""
    handed = [p.name for p in inspect.signature(part).parameters.values() if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    if slot != "objectives":
        yield from ([f"{', '.join(handed)} (given by limbeck)"] if handed and slot != "tasks" else [])
        return
    if any(option.required for option in lookup.options(part).values()):
        yield "what its options name"
        return
    made = part()
    assert isinstance(made, Objective)
    for side, reads in (("student", made.needs.student), ("teacher", made.needs.teacher)):
        if reads is not None:
            read = [f"output {one}" for one in sorted(reads.outputs)] + [f"feature {one}" for one in sorted(reads.features)]
            yield f"the {side}'s {', '.join(read)}"
    if made.needs.labels:
        yield "labels"


def _shown_default(value: Any) -> str:
    return pydantic_core.to_json(value, fallback=repr).decode()


class _Generator(GenerateJsonSchema):
    """A type without a JSON form (in a part of another package) admits anything."""

    def handle_invalid_for_json_schema(self, schema: Any, error_info: str) -> JsonSchemaValue:
        return {}


def schema() -> dict[str, Any]:
    """Return the JSON Schema of a recipe (draft 2020-12): stages by `kind`, and for each part its own options.

    Every built-in recipe and whatever it admits in an editor's eyes is also admitted by `load_recipe`, but for what only the whole recipe can tell
    (stages that are named, data that are there).
    """
    found = {(slot, name): lookup.find(slot, name) for slot in lookup.SLOTS for name in lookup.names(slot)}
    models = {key: lookup.option_model(part) for key, part in found.items()}
    generated, whole = models_json_schema([(Recipe, "validation"), *((model, "validation") for model in models.values())], schema_generator=_Generator)
    definitions = whole["$defs"]

    def resolved(model: Any) -> dict[str, Any]:
        return definitions[generated[(model, "validation")]["$ref"].rpartition("/")[2]]

    own = {key: resolved(model) for key, model in models.items()}
    for slot in lookup.SLOTS:
        beside = definitions[_BESIDE[slot]] if slot in _BESIDE else {}
        cases = [_case(slot, name, own[slot, name], inspect.getdoc(found[slot, name]) or "", beside) for name in lookup.names(slot)]
        definitions[slot] = {"oneOf": [*cases, _python(beside)]}
    _place(definitions)
    top = definitions.pop("Recipe")
    unused = [definitions.popitem for _ in ()]
    del unused
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "a recipe of limbeck", **top, "$defs": _reached(top, definitions)}


def _case(slot: str, name: str, options: Mapping[str, Any], doc: str, beside: Mapping[str, Any]) -> dict[str, Any]:
    """One part: its kind, its options, and what stands beside them."""
    fields = {**{key: value for key, value in beside.get("properties", {}).items() if key != "kind"}, **options.get("properties", {})}
    required = ["kind", *(key for key in beside.get("required", ()) if key != "kind"), *options.get("required", ())]
    ways = _spellings(slot, name)
    kind = {"const": name} if len(ways) == 1 else {"enum": ways}
    described = " ".join(doc.partition("\n\n")[0].split())
    return {"title": name, "description": described, "type": "object", "properties": {"kind": kind, **fields}, "required": required,
            "additionalProperties": False}  # fmt: skip


def _python(beside: Mapping[str, Any]) -> dict[str, Any]:
    """A user's own part, whose options only its own signature knows."""
    fields = {key: value for key, value in beside.get("properties", {}).items() if key != "kind"}
    kind = {"type": "string", "pattern": r"^python:[\w.]+:\w+$"}
    return {"title": "python:package.module:name", "type": "object", "properties": {"kind": kind, **fields},
            "required": ["kind", *(key for key in beside.get("required", ()) if key != "kind")]}  # fmt: skip


def _spellings(slot: str, name: str) -> list[str]:
    """The ways to write a part's name within its slot: whole, and its last part where no other part has that."""
    short = name.rpartition(".")[2]
    ends = [known for known in lookup.names(slot) if known.rpartition(".")[2] == short]
    return [name] if short == name or len(ends) > 1 or short in lookup.names(slot) else [name, short]
