"""Parts, recipes, and the schema of a recipe."""

import copy
import operator
import re
import subprocess
import sys
from typing import Any

import pytest
import yaml

from limbeck.core import lookup
from limbeck.core.errors import RecipeError
from limbeck.pipeline.catalog import PartPage, describe, parts, recipes, schema
from limbeck.pipeline.recipe import builtin, load_recipe

SCHEMA = schema()
NOTES = {"$schema", "$defs", "title", "description", "default"}
LIMITS = {"minimum": operator.ge, "exclusiveMinimum": operator.gt, "maximum": operator.le, "exclusiveMaximum": operator.lt}
TYPES = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None), "integer": int, "number": (int, float)}


def fits(value: Any, rule: dict[str, Any]) -> bool:
    """Validate by JSON Schema: the keywords that the schema uses, each as draft 2020-12 defines it; another one is an error."""
    for word, told in rule.items():
        match word:
            case "$ref":
                ok = fits(value, SCHEMA["$defs"][told.removeprefix("#/$defs/")])
            case "type":
                ok = isinstance(value, TYPES[told]) and not (told in ("integer", "number") and isinstance(value, bool))
            case "const":
                ok = value == told
            case "enum":
                ok = value in told
            case "pattern":
                ok = not isinstance(value, str) or re.search(told, value) is not None
            case "anyOf":
                ok = any(fits(value, one) for one in told)
            case "oneOf":
                ok = sum(fits(value, one) for one in told) == 1
            case "properties":
                ok = not isinstance(value, dict) or all(fits(value[key], one) for key, one in told.items() if key in value)
            case "required":
                ok = not isinstance(value, dict) or all(key in value for key in told)
            case "additionalProperties":
                rest = [item for key, item in value.items() if key not in rule.get("properties", {})] if isinstance(value, dict) else []
                ok = all(fits(item, told) for item in rest) if isinstance(told, dict) else told or not rest
            case "propertyNames":
                ok = not isinstance(value, dict) or all(fits(key, told) for key in value)
            case "minProperties":
                ok = not isinstance(value, dict) or len(value) >= told
            case "items":
                ok = not isinstance(value, list) or all(fits(item, told) for item in value)
            case "prefixItems":
                ok = not isinstance(value, list) or all(fits(item, one) for item, one in zip(value, told, strict=False))
            case "minItems" | "maxItems":
                ok = not isinstance(value, list) or (len(value) >= told if word == "minItems" else len(value) <= told)
            case "minimum" | "exclusiveMinimum" | "maximum" | "exclusiveMaximum":
                ok = not isinstance(value, (int, float)) or LIMITS[word](value, told)
            case _:
                assert word in NOTES, f"the test knows no keyword {word!r}"
                ok = True
        if not ok:
            return False
    return True


def digits() -> dict[str, Any]:
    return yaml.safe_load(builtin()["digits"].read_text())


@pytest.mark.parametrize("name", builtin())
def test_every_built_in_recipe_fits(name):
    tree = yaml.safe_load(builtin()[name].read_text())
    assert fits(tree, SCHEMA)
    assert recipes()[name]


def test_a_recipe_in_full_fits():
    assert fits(yaml.safe_load(load_recipe("digits").as_yaml()), SCHEMA)


CHANGES = {
    "stages.student.objectives.0.temprature": 3,
    "stages.student.objectives.0.temperature": "hot",
    "stages.student.objectives.0.kind": "response.kx",
    "stages.student.objectives.0.weight": "heavy",
    "stages.student.objectives": [],
    "stages.student.teacher.of": 3,
    "stages.student.teacher.kind": "frosen",
    "stages.student.kind": "distil",
    "stages.student.epochs": 0,
    "stages.student.optimizer.kind": "adm",
    "stages.teacher.model.width": "wide",
    "stages.teacher.model.kind": "onnx",
    "stages.teacher.init": 3,
    "stages.int8.method": "static_int9",
    "stages.shipped.format": {"kind": "onxx"},
    "stages.teacher.task": {"augment": [{"kind": "shfit"}]},
    "task.dat": "digits",
    "task.data": "digitz",
    "task.augment": [{"kind": "shfit", "pixels": 1}],
    "stages": {},
    "seed": -1,
    "sede": 1,
}


@pytest.mark.parametrize(("path", "value"), CHANGES.items())
def test_what_a_recipe_may_not_say_does_not_fit(path, value):
    assert not fits(changed(path, value), SCHEMA)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("stages.student.objectives.0.kind", "kd"),
        ("stages.student.objectives.0.temperature", {"kind": "linear", "start": 4.0, "end": 1.0}),
        ("stages.student.objectives.0.weight", {"kind": "decay", "every": 2}),
        ("stages.student.objectives.1", {"kind": "python:mine.losses:Mine", "weight": 0.5, "whatever": [1]}),
        ("stages.student.teacher", {"kind": "ensemble", "of": ["teacher", "alone"], "average": "logits"}),
        ("stages.teacher.model", {"kind": "python:mine:net", "depth": 3}),
        ("stages.int8.method", {"kind": "static_int8", "calibration": "percentile"}),
        ("stages.int8.method", "quantize.static_int8"),
        ("task.root", "${LIMBECK_DATA}"),
        ("stages.teacher.task", {"augment": [{"kind": "flip"}]}),
        ("runtime", {"devices": 2}),
    ],
)
def test_what_a_recipe_may_say_fits(path, value):
    assert fits(changed(path, value), SCHEMA)


