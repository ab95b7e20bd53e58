"""Every way to make a module smaller x every model: what is saved is made again by a clean process, one for each model.

The pairs, and what is compared, are those of `benchmarks/compress_load.py`, which gives each pair a process of its own.
"""

import importlib.util
import inspect
from pathlib import Path

import pytest

from limbeck.compress import Packer, Surgery
from limbeck.core.lookup import find, names

FILE = Path(__file__).parents[2] / "benchmarks" / "compress_load.py"
_spec = importlib.util.spec_from_file_location("compress_load", FILE)
assert _spec is not None and _spec.loader is not None
pairs = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(pairs)


def test_every_method_has_its_options() -> None:
    known = {kind for kind in names("compress") if inspect.isclass(part := find("compress", kind)) and issubclass(part, (Surgery, Packer))}
    assert known == pairs.METHODS.keys(), "add a line to METHODS in benchmarks/compress_load.py"


@pytest.mark.parametrize("kind", pairs.models())
def test_what_is_saved_is_made_again_in_a_clean_process(kind: str, tmp_path: Path) -> None:
    refused = {method: why for method in pairs.METHODS if (why := pairs.make(kind, method, tmp_path / method)) is not None}
    made = [tmp_path / method for method in pairs.METHODS if method not in refused]
    assert made, refused
    done = pairs.load(made)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [folder.name for folder in made]
