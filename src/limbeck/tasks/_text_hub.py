"""Rows of a data set of the library datasets as documents, and as sentences with their labels."""

from typing import Any

from limbeck.bridges.datasets import Hub, Table
from limbeck.core.errors import DataError, RecipeError
from limbeck.core.task import Split

from ._text_documents import Document, document_of

__all__ = ["as_hub", "documents_of", "sentences_of"]


def as_hub(data: str, given: Any) -> Hub | None:
    """Return how a data set is read where `data` is hub, from a mapping too; None where it is not.

    Raises:
        RecipeError: `hub` of other data.
    """
    if data != "hub":
        if given is not None:
            raise RecipeError(f"hub says how data of kind hub are read, and data is {data!r}: leave it out")
        return None
    return given if isinstance(given, Hub) else Hub.model_validate(given or {})


def documents_of(table: Table, turn: str) -> dict[Split, list[Document]]:
    """Return each row as a document: its text, its prompt and completion, or its messages; rows of empty text are none.

    Raises:
        DataError: no row with anything to say.
        RecipeError: no column that a document could be made of.
    """
    roles = set(table.columns) - {"label"}
    if not ({"text"} <= roles or {"messages"} <= roles or {"prompt", "completion"} <= roles):
        raise RecipeError(f"{table.where} has no column text, messages, nor prompt and completion: name the one, hub: {{text: COLUMN}}")
    made: dict[Split, list[Document]] = {}
    for split in table.splits():
        rows = ({role: value for role, value in row.items() if role in roles and value is not None} for row in table.rows(split))
        told = [row for row in rows if row and not (isinstance(text := row.get("text"), str) and not text.strip())]
        made[split] = [document_of(row, turn, f"{table.where}, row {at} of {split}") for at, row in enumerate(told)]
        if not made[split]:
            raise DataError(f"the {split} split of {table.where} has no text")
    return made


def sentences_of(table: Table) -> dict[Split, list[tuple[str, str]]]:
    """Return (sentence, label) of each row; a split without a single label, as hidden test labels are, is not there.

    Raises:
        RecipeError: no column of text, or none of labels.
        DataError: a row without a sentence, or one of several without a label.
    """
    if not {"text", "label"} <= table.columns.keys():
        lacks = "text" if "text" not in table.columns else "label"
        raise RecipeError(f"{table.where} has no column {lacks!r}: name the one, hub: {{{lacks}: COLUMN}}")
    made: dict[Split, list[tuple[str, str]]] = {}
    for split in table.splits():
        rows = [(row["text"], row["label"]) for row in table.rows(split)]
        if split != "train" and all(label is None for _, label in rows):
            continue
        for at, (text, label) in enumerate(rows):
            if not isinstance(text, str) or not text.strip() or label is None or not str(label).strip():
                raise DataError(f"{table.where}, row {at} of {split} has no {'label' if isinstance(text, str) and text.strip() else 'sentence'}")
        made[split] = [(text, str(label)) for text, label in rows]
    return made
