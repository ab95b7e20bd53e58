"""By what the teachers of an ensemble are weighed, beside numbers that are given."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Agreement", "Entropy", "Learned", "Weighing", "weighing"]


class _Way(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Entropy(_Way):
    """For each example by how sure a teacher is, the less its entropy the more; `temperature` is in shares of the largest entropy."""

    kind: Literal["entropy"] = "entropy"
    temperature: float = Field(default=0.2, gt=0, allow_inf_nan=False)


class Agreement(_Way):
    """For each example by the task's own loss of what a teacher says, the less the more: of a choice and at temperature one, by the label's probability."""

    kind: Literal["agreement"] = "agreement"
    temperature: float = Field(default=1.0, gt=0, allow_inf_nan=False)


class Learned(_Way):
    """The same for all examples, learnt by the task's own loss of the mean; `rate` is the step's length."""

    kind: Literal["learned"] = "learned"
    rate: float = Field(default=0.1, gt=0, allow_inf_nan=False)


Weighing = Entropy | Agreement | Learned
_WAYS: dict[str, Weighing] = {"entropy": Entropy(), "agreement": Agreement(), "learned": Learned()}


def weighing(name: str) -> Weighing:
    """Return a way by its name, with its usual numbers."""
    return _WAYS[name]
