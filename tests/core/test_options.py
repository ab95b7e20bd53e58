"""Options of a part: read from its signature, checked, and complained about in one line."""

import functools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pydantic
import pytest
import torch
from torch import nn

from limbeck.core._complaint import shown, wanted
from limbeck.core.errors import RecipeError
from limbeck.core.lookup import check_options, option_model, options
from limbeck.core.schedule import Cosine, Linear, Number

if TYPE_CHECKING:
    from fractions import Fraction


class Ours(nn.Module):
    """A part like those that come with limbeck.

    The formula: a colon here, and Args: there, mean nothing.

    Args:
        temperature: how soft; a schedule
            may move it.
        way (str): one of two.
        empty:
            what stands on the next line.
        positional: never shown.

    Example: of something else.
        weight: not an option.
    """

    __module__ = "limbeck.objectives.toy"

    def __init__(
        self,
        model: "Fraction | None" = None,  # known to type checkers only, and no option
        /,
        positional: int = 1,
        *,
        needed: int,
        temperature: Number = 4.0,
        way: Literal["cosine", "linear"] = "linear",
        empty: "str | None" = None,
        _hidden: int = 3,
    ) -> None:
        super().__init__()


NOTHING: list[Any] = []
NO_TABLE: dict[str, float] = {}
RAMP = Linear()


def theirs(in_shape, classes: int, *, width: "int" = 4): ...


def every(
    *,
    t: Number = 4.0,
    way: Literal["linear", "cosine"] = "linear",
    n: int = 3,
    ns: list[int] = NOTHING,
    pair: tuple[int, int] = (1, 2),
    table: dict[str, float] = NO_TABLE,
    s: str | None = None,
    b: bool = False,
    above: Annotated[float, pydantic.Field(gt=0)] = 1,
    ts: list[Number] = NOTHING,
    path: Path = Path(),
    auto: float | Literal["auto"] = "auto",
    auto_or_not: float | Literal["auto", False] = False,
    tensor: torch.Tensor | None = None,
    schedule: Linear = RAMP,
    whatever: Any = None,
    bare=3,
): ...


def test_options_of_ours_are_the_keyword_only_ones():
    known = options(Ours)
    assert list(known) == ["needed", "temperature", "way", "empty"]
    assert known["needed"].required
    assert not known["way"].required
    assert known["way"].default == "linear"
    assert known["empty"].type == str | None


def test_options_of_theirs_are_all_that_have_a_name():
    assert list(options(theirs)) == ["in_shape", "classes", "width"]
    assert options(theirs)["in_shape"].type is Any
    assert options(theirs)["width"].type is int


def test_docs_come_from_args():
    docs = {name: option.doc for name, option in options(Ours).items()}
    assert docs == {"needed": "", "temperature": "how soft; a schedule may move it.", "way": "one of two.", "empty": "what stands on the next line."}


def test_docs_of_no_docstring_are_empty():
    assert options(theirs)["width"].doc == ""


def test_options_are_read_once_and_cannot_be_changed():
    assert options(Ours) is options(Ours)
    assert option_model(Ours) is option_model(Ours)
    with pytest.raises(TypeError):
        options(Ours)["more"] = options(Ours)["way"]  # pyright: ignore[reportIndexIssue]


def test_a_class_that_says_nothing_has_no_options():
    class Plain(nn.Module): ...

    assert dict(options(Plain)) == {}
    with pytest.raises(RecipeError, match=r"^no option 'width' for x; it has none$"):
        check_options(Plain, {"width": 3}, "x")


def test_a_decorated_function_and_a_partial_have_options():
    @functools.wraps(theirs)
    def wrapped(*args, **kwargs): ...

    assert list(options(wrapped)) == ["in_shape", "classes", "width"]
    assert check_options(functools.partial(theirs, 1, 2), {"width": 3}, "x") == {"width": 3}


def test_a_type_that_is_known_to_checkers_only_is_refused_for_an_option():
    def hidden(*, ratio: "Fraction | None" = None): ...

    with pytest.raises(RecipeError, match=r"the type of option 'ratio' of .* cannot be read \(name 'Fraction' is not defined\): import it at run time"):
        options(hidden)


def test_what_has_no_signature_is_refused():
    with pytest.raises(RecipeError, match="has no signature to read options from: name a Python class or function"):
        options(torch.relu)


def test_options_in_full():
    chosen = check_options(Ours, {"needed": 1, "temperature": {"kind": "cosine", "start": 4}}, "x")
    assert chosen == {"needed": 1, "temperature": Cosine(start=4), "way": "linear", "empty": None}
    assert check_options(every, {}, "x")["tensor"] is None


