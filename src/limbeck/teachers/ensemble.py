"""Several teachers that speak with one voice."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn

from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.knowledge import Dense, Knowledge, Reads
from limbeck.core.task import Batch, Task
from limbeck.core.teacher import Teacher, as_teacher


class Ensemble(Teacher):
    """Several teachers that speak with one voice: the weighted mean of their probabilities, or of their logits.

    `z = log sum_m w_m softmax(z_m)` for `average: probabilities` (the arithmetic mean), `z = sum_m w_m z_m` for `average: logits`
    (the geometric mean, up to a constant).
    Hinton et al., "Distilling the Knowledge in a Neural Network", 2015, arXiv:1503.02531, section 1 names both.

    Args:
        average: `probabilities` or `logits`.
        weights: one per teacher, zero or more, brought to a sum of one; equal where it is left out.
    """

    def __init__(
        self,
        models: Sequence[nn.Module],
        *,
        average: Literal["probabilities", "logits"] = "probabilities",
        weights: list[float] | None = None,
    ) -> None:
        super().__init__()
        if len(models) < 2:
            raise RecipeError(f"an ensemble of {len(models)}: give two teachers or more, or take {{kind: frozen}}")
        told = [1.0] * len(models) if weights is None else weights
        if len(told) != len(models):
            raise RecipeError(f"{len(told)} weights for {len(models)} teachers: give one each")
        if not all(math.isfinite(weight) and weight >= 0 for weight in told) or sum(told) == 0:
            raise RecipeError(f"the weights of an ensemble are {told}: they must be finite, zero or more, and not all zero")
        self._members = [as_teacher(teacher) for teacher in models]
        self.members = nn.ModuleList(self._members)
        self.average = average
        self.weights = [weight / sum(told) for weight in told]

    def prepare(self, reads: Reads, task: Task) -> None:
        """Raises MismatchError where a feature is asked: members need not have a layer in common."""
        if reads.features:
            raise MismatchError(
                f"an ensemble has no single layer {', '.join(sorted(reads.features))}: "
                "drop the feature objective, or teach from one of its members ({kind: frozen})"
            )
        for member in self._members:
            member.prepare(reads, task)

    @torch.no_grad()
    def forward(self, batch: Batch, student: Knowledge | None = None) -> Knowledge:
        said: list[Knowledge] = [member(batch, student) for member in self._members]
        return Knowledge({name: self._mean([one.outputs[name] for one in said]) for name in said[0].outputs}, mask=said[0].mask)

    def _mean(self, responses: list[Dense]) -> Dense:
        link = responses[0].link
        shapes = {response.logits.shape for response in responses}
        if len(shapes) > 1 or any(response.link != link for response in responses):
            raise MismatchError(
                f"the members of an ensemble answer in different shapes: {', '.join(str(tuple(s)) for s in sorted(shapes))}; they must know the same classes"
            )
        stacked = torch.stack([response.logits.to(torch.promote_types(response.logits.dtype, torch.float32)) for response in responses])  # [M, N, C]
        weights = stacked.new_tensor(self.weights).view(-1, *[1] * (stacked.dim() - 1))
        if self.average == "logits" or link == "identity":
            return Dense((weights * stacked).sum(0), link)
        if link == "bernoulli":
            inside = nn.functional.logsigmoid(stacked) + weights.log()
            outside = nn.functional.logsigmoid(-stacked) + weights.log()
            return Dense(inside.logsumexp(0) - outside.logsumexp(0), link)
        return Dense((stacked.log_softmax(-1) + weights.log()).logsumexp(0), link)

    def after_step(self, student: nn.Module) -> None:
        """Members that move follow the student."""
        for member in self._members:
            member.after_step(student)
