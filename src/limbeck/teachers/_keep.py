"""What may be kept of a teacher's answers, as a recipe writes it."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = ["Auto", "HiddenStates", "Keep", "Kept", "Likeliest", "Samples", "WholeLogits"]

Temperature = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Kind(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class WholeLogits(_Kind):
    """Every logit."""

    kind: Literal["dense"] = "dense"


class Likeliest(_Kind):
    """The `k` likeliest classes at one temperature, and the probability of all others together.

    `tail: bucket` tells the student that mass, as one class of its own; `renormalized_biased` leaves it out and makes the k sum to one, which teaches that the
    others are impossible (a matter of reading: the store holds the mass either way).
    """

    kind: Literal["topk"] = "topk"
    k: int = Field(ge=1)
    temperature: Temperature
    tail: Literal["bucket", "renormalized_biased"] = "bucket"


class HiddenStates(_Kind):
    """The states before the head, for each token, and the head once: any divergence at any temperature later.

    `float32` is exact; `int8` has a scale for each token.
    """

    kind: Literal["hidden"] = "hidden"
    dtype: Literal["float32", "bfloat16", "int8"] = "bfloat16"


class Samples(_Kind):
    """How often each class came in `count` draws with replacement at one temperature: the cross-entropy with that is right on average."""

    kind: Literal["samples"] = "samples"
    count: int = Field(ge=1, le=65535)
    temperature: Temperature = 1.0


class Auto(_Kind):
    """Whichever of all these errs least in so many `bytes` a token, or takes the fewest bytes for an error of so many `nats`, measured on a sample."""

    kind: Literal["auto"] = "auto"
    bytes: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    nats: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    temperature: Temperature = 1.0

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.bytes is None) == (self.nats is None):
            raise ValueError("one of bytes and nats says what is wanted: the bytes a token may take, or the error in nats that is allowed")
        return self


Kept = WholeLogits | Likeliest | HiddenStates | Samples
"""What is kept once it is known."""
Keep = Annotated[WholeLogits | Likeliest | HiddenStates | Samples | Auto, Field(discriminator="kind")]
