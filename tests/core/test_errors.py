"""The tree of errors, and the nearest choice."""

import pickle

import pytest

from limbeck.core import errors
from limbeck.core.errors import LimbeckError, MissingDependency, StorageError, did_you_mean

KINDS = [kind for kind in (getattr(errors, name) for name in errors.__all__) if isinstance(kind, type)]


def drawn() -> dict[str, str]:
    """Class -> the builtin it also is, as the module's docstring draws the tree."""
    lines = [line[3:].split() for line in (errors.__doc__ or "").splitlines() if line[:1] in "├└"]
    return {words[0]: words[1].strip("()") if words[1].startswith("(") else "" for words in lines if words}


def test_the_docstring_draws_the_whole_tree():
    assert drawn().keys() == {kind.__name__ for kind in KINDS} - {"LimbeckError"}


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind is not LimbeckError], ids=lambda kind: kind.__name__)
def test_each_error_is_ours_and_the_builtin_that_the_tree_says(kind: type):
    assert issubclass(kind, LimbeckError)
    builtin = drawn()[kind.__name__]
    others = {base.__name__ for base in (ValueError, OSError, ImportError) if issubclass(kind, base)}
    assert others == ({builtin} if builtin else set())


def test_exit_codes():
    codes = {kind.__name__: kind.exit_code for kind in KINDS}
    assert {name: code for name, code in codes.items() if code != 2} == {"TrainingError": 1, "ParityError": 1, "Interrupted": 130}


def test_all_is_sorted_and_whole():
    defined = {name for name, value in vars(errors).items() if getattr(value, "__module__", "") == errors.__name__}
    assert sorted(errors.__all__) == errors.__all__
    assert set(errors.__all__) == {name for name in defined if not name.startswith("_")}


def test_missing_dependency_is_the_pip_line():
    error = MissingDependency("tensorboard", "tensorboard", "the TensorBoard log")
    assert str(error) == 'the TensorBoard log needs tensorboard: pip install "limbeck[tensorboard]"'


@pytest.mark.parametrize("error", [MissingDependency("a", "b", "c"), StorageError("full"), errors.Interrupted("saved")], ids=lambda error: type(error).__name__)
def test_an_error_survives_the_way_between_processes(error: LimbeckError):
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is type(error)
    assert str(back) == str(error)


@pytest.mark.parametrize(
    ("name", "choices", "hint"),
    [
        ("temprature", ["temperature", "weight"], "; did you mean 'temperature'?"),
        ("KD", ["kd", "dkd"], "; did you mean 'kd'?"),
        ("kd", ["KD", "alpha"], "; did you mean 'KD'?"),
        ("zzz", ["b", "a"], "; choices are a, b"),
        ("", ["b", "a"], "; choices are a, b"),
        ("zzz", [], ""),
        ("zzz", (c for c in "ab"), "; choices are a, b"),
    ],
)
def test_did_you_mean(name: str, choices: list[str], hint: str):
    assert did_you_mean(name, choices) == hint


def test_did_you_mean_takes_the_nearest_of_several():
    assert did_you_mean("layer4.1.conv", ["layer1.1.conv1", "layer4.1.conv1", "layer4.0.bn1"]) == "; did you mean 'layer4.1.conv1'?"


def test_did_you_mean_does_not_list_hundreds():
    hint = did_you_mean("?", [f"layer{i:03}" for i in range(200)])
    assert hint.startswith("; choices are layer000, layer001, ")
    assert hint.endswith("layer029 and 170 more")
