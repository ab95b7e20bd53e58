"""Where a benchmark keeps what it has found, so that a killed one goes on and figures of two versions of the code never meet.

`runs/benchmark-NAME/KEY/` holds one JSON file per record. KEY is a digest of the settings, of the script, of limbeck's own source and of torch's version.
"""

import sys
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import limbeck
from limbeck.core.files import digest, read_json, sha256, write_json

__all__ = ["folder", "kept", "source", "tell"]


def source() -> str:
    """Return the digest of every source file of the limbeck that is imported."""
    root = Path(limbeck.__file__).parent
    return digest({path.relative_to(root).as_posix(): sha256(path) for path in sorted(root.rglob("*.py"))})


def folder(script: str, settings: Mapping[str, Any]) -> Path:
    """Return the folder of a script's records under these settings; it is made if it is not there."""
    path = Path(script)
    key = digest({"settings": dict(settings), "script": sha256(path), "source": source(), "torch": version("torch")})
    place = Path("runs") / f"benchmark-{path.stem.removesuffix('_loop')}" / key[:12]
    place.mkdir(parents=True, exist_ok=True)
    return place


def kept(place: Path, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return the record of that name: the one that stands, or one made now."""
    file = place / f"{name}.json"
    if not file.is_file():
        write_json(file, make())
    return read_json(file)


def tell(text: str) -> None:
    """Say how far it has come."""
    print(text, file=sys.stderr, flush=True)