@pytest.mark.parametrize(
    ("values", "kept"),
    [
        ({"t": 2}, 2.0),
        ({"t": "1e-3"}, 0.001),  # what YAML 1.1 reads as text
        ({"t": Linear(start=1, end=4)}, Linear(start=1, end=4)),
        ({"t": {"kind": "linear", "start": 1, "end": 4}}, Linear(start=1, end=4)),
        ({"pair": [3, 4]}, (3, 4)),
        ({"n": 3.0}, 3),
        ({"path": "a/b"}, Path("a/b")),
        ({"b": True}, True),
        ({"auto": "auto"}, "auto"),
        ({"auto_or_not": False}, False),
        ({"whatever": True}, True),
        ({"bare": True}, True),
        ({"bare": [1]}, [1]),
    ],
)
def test_what_a_recipe_may_write(values: dict[str, Any], kept: object):
    (name,) = values
    found = check_options(every, values, "x")[name]
    assert found == kept
    assert type(found) is type(kept)


SCHEDULE = "a mapping with kind: linear | cosine | decay"


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"temprature": 1}, "no option 'temprature' for objectives.response.kd; choices are"),
        ({"autoo": 1}, "no option 'autoo' for objectives.response.kd; did you mean 'auto'?"),
        ({"T": 1}, "no option 'T' for objectives.response.kd; did you mean 't'?"),
        ({3: 1}, "no option 3 for objectives.response.kd; choices are"),
        ({True: 1}, "no option True for objectives.response.kd; choices are"),
        ({None: 1}, "no option None for objectives.response.kd; choices are"),
        ({"t": "hot"}, f"option 't' of objectives.response.kd must be a number or {SCHEDULE}, not 'hot'"),
        ({"t": None}, f"option 't' of objectives.response.kd must be a number or {SCHEDULE}, not None"),
        ({"t": True}, f"option 't' of objectives.response.kd must be a number or {SCHEDULE}, not True"),
        ({"t": [1]}, f"option 't' of objectives.response.kd must be a number or {SCHEDULE}, not [1]"),
        ({"t": {"kind": "linera"}}, "option 't' of objectives.response.kd has no kind 'linera'; did you mean 'linear'?"),
        ({"t": {"kind": "zzz"}}, "option 't' of objectives.response.kd has no kind 'zzz'; choices are cosine, decay, linear"),
        ({"t": {"kind": 3}}, "option 't' of objectives.response.kd has no kind '3'; choices are cosine, decay, linear"),
        ({"t": {"start": 1}}, "option 't' of objectives.response.kd needs a kind; choices are cosine, decay, linear; given is {'start': 1}"),
        ({"t": {}}, "option 't' of objectives.response.kd needs a kind; choices are cosine, decay, linear; given is {}"),
        ({"t": {"kind": "linear", "strat": 1}}, "option 't' of objectives.response.kd has no key 'strat'; did you mean 'start'?"),
        ({"t": {"kind": "decay", "end": 1}}, "option 't' of objectives.response.kd has no key 'end'; choices are every, factor, kind, start"),
        ({"t": {"kind": "linear", "start": "x"}}, "option 't.start' of objectives.response.kd should be a valid number"),
        ({"t": {"kind": "linear", "epochs": -1}}, "option 't.epochs' of objectives.response.kd should be greater than 0; given is -1"),
        ({"schedule": 3}, "option 'schedule' of objectives.response.kd must be a mapping with kind: linear, not 3"),
        ({"schedule": {"strat": 3}}, "option 'schedule' of objectives.response.kd has no key 'strat'"),
        ({"way": "lin"}, "option 'way' of objectives.response.kd must be 'linear' or 'cosine', not 'lin'"),
        ({"way": None}, "option 'way' of objectives.response.kd must be 'linear' or 'cosine', not None"),
        ({"auto": "atuo"}, "option 'auto' of objectives.response.kd must be a number or 'auto', not 'atuo'"),
        ({"auto": False}, "option 'auto' of objectives.response.kd must be a number or 'auto', not False"),
        ({"n": 3.5}, "option 'n' of objectives.response.kd must be a whole number, not 3.5"),
        ({"n": True}, "option 'n' of objectives.response.kd must be a whole number, not True"),
        ({"n": "x"}, "option 'n' of objectives.response.kd must be a whole number, not 'x'"),
        ({"ns": 3}, "option 'ns' of objectives.response.kd must be a list, not 3"),
        ({"ns": [1, "x"]}, "option 'ns.1' of objectives.response.kd should be a valid integer"),
        ({"pair": [1]}, "option 'pair' of objectives.response.kd lacks '1'; given is [1]"),
        ({"pair": [1, 2, 3]}, "option 'pair' of objectives.response.kd Tuple should have at most 2 items"),
        ({"table": 3}, "option 'table' of objectives.response.kd must be a mapping, not 3"),
        ({"table": {"a": "x"}}, "option 'table.a' of objectives.response.kd should be a valid number"),
        ({"s": 3}, "option 's' of objectives.response.kd must be text or nothing, not 3"),
        ({"s": True}, "option 's' of objectives.response.kd must be text or nothing, not True"),
        ({"b": "maybe"}, "option 'b' of objectives.response.kd must be true or false, not 'maybe'"),
        ({"above": -1}, "option 'above' of objectives.response.kd should be greater than 0; given is -1"),
        ({"above": "a"}, "option 'above' of objectives.response.kd must be a number, not 'a'"),
        ({"ts": [1, {"kind": "x"}]}, "option 'ts.1' of objectives.response.kd should be a valid number; given is {'kind': 'x'}"),
        ({"path": 3}, "option 'path' of objectives.response.kd must be a path, not 3"),
        ({"tensor": "a\nb"}, r"option 'tensor' of objectives.response.kd must be Tensor or nothing, not 'a\nb'"),
        ({"s": torch.zeros(50, 50)}, "option 's' of objectives.response.kd must be text or nothing, not tensor([[0., 0., "),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else "",
)
def test_what_a_recipe_may_not_write(values: dict[str, Any], told: str):
    with pytest.raises(RecipeError) as caught:
        check_options(every, values, "objectives.response.kd")
    text = str(caught.value)
    assert text.startswith(told)
    assert "\n" not in text
    assert len(text) < 300