@pytest.mark.parametrize("path", ["task", "stages", "name", "stages.student.teacher", "stages.student.kind", "stages.int8.of"])
def test_what_a_recipe_must_say_is_required(path):
    tree = digits()
    *where, last = path.split(".")
    del reach(tree, where)[last]
    assert not fits(tree, SCHEMA)


def reach(tree: Any, keys: list[str]) -> Any:
    for key in keys:
        tree = tree[int(key)] if isinstance(tree, list) else tree.setdefault(key, {})
    return tree


def changed(path: str, value: Any) -> dict[str, Any]:
    tree = copy.deepcopy(digits())
    *where, last = path.split(".")
    holder = reach(tree, where)
    holder[int(last) if isinstance(holder, list) else last] = value
    return tree


def test_every_part_is_in_the_schema_with_all_its_options():
    for slot in lookup.SLOTS:
        cases = {case["title"]: case for case in SCHEMA["$defs"][slot]["oneOf"]}
        assert set(cases) == {*lookup.names(slot), "python:package.module:name", *(["hf:NAME_OR_PATH"] if slot == "models" else [])}
        for name in lookup.names(slot):
            known = lookup.options(lookup.find(slot, name))
            assert set(known) <= set(cases[name]["properties"])
            for option in known.values():
                assert (option.name in cases[name]["required"]) == option.required
                assert cases[name]["properties"][option.name].get("description", "") == option.doc


def test_every_reference_in_the_schema_leads_somewhere():
    refs = set(re.findall(r"'#/\$defs/([^']*)'", repr(SCHEMA)))
    assert refs == set(SCHEMA["$defs"])
    assert "'discriminator':" not in repr(SCHEMA)
    assert not {"Part", "ObjectiveSpec", "TeacherSpec"} & refs  # every place of the recipe that takes a part knows which


def test_parts_are_listed_without_being_imported():
    code = (
        "import sys\nfrom limbeck.pipeline import catalog\nfound = catalog.parts()\n"
        "slots = tuple(f'limbeck.{slot}' for slot in catalog.lookup.SLOTS)\n"
        "print(len(found), [name for name in sys.modules if name.startswith(slots)])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"{sum(len(lookup.names(slot)) for slot in lookup.SLOTS)} []\n"


def test_every_part_has_a_sentence_and_a_page():
    for entry in parts():
        assert entry.doc.endswith("."), entry
        page = describe(f"{entry.slot}.{entry.name}")
        assert isinstance(page, PartPage)
        assert (page.slot, page.name) == (entry.slot, entry.name)
        assert page.doc
        assert all(option.doc and option.type for option in page.options), page


def test_a_page_tells_paper_options_and_needs():
    page = describe("kd")
    assert isinstance(page, PartPage)
    assert page.paper == 'Hinton et al., "Distilling the Knowledge in a Neural Network", 2015, arXiv:1503.02531, sec. 2.'
    assert page.needs == ("the student's output main", "the teacher's output main")
    assert [(option.name, option.default, option.required) for option in page.options] == [("temperature", "4.0", False)]
    supervised = describe("supervised")
    assert isinstance(supervised, PartPage)
    assert "labels" in supervised.needs
    fitnet = describe("feature.fitnet")
    assert isinstance(fitnet, PartPage)
    assert fitnet.needs == ("the layers that `layers` names, of student and teacher; auto chooses them",)
    assert fitnet.options[0].default == '"auto"'


@pytest.mark.parametrize(
    ("name", "needs"),
    [
        ("teachers.frozen", ("model: given by limbeck",)),
        ("teachers.ema", ("student: given by limbeck",)),
        ("teachers.blackbox", ()),  # `call` is for Python alone
        ("teachers.peer", ()),
        ("tasks.classify", ()),
        ("tasks.image", ()),
        ("transfer.paired", ("partner: given by limbeck",)),
        ("models.mlp", ("in_shape, classes: given by limbeck",)),
    ],
)
def test_a_page_tells_what_limbeck_gives_and_not_what_python_may(name, needs):
    page = describe(name)
    assert isinstance(page, PartPage) and page.needs == needs


def test_what_follows_a_citation_is_left_out():
    page = describe("static_int8")
    assert isinstance(page, PartPage)
    assert page.paper.startswith("Jacob et al.")
    assert page.paper.endswith("arXiv:1712.05877, eq. 1")


def test_a_recipe_by_name_is_its_file():
    assert describe("digits") == builtin()["digits"].read_text()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("response.kdd", "did you mean 'response.kd'?"),
        ("objectives.response.kx", "did you mean 'response.kd'?"),
        ("digit", "did you mean 'digits'?"),
        ("models.", "no part and no recipe 'models.'"),
        ("zzzzzz", "choices are"),
    ],
)
def test_a_name_that_nothing_has(name, said):
    with pytest.raises(RecipeError, match=re.escape(said)):
        describe(name)


def test_a_name_that_several_have(monkeypatch):
    several = {"objectives": ("a.same",), "tasks": ("b.same",)}
    monkeypatch.setattr(lookup, "names", lambda slot: several.get(slot, ()))
    with pytest.raises(RecipeError, match=re.escape("'same' could be objectives.a.same or tasks.b.same: write it whole")):
        describe("same")
