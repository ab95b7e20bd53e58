"""The public surface: what it is, that all of it is documented, and that the README tells the truth about it."""

import ast
import importlib.metadata
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

import limbeck

ROOT = Path(__file__).parents[1]
SOURCE = Path(limbeck.__file__).parent

PUBLIC = [
    "Aligned",
    "Artifact",
    "BlackBox",
    "CNN",
    "Cached",
    "Classify",
    "Control",
    "DivergenceKD",
    "EMA",
    "Encoder",
    "Ensemble",
    "FitNet",
    "Frozen",
    "GMDHClassifier",
    "GMDHRegressor",
    "GPT",
    "Image",
    "KD",
    "Language",
    "LimbeckError",
    "LogitMatching",
    "MLP",
    "Masked",
    "MiniLLM",
    "MultiLabel",
    "Mutual",
    "ONE",
    "Offline",
    "OnPolicy",
    "Paired",
    "Peer",
    "Regression",
    "ResNet",
    "Result",
    "Run",
    "Server",
    "Snapshot",
    "SoftCrossEntropy",
    "Speech",
    "Supervised",
    "Table",
    "Text",
    "ULD",
    "ViT",
    "Virtual",
    "WRN",
    "Written",
    "__version__",
    "distill",
    "load",
    "predict",
    "record",
    "run",
    "shrink",
]


def test_the_public_surface_is_this() -> None:
    assert sorted(limbeck.__all__) == PUBLIC
    assert dir(limbeck) == PUBLIC


@pytest.mark.parametrize("name", [name for name in PUBLIC if not name.startswith("_")])
def test_a_public_name_is_there_and_documented(name: str) -> None:
    found = getattr(limbeck, name)
    assert inspect.isclass(found) or inspect.isfunction(found)
    assert found.__name__ == name
    lines = inspect.cleandoc(found.__doc__ or "").splitlines()  # its own, not what it inherits
    assert lines, f"limbeck.{name} has no docstring"
    assert not inspect.isclass(found) or not lines[0].startswith(f"{name}("), f"limbeck.{name} has the docstring that a dataclass gets by default"
    if inspect.isfunction(found):
        assert [parameter for parameter, hint in found.__annotations__.items() if hint is None and parameter != "return"] == []
        assert found.__annotations__.keys() == {*inspect.signature(found).parameters, "return"}


def test_what_a_type_checker_is_told_is_what_is_loaded() -> None:
    tree = ast.parse((SOURCE / "__init__.py").read_text())
    told = {
        alias.name: f"limbeck.{node.module}"
        for block in tree.body if isinstance(block, ast.If)
        for node in block.body if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }  # fmt: skip
    assert sorted([*told, "__version__"]) == PUBLIC
    assert {name: getattr(limbeck, name).__module__ for name in told} == told


def test_a_name_that_is_not_there_says_so() -> None:
    misspelt = "distil"
    with pytest.raises(AttributeError, match="module 'limbeck' has no attribute 'distil'"):
        getattr(limbeck, misspelt)


def test_the_version_is_that_of_the_distribution() -> None:
    assert limbeck.__version__ == importlib.metadata.version("limbeck")


def readme() -> str:
    return (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    """The fenced code blocks of one language, in order; `""` for those of none."""
    return [code for word, code in re.findall(r"^```(\w*)[^\n]*\n(.*?)^```$", text, re.MULTILINE | re.DOTALL) if word == language]


def test_blocks_are_found() -> None:
    assert blocks("a\n```python\nx = 1\n```\nb\n```\nls\n```\n```python\ny = 2\n\nz = 3\n```\n", "python") == ["x = 1\n", "y = 2\n\nz = 3\n"]


def test_the_code_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "readme"}
    for number, code in enumerate(blocks(readme(), "python"), 1):
        exec(compile(code, f"README.md, python block {number}", "exec"), namespace)


def module_map(text: str) -> str:
    """The first code block under the heading `## Module map`, an empty text where there is no such heading."""
    _, heading, rest = text.partition("\n## Module map\n")
    section = rest.partition("\n## ")[0]
    found = re.findall(r"^```\w*\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    assert not heading or found, "the README's module map has no code block"
    return found[0] if found else ""


def untrue(told: str) -> list[str]:
    """The folders of the source that a module map leaves out, and those that it names and that are not there."""
    named = set(re.findall(r"(?<![\w/.-])([\w-]+(?:/[\w-]+)*)/(?=\s|$)", told, re.MULTILINE))
    there = {path.name for path in SOURCE.iterdir() if path.is_dir() and any(path.rglob("*.py"))}
    bases = [ROOT, SOURCE, *(SOURCE / name for name in there)]
    return sorted(there - named) + sorted(name for name in named if not any((base / name).is_dir() for base in bases))


def test_a_module_map_that_is_untrue_is_found_out() -> None:
    text = "# limbeck\n\n## Module map\n\nWords.\n\n```\nsrc/limbeck/\n  core/     words\n  compress/ quantize/ prone/\n  gone/     x\n```\n\n## Next\n"
    told = module_map(text)
    assert told.startswith("src/limbeck/\n")
    assert {"gone", "prone", "objectives"} <= set(untrue(told))
    assert not {"core", "compress", "quantize", "src/limbeck"} & set(untrue(told))
    assert module_map("# limbeck\n\n```\ncore/\n```\n") == ""


def test_the_module_map_of_the_readme_is_true() -> None:
    told = module_map(readme())
    assert not told or untrue(told) == []
