"""Behavioural cloning from observation: find out by an inverse dynamics model of one's own which actions the teacher must have taken, then do the same.

Torabi, Warnell and Stone, "Behavioral Cloning from Observation", IJCAI 2018, arXiv:1805.01954, algorithm 1 without its repetition (alpha = 0).
"""

from collections.abc import Mapping
from typing import Any

from limbeck.core.errors import RecipeError
from limbeck.core.scheme import Course

__all__ = ["BCO"]


class BCO(Course):
    """Imitate a teacher policy whose actions are not seen: first what one's own random actions lead to, then what the teacher's steps must have been.

    Stage `NAME-inverse` learns a_t from (s_t, s_t+1) on transitions of one's own; stage `NAME` learns pi(a | s_t) from the teacher's observations, with the
    inverse model's answer for (s_t, s_t+1) as its target: the expected log-likelihood of the inferred action, E_{a ~ p(a | s_t, s_t+1)} log pi(a | s_t), by
    `response.soft_cross_entropy`. No action of the teacher is read in training. For `tasks.control`.

    Args:
        inverse: the inverse dynamics model, as a stage's `model`.
        steps: transitions of one's own.
        epochs: over them.

    Raises:
        RecipeError: a stage with a teacher or objectives of its own.
    """

    def __init__(self, *, inverse: Mapping[str, Any] | None = None, steps: int = 2000, epochs: int = 20) -> None:
        self.inverse = {"kind": "mlp", "widths": [64]} if inverse is None else dict(inverse)
        self.steps, self.epochs = steps, epochs

    def expand(self, name: str, stage: Mapping[str, Any], earlier: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
        """Two stages: the inverse model's, and the policy's."""
        if stage["kind"] != "train" or [one["kind"] for one in stage["objectives"]] != ["supervised"]:
            raise RecipeError(f"stage {name!r} must be {{kind: train}} without objectives of its own: the scheme bco brings its teacher and its target")
        shown = {**stage["task"], "show": "transitions", "steps": self.steps}
        inverse = {**stage, "model": self.inverse, "init": None, "task": shown, "epochs": self.epochs}
        policy = {
            **stage,
            "kind": "distill",
            "teacher": {"kind": "frozen", "of": f"{name}-inverse", "input": "transition"},
            "objectives": [{"kind": "response.soft_cross_entropy", "temperature": 1.0, "weight": 1.0}],
        }
        return {f"{name}-inverse": inverse, name: policy}