def test_a_missing_option_is_told_with_its_meaning():
    def part(*, width: int, depth: list[int]):
        """Do.

        Args:
            width: channels of the first layer.
        """

    with pytest.raises(RecipeError, match=r"^models\.net needs the option 'width': channels of the first layer\.$"):
        check_options(part, {"depth": [1]}, "models.net")
    with pytest.raises(RecipeError, match=r"^models\.net needs the option 'depth': a list$"):
        check_options(part, {"width": 1}, "models.net")


def test_what_is_handed_over_is_neither_needed_nor_returned():
    given = frozenset({"in_shape", "classes"})
    assert check_options(theirs, {}, "x", given) == {"width": 4}
    assert check_options(theirs, {"classes": 3}, "x", given) == {"classes": 3, "width": 4}
    with pytest.raises(RecipeError, match="needs the option 'classes'"):
        check_options(theirs, {}, "x", frozenset({"in_shape"}))


def test_a_function_that_takes_anything_gets_anything_and_what_it_names_is_checked():
    def open_ended(*, width: int = 1, **more: Any): ...

    assert check_options(open_ended, {"depth": 3}, "x") == {"width": 1, "depth": 3}
    with pytest.raises(RecipeError, match="option 'width' of x must be a whole number"):
        check_options(open_ended, {"width": "a", "depth": 3}, "x")
    with pytest.raises(RecipeError, match="no option 3 for x"):
        check_options(open_ended, {3: 3}, "x")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("name", ["copy", "json", "schema", "dict", "model_dump", "validate"])
def test_an_option_may_be_called_like_a_method_of_pydantic(name: str):
    part: dict[str, Callable[..., None]] = {}
    exec(f"def part(*, {name}: int = 3): ...", part)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert check_options(part["part"], {name: 4}, "x") == {name: 4}
        assert check_options(part["part"], {}, "x") == {name: 3}


def test_the_model_describes_itself_for_editors():
    schema = option_model(Ours).model_json_schema()
    assert schema["additionalProperties"] is False
    assert schema["required"] == ["needed"]
    assert schema["properties"]["way"]["enum"] == ["cosine", "linear"]
    assert schema["properties"]["temperature"]["description"] == "how soft; a schedule may move it."
    assert set(schema["$defs"]) == {"Linear", "Cosine", "Decay"}


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (float, "a number"),
        (int | None, "a whole number or nothing"),
        (Literal["a", 1, None], "'a' or 1 or None"),
        (list[int] | str, "a list or text"),
        (tuple[int, ...], "a list"),
        (dict[str, int], "a mapping"),
        (Annotated[bool, 3], "true or false"),
        (Number, f"a number or {SCHEDULE}"),
        (torch.Tensor, "Tensor"),
        (Any, "anything"),
    ],
)
def test_types_in_words(kind: Any, said: str):
    assert wanted(kind) == said


def test_values_are_shown_short_and_in_one_line():
    assert shown("a\nb") == r"'a\nb'"
    assert "\n" not in shown(torch.zeros(30, 30))
    assert len(shown("x" * 1000)) == 80
    assert shown("x" * 1000).endswith("...")
