"""Rules of the house that a machine can hold; the import contract is `lint-imports`."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import limbeck

SOURCE = Path(limbeck.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))


def name(file: Path) -> str:
    return file.relative_to(SOURCE).as_posix()


def lines(file: Path) -> int:
    return len(file.read_text().splitlines())


def test_there_is_something_to_look_at():
    assert len(FILES) > 10


def test_core_stays_small():
    assert sum(lines(file) for file in (SOURCE / "core").rglob("*.py")) <= 2000


def test_no_module_is_long():
    long = {name(file): lines(file) for file in FILES if lines(file) > 400}
    assert not long


def test_half_of_the_modules_are_short():
    counts = sorted(lines(file) for file in FILES if file.name != "__init__.py")
    assert counts[len(counts) // 2] <= 120


def test_nothing_is_called_by_a_name_that_means_nothing():
    empty = re.compile(r"(^|_)(utils?|helpers?|commons?|misc|tools?|stuff)(_|$)")
    named = [name(path) for path in SOURCE.rglob("*") if "__pycache__" not in path.parts and empty.search(path.stem)]
    assert not named


def test_importing_limbeck_imports_nothing_heavy():
    code = "import sys, limbeck; print(*{'torch', 'numpy', 'onnx', 'onnxruntime', 'sklearn', 'scipy', 'lightning_fabric', 'PIL'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert not found


# No pickle from outside, no YAML that makes objects, nothing run that was read, no error swallowed

LOADS = {"pickle.load", "pickle.loads", "pickle.Unpickler", "torch.load", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "joblib.load", "dill.load"}
RUNS = {"eval", "exec"}


def calls(file: Path) -> list[tuple[int, str, ast.Call]]:
    tree = ast.parse(file.read_text(), str(file))
    return [(node.lineno, ast.unparse(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call)]


def test_nothing_is_unpickled_or_run():
    assert not [fault for file in FILES for fault in loads_and_runs(file)]


def loads_and_runs(file: Path) -> list[str]:
    found = [f"{name(file)}:{line} calls {called}" for line, called, _ in calls(file) if called in LOADS | RUNS]
    text = file.read_text()
    found += [f"{name(file)} has {needle}" for needle in ("pickle.load(", "torch.load(", "yaml.load(") if needle in text]
    arrays = [node for _, called, node in calls(file) if called in ("np.load", "numpy.load")]
    found += [
        f"{name(file)}:{node.lineno} allows pickles"
        for node in arrays
        for key in node.keywords
        if key.arg == "allow_pickle" and ast.unparse(key.value) != "False"
    ]
    return found


def test_no_error_is_swallowed():
    """An `except` of everything must raise again."""
    found = []
    for file in FILES:
        handlers = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.ExceptHandler)]
        wide = [node for node in handlers if node.type is None or ast.unparse(node.type) in ("Exception", "BaseException")]
        found += [f"{name(file)}:{node.lineno}" for node in wide if not any(isinstance(inner, ast.Raise) for inner in ast.walk(node))]
    assert not found


def test_every_module_says_what_it_is():
    silent = [name(file) for file in FILES if file.read_text().strip() and not ast.get_docstring(ast.parse(file.read_text()))]
    assert not silent
