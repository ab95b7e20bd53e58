"""How to train: the options that every training stage has, whatever it teaches."""

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["Adam", "AdamW", "Sgd", "Training", "named_optimizer", "rate"]

Beta = Annotated[float, Field(ge=0, lt=1)]


class _Options(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Sgd(_Options):
    """Stochastic gradient descent with momentum."""

    kind: Literal["sgd"] = "sgd"
    lr: float = Field(default=0.05, gt=0, allow_inf_nan=False, description="learning rate at the schedule's height")
    momentum: float = Field(default=0.9, ge=0, lt=1)
    nesterov: bool = True
    weight_decay: float = Field(default=0.0, ge=0, allow_inf_nan=False)

    def build(self, parameters: "Iterable[nn.Parameter]", *, fused: bool) -> "torch.optim.Optimizer":
        import torch

        nesterov = self.nesterov and self.momentum > 0
        return torch.optim.SGD(parameters, lr=self.lr, momentum=self.momentum, nesterov=nesterov, weight_decay=self.weight_decay, fused=fused)


class Adam(_Options):
    """Adam (Kingma & Ba 2015)."""

    kind: Literal["adam"] = "adam"
    lr: float = Field(default=1e-3, gt=0, allow_inf_nan=False, description="learning rate at the schedule's height")
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    weight_decay: float = Field(default=0.0, ge=0, allow_inf_nan=False)

    def build(self, parameters: "Iterable[nn.Parameter]", *, fused: bool) -> "torch.optim.Optimizer":
        import torch

        return torch.optim.Adam(parameters, lr=self.lr, betas=self.betas, weight_decay=self.weight_decay, fused=fused)


class AdamW(_Options):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019)."""

    kind: Literal["adamw"] = "adamw"
    lr: float = Field(default=1e-3, gt=0, allow_inf_nan=False, description="learning rate at the schedule's height")
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    weight_decay: float = Field(default=0.01, ge=0, allow_inf_nan=False)

    def build(self, parameters: "Iterable[nn.Parameter]", *, fused: bool) -> "torch.optim.Optimizer":
        import torch

        return torch.optim.AdamW(parameters, lr=self.lr, betas=self.betas, weight_decay=self.weight_decay, fused=fused)


class ConstantRate(_Options):
    """The same learning rate throughout."""

    kind: Literal["constant"] = "constant"
    warmup_epochs: float = Field(default=0.0, ge=0, allow_inf_nan=False, description="a straight line from zero before the schedule begins")


class CosineRate(_Options):
    """Half a cosine down to `end` times the learning rate (Loshchilov & Hutter 2017, without restarts)."""

    kind: Literal["cosine"] = "cosine"
    warmup_epochs: float = Field(default=0.0, ge=0, allow_inf_nan=False, description="a straight line from zero before the schedule begins")
    end: float = Field(default=0.0, ge=0, le=1)


class MultiStepRate(_Options):
    """The learning rate times `factor` after each epoch of `milestones`."""

    kind: Literal["multistep"] = "multistep"
    warmup_epochs: float = Field(default=0.0, ge=0, allow_inf_nan=False, description="a straight line from zero before the schedule begins")
    milestones: list[float] = Field(description="epochs after which the rate falls")
    factor: float = Field(default=0.1, gt=0, le=1)


class OneCycleRate(_Options):
    """Up from 1/25 along a cosine over the first `rise` of training, then down to 1/250,000 (Smith & Topin 2018)."""

    kind: Literal["onecycle"] = "onecycle"
    rise: float = Field(default=0.3, gt=0, lt=1)


Optimizer = Annotated[Sgd | Adam | AdamW, Field(discriminator="kind")]
Rate = Annotated[ConstantRate | CosineRate | MultiStepRate | OneCycleRate, Field(discriminator="kind")]


def named_optimizer(told: Mapping[str, Any]) -> Sgd | Adam | AdamW:
    """Return an optimizer as a recipe writes it.

    >>> named_optimizer({"kind": "adam", "lr": 0.001}).lr
    0.001
    """
    return TypeAdapter(Optimizer).validate_python(dict(told))


class Training(_Options):
    """How to train."""

    epochs: int = Field(default=10, ge=1, description="passes over the training split")
    batch_size: int = Field(default=128, ge=1, description="examples per optimizer step, over all micro-batches and devices")
    accumulate: int = Field(default=1, ge=1, description="micro-batches per optimizer step")
    optimizer: Optimizer = Field(default=Sgd(), description="what steps")
    optimizers: dict[str, Optimizer] = Field(
        default={}, description="by player, such as a discriminator, which else takes its own usual one; any other player not named takes `optimizer`"
    )
    schedule: Rate = Field(default=CosineRate(), description="how the learning rate moves")
    clip: float | None = Field(default=None, gt=0, description="largest norm of a player's gradient")
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = Field(default="32-true", description="of the forward pass")
    early_stopping: int | None = Field(default=None, ge=1, description="stop after so many epochs without a better validation metric")
    select: Literal["best", "last"] = Field(default="best", description="which epoch's weights the artifact holds: the best by validation, or the last")
    channels_last: bool = Field(default=False, description="lay images out by channels last, often faster for convolutions")
    keep: int = Field(default=1, ge=1, description="how many checkpoints to keep")


def rate(schedule: ConstantRate | CosineRate | MultiStepRate | OneCycleRate, epoch: float, epochs: float) -> float:
    """Return the factor on the learning rate at a moment of training: a pure function, so that a resumed run needs no state for it.

    >>> rate(CosineRate(), 5, 10)
    0.5
    """
    if isinstance(schedule, OneCycleRate):
        done = epoch / epochs
        if done < schedule.rise:
            return _half_cosine(1 / 25, 1.0, done / schedule.rise)
        return _half_cosine(1.0, 1 / 250_000, min(1.0, (done - schedule.rise) / (1 - schedule.rise)))
    if epoch < schedule.warmup_epochs:
        return epoch / schedule.warmup_epochs
    if isinstance(schedule, CosineRate):
        return _half_cosine(1.0, schedule.end, min(1.0, (epoch - schedule.warmup_epochs) / max(epochs - schedule.warmup_epochs, 1e-9)))
    if isinstance(schedule, MultiStepRate):
        return schedule.factor ** sum(epoch >= milestone for milestone in schedule.milestones)
    return 1.0


def _half_cosine(start: float, end: float, done: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * done)) / 2
