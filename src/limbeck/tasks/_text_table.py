"""Sentences and their labels, one `sentence<TAB>label` to a line: the SST-2 of Socher et al. 2013, and one's own."""

from pathlib import Path

from limbeck.core.errors import DataError
from limbeck.core.task import Split

from ._text_documents import read_text

__all__ = ["find_sentences", "read_sentences"]

_FOLDER = "text-sst2"


def find_sentences(root: Path, data: str) -> dict[Split, Path]:
    """Return the file of each split: train.tsv, dev.tsv (or validation.tsv, valid.tsv) and test.tsv; of data `tsv`, a single file will do.

    Raises:
        DataError: there is no training file.
    """
    if data == "tsv" and root.is_file():
        return {"train": root}
    folder = inner if data == "sst2" and (inner := root / _FOLDER).is_dir() else root
    if not (folder / "train.tsv").is_file():
        holds = f"{_FOLDER}/" if data == "sst2" else "train.tsv"
        raise DataError(f"{folder} has no train.tsv: set `root` to the folder that holds {holds}")
    found: dict[Split, Path] = {"train": folder / "train.tsv"}
    held = next((path for name in ("dev", "validation", "valid") if (path := folder / f"{name}.tsv").is_file()), None)
    if held is not None:
        found["validation"] = held
    if (folder / "test.tsv").is_file():
        found["test"] = folder / "test.tsv"
    return found


def read_sentences(path: Path) -> list[tuple[str, str]]:
    """Return (sentence, label) of each line; what stands behind the last tab is the label, and a first line `sentence<TAB>label` (GLUE's) is passed over.

    Raises:
        DataError: a line without a tab, or with nothing on one side of it.
    """
    made = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        line = line.removesuffix("\r")
        if not line.strip() or (number == 1 and line == "sentence\tlabel"):
            continue
        sentence, tab, label = line.rpartition("\t")
        if not tab or not sentence.strip() or not label.strip():
            told = "no tab" if not tab else "no sentence" if not sentence.strip() else "no label"
            raise DataError(f"{path}, line {number} has {told}: a line is sentence<TAB>label")
        made.append((sentence, label.strip()))
    if not made:
        raise DataError(f"{path} holds no sentence: a line is sentence<TAB>label")
    return made
