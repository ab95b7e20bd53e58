"""Finding parts by name, from folders, entry points and `python:`."""

import hashlib
import importlib
import subprocess
import sys
import textwrap
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from limbeck.core import lookup
from limbeck.core.errors import MissingDependency, RecipeError
from limbeck.core.lookup import SLOTS, build, find, full_name, names, options, source_digest

Write = Callable[..., Path]

OBJECTIVE = """
from limbeck.core.knowledge import Needs
from limbeck.core.objective import Objective

class Zero(Objective):
    '''Costs nothing.

    Args:
        scale: how much nothing.
    '''

    def __init__(self, *, scale: float = 1.0):
        super().__init__()
        self.scale = scale

    @property
    def needs(self):
        return Needs()

    def bind(self, student, teacher, task, facts):
        pass

    def forward(self, student, teacher, batch):
        return student.main.logits.sum(-1) * 0
"""


def forget() -> None:
    importlib.invalidate_caches()
    for cached in (lookup._providers, lookup.find, lookup.options, lookup.option_model):
        cached.cache_clear()


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Write a module into a folder on `sys.path`; what was imported from there is forgotten afterwards."""
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)

    def one(name: str, source: str = "") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(source))
        forget()
        return path

    forget()
    yield one
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]
    forget()


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Say which names a slot has."""

    def say(*named: str) -> None:
        monkeypatch.setattr(lookup, "names", lambda _: named)

    yield say
    forget()


