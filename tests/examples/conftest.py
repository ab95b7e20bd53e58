"""Load an example as a module, and keep what it hands to limbeck."""

import ast
import copy
import importlib.util
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from torch import Tensor, nn

EXAMPLES = Path(__file__).parents[2] / "examples"


@dataclass
class Watched:
    """What an example handed to `Offline`, what it got, and how all of it stood then."""

    kd: nn.Module
    student: nn.Module
    teacher: nn.Module
    before: dict[str, Tensor]
    teacher_before: dict[str, Tensor]

    def moved(self) -> set[str]:
        """The parameters of the scheme, projectors included, that are no longer what they were."""
        return {name for name, value in self.kd.named_parameters() if not value.equal(self.before[name])}

    def teacher_moved(self) -> bool:
        """Whether a bit of the teacher, its buffers included, is no longer what it was."""
        return any(not value.equal(self.teacher_before[name]) for name, value in self.teacher.state_dict().items())


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Any, Watched]]:
    """`run(name, **options)`: execute `main(**options)` of an example, return what it returned and what was watched."""

    def execute(name: str, **options: Any) -> tuple[Any, Watched]:
        module = _load(name)
        made: list[Watched] = []
        offline = module.__dict__["Offline"]

        def watching(student: nn.Module, teacher: nn.Module, *args: Any, **more: Any) -> nn.Module:
            kd = offline(student, teacher, *args, **more)
            made.append(Watched(kd, student, teacher, copy.deepcopy(dict(kd.state_dict())), copy.deepcopy(dict(teacher.state_dict()))))
            return kd

        monkeypatch.setattr(module, "Offline", watching)
        answer = module.__dict__["main"](**options)
        assert len(made) == 1
        return answer, made[0]

    return execute


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def marked() -> Callable[[str], list[str]]:
    """`marked(name)`: the lines that an example marks as limbeck's; every other line must do without a name that limbeck gave."""

    def read(name: str) -> list[str]:
        source = (EXAMPLES / f"{name}.py").read_text()
        tree = list(ast.walk(ast.parse(source)))
        given = {"kd", *(alias.name for node in tree if isinstance(node, ast.ImportFrom) and node.module == "limbeck" for alias in node.names)}
        assert "Offline" in given
        lines = source.splitlines()
        own = [line for line in lines if re.search(r"  # limbeck \d(,|$)", line)]
        named = [(node.lineno, node.id) for node in tree if isinstance(node, ast.Name)] + [
            (node.lineno, node.attr) for node in tree if isinstance(node, ast.Attribute)
        ]
        used = {line for line, word in named if word in given}
        assert not [lines[number - 1] for number in used if lines[number - 1] not in own], "a line that uses limbeck is not marked"
        assert [re.search(r"# limbeck (\d)", line).group(1) for line in own] == [str(n + 1) for n in range(len(own))]  # pyright: ignore[reportOptionalMemberAccess]
        return own

    return read
