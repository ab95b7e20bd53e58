"""The other players of a stage: what learns beside the student has figures and a log of its own."""

from pathlib import Path
from typing import Any

__all__ = ["of_player", "players"]


def players(folder: Path) -> dict[str, Path]:
    """The players that ship beside a stage's student, by name, and the file of each one's figures."""
    return {file.parent.name: file for file in sorted((folder / "players").glob("*/metrics.json"))}


def of_player(told: Any, *, player: str) -> Any:
    """Turn the log of several players into that of one: scores bear its name in the file, and the loss of any but the student stands among the parts.

    >>> row = {"epoch": 1, "train_loss": 2.0, "validation_student_accuracy": 0.5, "validation_peer1_accuracy": 0.6, "parts": {"peer1_loss": 3.0}}
    >>> of_player({"epochs": [row]}, player="peer1")
    {'epochs': [{'epoch': 1, 'train_loss': 3.0, 'validation_accuracy': 0.6}]}
    """
    if not isinstance(told, dict) or not isinstance(told.get("epochs"), list) or not all(isinstance(row, dict) for row in told["epochs"]):
        return told  # for the schema to refuse
    return {"epochs": [_row(row, player) for row in told["epochs"]]}


def _row(row: dict[str, Any], player: str) -> dict[str, Any]:
    own = f"validation_{player}_"
    parts = row.get("parts")
    loss = row.get("train_loss") if player == "student" else parts.get(f"{player}_loss") if isinstance(parts, dict) else None
    scores = {f"validation_{name.removeprefix(own)}": value for name, value in row.items() if name.startswith(own)}
    return {"epoch": row.get("epoch"), "train_loss": loss, **scores}
