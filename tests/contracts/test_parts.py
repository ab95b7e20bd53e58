"""Every part of every slot: how it is documented, and how long its file may be."""

import inspect
import re
from pathlib import Path

import pytest

from limbeck.core.lookup import SLOTS, find, names, options

PARTS = [(slot, kind) for slot in SLOTS for kind in names(slot)]
PAPER = re.compile(r"arXiv:\d{4}\.\d{4,5}|\b[A-Z][\w&-]+ (19|20)\d\d\b")
every = pytest.mark.parametrize(("slot", "kind"), PARTS, ids=[f"{slot}.{kind}" for slot, kind in PARTS])


def test_the_slots_are_not_empty_by_mistake() -> None:
    assert {"objectives", "models"} <= {slot for slot, _ in PARTS}


@every
def test_its_docstring_begins_with_one_sentence(slot: str, kind: str) -> None:
    part = find(slot, kind)
    first = inspect.cleandoc(part.__doc__ or "").partition("\n")[0]
    assert first.endswith("."), f"the first line of {part.__name__}'s docstring must be a whole sentence: {first!r}"
    module = inspect.getmodule(part)
    assert module is not None
    assert (module.__doc__ or "").strip(), f"{module.__name__} needs a docstring"


@every
def test_every_option_is_documented_and_every_documented_name_is_an_option(slot: str, kind: str) -> None:
    part = find(slot, kind)
    found = options(part)
    assert [name for name, option in found.items() if not option.doc] == []
    section = re.search(r"^Args:\n((?:    .*\n?|\n)*)", inspect.cleandoc(part.__doc__ or ""), re.MULTILINE)
    told = set(re.findall(r"^    (\w+): ", section[1], re.MULTILINE)) if section else set()
    assert told <= set(inspect.signature(part).parameters), f"{part.__name__}'s Args: names what it does not take"


@pytest.mark.parametrize("kind", names("objectives"))
def test_an_objective_names_its_paper(kind: str) -> None:
    part = find("objectives", kind)
    module = inspect.getmodule(part)
    assert module is not None
    assert PAPER.search(f"{module.__doc__}\n{part.__doc__}"), f"{module.__name__} cites no paper: arXiv:0000.00000, or a venue and its year"


@every
def test_its_file_is_short(slot: str, kind: str) -> None:
    file = Path(inspect.getfile(find(slot, kind)))
    assert len(file.read_text().splitlines()) <= 400, f"{file.name} is longer than 400 lines: one method, one short file"