def one_line(error: pytest.ExceptionInfo[RecipeError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    assert len(text) < 300
    return text


# Names


@pytest.mark.parametrize("slot", SLOTS)
def test_names_are_those_of_the_files(slot: str):
    root = Path(lookup.__file__).parent.parent / slot
    files = [file.relative_to(root).with_suffix("").as_posix().replace("/", ".") for file in root.rglob("*.py")]
    expected = sorted(name for name in files if not name.startswith("_") and "._" not in name)
    assert sorted(names(slot)) == expected


def test_names_import_neither_parts_nor_torch():
    code = """
        import sys
        from limbeck.core.lookup import SLOTS, full_name, names
        for slot in SLOTS:
            names(slot)
        heavy = {"torch", "numpy", "onnx", "sklearn", "lightning_fabric"} & set(sys.modules)
        parts = [name for name in sys.modules if name.startswith("limbeck.") and not name.startswith("limbeck.core")]
        assert not heavy and not parts, (heavy, parts)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)


def test_each_slot_s_base_exists():
    for where in SLOTS.values():
        module, _, name = where.partition(":")
        assert isinstance(getattr(importlib.import_module(module), name), (type, types.UnionType))


def test_an_unknown_slot_names_the_nearest():
    with pytest.raises(RecipeError, match="no slot 'objective'; did you mean 'objectives'\\?"):
        names("objective")


@pytest.mark.parametrize("kind", ["response.kd", "kd", "objectives.response.kd", "objectives.kd"])
def test_a_name_may_be_short_or_whole(parts: Callable[..., None], kind: str):
    parts("response.kd", "response.dkd", "supervised")
    assert full_name("objectives", kind) == "response.kd"


def test_a_short_name_of_two_parts_is_refused_with_both(parts: Callable[..., None]):
    parts("response.kd", "sequence.kd")
    with pytest.raises(RecipeError, match=r"^'kd' could be objectives\.response\.kd or objectives\.sequence\.kd: write it whole$"):
        full_name("objectives", "kd")
    assert full_name("objectives", "sequence.kd") == "sequence.kd"


def test_a_whole_name_goes_before_short_ones(parts: Callable[..., None]):
    parts("kd", "response.kd")
    assert full_name("objectives", "kd") == "kd"


@pytest.mark.parametrize(
    ("kind", "hint"),
    [
        ("response.kdd", "; did you mean 'response.kd'?"),
        ("suprevised", "; did you mean 'supervised'?"),
        ("logit_machting", "; did you mean 'response.logit_matching'?"),
        ("KD", "; did you mean 'response.kd'?"),
        ("zzz", "; choices are response.kd, response.logit_matching, supervised"),
        ("", "; choices are response.kd, response.logit_matching, supervised"),
    ],
)
def test_an_unknown_part_names_the_nearest(parts: Callable[..., None], kind: str, hint: str):
    parts("supervised", "response.kd", "response.logit_matching")
    with pytest.raises(RecipeError) as caught:
        full_name("objectives", kind)
    assert one_line(caught) == f"no part {kind!r} among objectives{hint}"


# Parts of a user's own


def test_a_function_of_a_user_s_own(write: Write):
    write(
        "mine.py",
        """
        from torch import nn
        def make(in_shape, classes, *, width: int = 4):
            return nn.Linear(in_shape[0] * width, classes)
        """,
    )
    made = build("models", "python:mine:make", {"width": 3}, in_shape=(2,), classes=5, class_names=("a",))
    assert (made.in_features, made.out_features) == (6, 5)


def test_a_class_of_a_user_s_own_in_a_package(write: Write):
    write("pack/__init__.py")
    write("pack/deep/zero.py", OBJECTIVE)
    made = build("objectives", "python:pack.deep.zero:Zero", {"scale": 2})
    assert made.scale == 2.0
    assert find("objectives", "python:pack.deep.zero:Zero") is type(made)


@pytest.mark.parametrize(
    "kind", ["python:", "python:mine", "python:mine:", "python::make", "python:.mine:make", "python:mine.py:a.b", "python:a/mine.py:make", "python:mi ne:x"]
)
def test_a_part_of_a_user_s_own_must_be_written_right(write: Write, kind: str):
    write("mine.py", "make = 1")
    for ask in (lambda: find("models", kind), lambda: source_digest(kind)):
        with pytest.raises(RecipeError) as caught:
            ask()
        assert one_line(caught) == f"{kind!r} must read python:package.module:name"


@pytest.mark.parametrize("kind", ["python:nowhere:make", "python:nowhere.deep:make", "python:mine.deep:make", "python:pack.nowhere:make"])
def test_a_module_that_is_not_there_is_named(write: Write, kind: str):
    write("mine.py")
    write("pack/__init__.py")
    module = kind.split(":")[1]
    for ask in (lambda: find("models", kind), lambda: source_digest(kind)):
        with pytest.raises(RecipeError) as caught:
            ask()
        assert one_line(caught) == f"{kind}: there is no module {module!r}; it must be importable from the current folder or installed"


def test_a_name_that_the_module_has_not_is_told_with_the_nearest(write: Write):
    write("mine.py", "def make_net(): ...\n_make_nut = 1")
    with pytest.raises(RecipeError) as caught:
        find("models", "python:mine:make_nut")
    assert one_line(caught) == "python:mine:make_nut: mine has no 'make_nut'; did you mean 'make_net'?"


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("import not_installed_at_all", "mine imports 'not_installed_at_all', which is not installed"),
        ("from json import nothing", "mine cannot be imported: cannot import name 'nothing' from 'json'"),
        ("def make(:\n  pass", "mine cannot be imported: invalid syntax (mine.py, line 1)"),
    ],
)
def test_a_module_that_cannot_be_imported_is_told(write: Write, source: str, told: str):
    write("mine.py", source)
    with pytest.raises(RecipeError) as caught:
        find("models", "python:mine:make")
    assert one_line(caught).startswith(f"python:mine:make: {told}")


def test_a_missing_library_keeps_its_pip_line(write: Write):
    write("mine.py", 'from limbeck.core.errors import MissingDependency\nraise MissingDependency("timm", "timm", "this model")')
    with pytest.raises(MissingDependency, match='pip install "limbeck\\[timm\\]"'):
        find("models", "python:mine:make")


def test_what_can_make_nothing_is_refused(write: Write):
    write("mine.py", "make = 3")
    with pytest.raises(RecipeError) as caught:
        find("models", "python:mine:make")
    assert one_line(caught) == "python:mine:make is 3; it must be a class or a function"


def test_what_is_no_part_of_its_slot_is_refused(write: Write):
    write("mine.py", "def make():\n    return 3")
    with pytest.raises(RecipeError) as caught:
        build("models", "python:mine:make", {})
    assert one_line(caught) == "python:mine:make gives a int; a part of models must be a torch.nn.Module"
    with pytest.raises(RecipeError, match=r"a part of objectives must be a limbeck.core.objective.Objective"):
        build("objectives", "python:torch.nn:Identity", {})


# Plug-ins


def plug(write: Write, package: str, entry: str) -> None:
    write(f"{package}-1.0.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    write(f"{package}-1.0.dist-info/entry_points.txt", f"[limbeck.objectives]\n{entry}\n")


@pytest.mark.parametrize("where", ["plugged.zero", "plugged.zero:Zero"])
def test_a_plug_in_by_entry_point(write: Write, where: str):
    write("plugged/__init__.py")
    write("plugged/zero.py", OBJECTIVE)
    plug(write, "plugged", f"response.zero = {where}")
    assert "response.zero" in names("objectives")
    assert "plugged" not in sys.modules
    assert build("objectives", "zero", {"scale": 3}).scale == 3
    assert dict(options(find("objectives", "zero")))["scale"].doc == "how much nothing."
    with pytest.raises(RecipeError, match=r"^no option 'scael' for objectives\.response\.zero; did you mean 'scale'\?$"):
        build("objectives", "zero", {"scael": 3})


def test_two_providers_of_one_name_are_both_named(write: Write):
    plug(write, "first", "response.zero = first.zero")
    plug(write, "second", "response.zero = second.zero")
    with pytest.raises(RecipeError) as caught:
        names("objectives")
    text = one_line(caught)
    assert text.startswith("two providers of objectives.response.zero: ")
    assert "first.zero" in text
    assert "second.zero" in text


def test_a_plug_in_may_not_take_the_name_of_a_part_of_ours(write: Write):
    ours = names("objectives")[0]
    plug(write, "thief", f"{ours} = thief.kd")
    with pytest.raises(RecipeError, match=f"two providers of objectives.{ours}: limbeck.objectives.{ours} and thief.kd; uninstall one"):
        names("objectives")


def test_a_plug_in_whose_module_is_gone_is_told(write: Write):
    plug(write, "gone", "response.zero = gone.zero")
    with pytest.raises(RecipeError, match=r"objectives\.response\.zero: there is no module 'gone\.zero'"):
        find("objectives", "zero")


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("", "none"),
        ("from limbeck.core.objective import Objective", "none"),
        (OBJECTIVE + "class Other(Zero): ...", "Zero, Other"),
        (OBJECTIVE.replace("class Zero", "class _Zero"), "none"),
        ("from limbeck.core.objective import Objective\nclass Half(Objective): ...", "none"),
    ],
)
def test_a_module_must_define_one_part(write: Write, source: str, told: str):
    write("plugged.py", source)
    plug(write, "plugged", "response.zero = plugged")
    with pytest.raises(RecipeError, match=f"plugged must define exactly one public Objective; it defines {told}$"):
        find("objectives", "zero")


def test_what_is_imported_or_hidden_is_no_second_part(write: Write):
    write("base.py", OBJECTIVE)
    write("plugged.py", "from base import Zero\nclass Mine(Zero): ...\nclass _Hidden(Zero): ...")
    plug(write, "plugged", "response.mine = plugged")
    assert find("objectives", "mine").__name__ == "Mine"


# What assembly hands over


def test_only_what_the_signature_names_is_handed_over(write: Write):
    write(
        "mine.py",
        """
        from torch import nn
        class Net(nn.Module):
            def __init__(self, in_shape, *, classes: int, width: int = 2):
                super().__init__()
                self.told = in_shape, classes, width
        def open_ended(**more):
            net = nn.Identity()
            net.told = more
            return net
        """,
    )
    facts = {"in_shape": (1, 8, 8), "classes": 10, "class_names": ("a",)}
    assert build("models", "python:mine:Net", {}, **facts).told == ((1, 8, 8), 10, 2)
    assert build("models", "python:mine:Net", {"classes": 3}, **facts).told == ((1, 8, 8), 3, 2), "a recipe has the last word"
    assert build("models", "python:mine:open_ended", {"depth": 3}, **facts).told == {"depth": 3}
    with pytest.raises(RecipeError, match="python:mine:Net needs the option 'in_shape': anything"):
        build("models", "python:mine:Net", {}, classes=10)


def test_what_is_handed_over_by_place_is_no_option(write: Write):
    write("mine.py", "from torch import nn\ndef wrap(model, depth: int = 1):\n    return nn.Sequential(*[model] * depth)")
    inner = nn.Linear(1, 1)
    assert build("models", "python:mine:wrap", {"depth": 2}, inner)[0] is inner
    with pytest.raises(RecipeError, match=r"^option 'model' of python:mine:wrap is filled by limbeck itself: leave it out$"):
        build("models", "python:mine:wrap", {"model": 3}, inner)


def test_a_library_s_own_class_can_be_named():
    made = build("models", "python:torch.nn:Linear", {"in_features": 2, "out_features": 3}, in_shape=(2,), classes=3)
    assert made.weight.shape == (3, 2)
    assert made(torch.zeros(1, 2)).shape == (1, 3)


# The digest of a source


def test_the_digest_follows_the_file_and_nothing_is_imported(write: Write):
    write("pack/__init__.py", "raise RuntimeError('imported too')")
    file = write("pack/mine.py", "raise RuntimeError('imported')")
    first = source_digest("python:pack.mine:make")
    assert source_digest("python:pack.mine:other") == first
    assert source_digest("python:pack:make") != first, "the package's own file"
    file.write_text("raise RuntimeError('imported') # changed")
    assert source_digest("python:pack.mine:make") != first
    assert not {"pack", "pack.mine"} & set(sys.modules)


def test_the_digest_of_a_file_in_folders_that_are_no_packages(write: Write):
    file = write("space/deep/mine.py", "make = 1")
    assert source_digest("python:space.deep.mine:make") == hashlib.sha256(file.read_bytes()).hexdigest()
    assert "space" not in sys.modules


def test_the_digest_of_a_module_that_was_imported_is_that_of_its_file(write: Write):
    file = write("mine.py", "make = print")
    find("models", "python:mine:make")
    assert source_digest("python:mine:make") == hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.mark.parametrize("module", ["__main__", "builtins"])
def test_a_module_without_a_file_is_refused(module: str):
    with pytest.raises(RecipeError, match=f"there is no module '{module}'"):
        source_digest(f"python:{module}:make")


def test_a_part_of_limbeck_has_no_digest_of_its_own():
    assert source_digest("response.kd") == ""
