"""From the files of a run to one page: `write` reads a run's folder and writes `report.html`; no model is loaded."""

from pathlib import Path

from limbeck.core.files import atomic_write

__all__ = ["write"]


def write(out: Path) -> Path:
    """Write `out/report.html` from the files of a finished run and return its path; the same files give the same bytes.

    Raises:
        ArtifactError: no `run.json`, or a file that is no JSON or not of its schema; the message names the file.
        StorageError: a full disk, or a folder that cannot be written.
    """
    from ._page import page
    from ._run import read

    path = Path(out) / "report.html"
    atomic_write(path, page(read(Path(out))).encode("utf-8", "replace"))
    return path
