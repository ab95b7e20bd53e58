"""Several teachers that speak with one voice.

Hinton et al., "Distilling the Knowledge in a Neural Network", 2015, arXiv:1503.02531, sec. 1; weights by agreement in the manner of Zhang et al.,
"Confidence-Aware Multi-Teacher Knowledge Distillation", ICASSP 2022, arXiv:2201.00007.

Shapes: M teachers, N predictions, C classes.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.knowledge import Dense, Knowledge, Reads
from limbeck.core.task import Batch, Task
from limbeck.core.teacher import Teacher, as_teacher

from ._gate import Gate
from ._members import check_classes, check_weights, common_views, known_of, shared_out
from ._mixture import Average, entropy, log_share, mixture, widened
from ._weights import Agreement, Entropy, Learned, weighing


class Ensemble(Teacher):
    """Several teachers that speak with one voice: the weighted mean of their probabilities, or of their logits.

    `z = log sum_m w_m softmax(z_m)` for `average: probabilities` (the arithmetic mean), `z = sum_m w_m z_m` for `average: logits` (the geometric mean, up to a
    constant); Hinton et al. 2015, arXiv:1503.02531, name both.

    Weights are given, or found: w_mn ~ exp(-H_mn / t), H the entropy of what teacher m says of example n over log C (`entropy`); w_mn ~ exp(-l_mn / t), l the
    task's loss of it, so that at t = 1 a choice is weighed by the label's probability (`agreement`; Zhang et al. 2022, arXiv:2201.00007, take one minus a
    softmax of the losses); or the same for all examples and descending by the gradient of the task's loss of the mean, once a step, in the teacher itself and
    in no player's optimizer (`learned`). Predictions without a label count for all teachers alike.

    Teachers of different classes speak of their union: `classes` says which each knows. To a class that it does not know a teacher gives no probability, so
    that who is asked matters: weigh by entropy or agreement. In the means of logits and of yes-or-no answers a class is the mean over those who know it.

    Beside `main`, what member m says is the output `m`, and its layer `layer3` the feature `m.layer3`: `layers: {layer3: 0.layer3, layer2: 1.layer2}`.

    Args:
        average: `probabilities` or `logits`.
        weights: one per teacher, zero or more, brought to a sum of one, equal where it is left out; or entropy, agreement or learned, or a mapping with that
            as the kind and its `temperature` (0.2, 1) or `rate` (0.1).
        classes: for each teacher, the class of the union that each of its outputs is; all know the same classes where it is left out.

    Raises:
        RecipeError: fewer than two teachers, weights or classes that cannot be meant.
        MismatchError: teachers that answer in different shapes, a layer that is no member's, or what only one model has.
    """

    def __init__(
        self,
        models: Sequence[nn.Module],
        *,
        average: Average = "probabilities",
        weights: list[float] | Literal["entropy", "agreement", "learned"] | Entropy | Agreement | Learned | None = None,
        classes: list[list[int]] | None = None,
    ) -> None:
        super().__init__()
        if len(models) < 2:
            raise RecipeError(f"an ensemble of {len(models)}: give two teachers or more, or take {{kind: frozen}}")
        self._members = [as_teacher(teacher) for teacher in models]
        self.members = nn.ModuleList(self._members)
        self.reads_student = any(member.reads_student for member in self._members)
        self.views = common_views(self._members)
        self.average: Average = average
        self._way = weighing(weights) if isinstance(weights, str) else None if isinstance(weights, list) else weights
        told = weights if isinstance(weights, list) else [1.0] * len(models)
        check_weights(told, len(models))
        self.weights = [weight / sum(told) for weight in told]
        self.gate = Gate(len(models), self._way.rate) if isinstance(self._way, Learned) else None
        self.classes = classes
        if classes is not None:
            check_classes(classes, self.weights)
        self._task: Task | None = None

    def prepare(self, reads: Reads, task: Task) -> None:
        """Raises MismatchError for a layer that is no member's, layers to be paired by themselves, or a gradient by the input."""
        for member, own in zip(self._members, shared_out(reads, len(self._members)), strict=True):
            member.prepare(own, task)
        self._task = task

    @torch.no_grad()
    def forward(self, batch: Batch, student: Knowledge | None = None) -> Knowledge:
        said: list[Knowledge] = [member(batch, student) for member in self._members]
        self._check_kinds(said)
        log_weights = self._log_weights(said, batch)
        outputs = {name: self._mean([one.whole(name) for one in said], log_weights) for name in said[0].outputs if all(name in one.outputs for one in said)}
        members = {str(index): Dense(self._wide(index, one.main.logits), one.main.link) for index, one in enumerate(said)}
        features = {f"{index}.{path}": value for index, one in enumerate(said) for path, value in one.features.items()}
        modules = {f"{index}.{path}": module for index, one in enumerate(said) for path, module in one.modules.items()}
        return Knowledge({**members, **outputs}, features, said[0].mask, modules)

    def _check_kinds(self, said: Sequence[Knowledge]) -> None:
        """Refuse answers that cannot be averaged: of another kind, or of other sizes than is known of them."""
        if len({one.main.link for one in said}) > 1:
            raise MismatchError(f"the members of an ensemble answer in different ways, {', '.join(one.main.link for one in said)}: average like with like")
        if self.classes is not None:
            for index, (one, known) in enumerate(zip(said, self.classes, strict=True)):
                if one.main.classes != len(known):
                    raise MismatchError(f"member {index} of the ensemble answers for {one.main.classes} classes and `classes` names {len(known)}: name each")
        shapes = {tuple(one.main.logits.shape if self.classes is None else one.main.logits.shape[:-1]) for one in said}
        if len(shapes) > 1:
            raise MismatchError(
                f"the members of an ensemble answer in different shapes: {', '.join(map(str, sorted(shapes)))}; they must know the same classes, "
                "or say which each knows, classes: [[0, 1], [1, 2]]"
            )

    def _wide(self, index: int, logits: Tensor) -> Tensor:
        """A member's logits about all classes, minus infinity of a choice that it does not know."""
        if self.classes is None:
            return logits
        known = known_of(self.classes, logits.device)
        wide = widened(logits, self.classes[index], known.shape[1])
        return wide.masked_fill(~known[index], -math.inf)

    def _mean(self, responses: Sequence[Dense], log_weights: Tensor) -> Dense:
        """The mean of what the members say under one name; `log_weights [M]` or `[M, N]`."""
        logits = [one.logits.to(torch.promote_types(one.logits.dtype, torch.float32)) for one in responses]
        known = None
        if self.classes is not None:
            known = known_of(self.classes, logits[0].device)
            logits = [widened(one, told, known.shape[1]) for one, told in zip(logits, self.classes, strict=True)]
        link = responses[0].link
        return Dense(mixture(torch.stack(logits), log_weights, average=self.average, link=link, known=known), link)

    def _log_weights(self, said: Sequence[Knowledge], batch: Batch) -> Tensor:
        """The logarithms of the weights: `[M]`, or `[M, N]` where each prediction has its own."""
        if self.gate is not None:
            counted = self._counted(said[0], batch)
            self.gate.hear(lambda told: self._cost(self._mean([one.main for one in said], told).logits, said[0], batch)[counted])
            return self.gate.log_weights
        if isinstance(self._way, Entropy):
            if said[0].main.link == "identity":
                raise MismatchError("real numbers have no entropy to weigh an ensemble by: take weights: agreement, or one number for each")
            return log_share(torch.stack([entropy(one.main.logits.float(), link=one.main.link) for one in said]), self._way.temperature)
        if isinstance(self._way, Agreement):
            costs = torch.stack([self._cost(self._wide(index, one.main.logits), one, batch) for index, one in enumerate(said)])
            return log_share(costs.masked_fill(~self._counted(said[0], batch), 0.0), self._way.temperature)
        return torch.tensor(self.weights, dtype=torch.float64, device=said[0].main.logits.device).log()

    def _cost(self, logits: Tensor, said: Knowledge, batch: Batch) -> Tensor:
        """The task's loss `[N]` of logits."""
        assert self._task is not None, "a teacher is prepared before it is asked"
        if "label" not in batch:
            raise MismatchError(f"the ensemble weighs its members by labels and the batch has none (fields {', '.join(batch)}): take other weights")
        return self._task.loss(Knowledge({"main": Dense(logits, said.main.link)}, mask=said.mask), batch)

    @staticmethod
    def _counted(said: Knowledge, batch: Batch) -> Tensor:
        """Which predictions have a label that counts, `[N]`."""
        every = torch.ones(said.main.logits.shape[:-1], dtype=torch.bool, device=said.main.logits.device)
        return every & (every if said.mask is None else said.mask) & batch.get("labelled", every)

    def after_step(self, student: nn.Module) -> None:
        """Learned weights take their step; members that move follow the student."""
        if self.gate is not None:
            self.gate.step()
        for member in self._members:
            member.after_step(student)
