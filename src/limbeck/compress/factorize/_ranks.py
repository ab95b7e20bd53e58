"""How ranks are chosen, as a recipe writes it."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["HALF", "VBMF", "Budget", "Energy", "Fixed", "Of", "Rank", "Sensitivity"]

Of = Literal["parameters", "macs"]
Ranks = Annotated[int, Field(ge=1)] | Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1, max_length=2)]


class _Choice(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Energy(_Choice):
    """Each layer by itself: the fewest parameters that keep `share` of its energy, the sum of squared singular values."""

    kind: Literal["energy"] = "energy"
    share: float = Field(default=0.9, gt=0, lt=1)


class Fixed(_Choice):
    """The same `rank` for every layer, but for those that `layers` names; Tucker-2 takes one number for both its ranks, or [out, in]."""

    kind: Literal["fixed"] = "fixed"
    rank: Ranks | None = None
    layers: dict[str, Ranks] = {}


class Budget(_Choice):
    """At most `share` of the whole model's parameters or MACs, where it loses the least energy (each layer's is 1) for what is saved."""

    kind: Literal["budget"] = "budget"
    share: float = Field(default=0.5, gt=0, lt=1)
    of: Of = "parameters"


class Sensitivity(_Choice):
    """At most `share` of the whole model's parameters or MACs, where the loss on `examples` training examples rises the least for what is saved.

    Each layer is tried alone at `steps` ranks; between these the rise follows the energy lost, and rises are taken to add up.
    """

    kind: Literal["sensitivity"] = "sensitivity"
    share: float = Field(default=0.5, gt=0, lt=1)
    of: Of = "parameters"
    examples: int = Field(default=512, ge=1)
    steps: int = Field(default=6, ge=1, le=64)


class VBMF(_Choice):
    """Each layer by itself: what variational Bayes tells from noise. Not for CP, whose rank no matrix has."""

    kind: Literal["vbmf"] = "vbmf"


Rank = Annotated[Energy | Fixed | Budget | Sensitivity | VBMF, Field(discriminator="kind")]

HALF = Budget()
"""What is taken where nothing is said: half the parameters."""
