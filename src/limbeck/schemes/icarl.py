"""Classification by the nearest mean of exemplars, beside the student's own.

Rebuffi et al., "iCaRL: Incremental Classifier and Representation Learning", CVPR 2017, arXiv:1611.07725.
"""

import copy
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.core import lookup
from limbeck.core.artifact import Artifact
from limbeck.core.errors import MismatchError
from limbeck.core.objective import Objective, Term
from limbeck.core.scheme import Losses
from limbeck.core.tap import Tap, layer
from limbeck.core.task import Facts, Task
from limbeck.core.teacher import Teacher

from ._around import Around
from ._checks import evaluating
from .offline import Offline

__all__ = ["ICaRL", "class_means"]

_ASKED = 256


def class_means(features: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Return the mean feature of each class `[C, D]`, of length one, from `features [N, D]` brought to length one; zero for a class without an example."""
    rows = F.normalize(features.float(), dim=1)
    sums = rows.new_zeros(classes, rows.shape[1]).index_add_(0, labels, rows)
    return F.normalize(sums, dim=1)


class ICaRL(Around):
    """Classification by the nearest mean of exemplars, which ships as the player `nearest_mean` beside the student.

    `y* = argmin_y ||phi(x) - mu_y||`, mu_y the mean of the exemplars of class y, features and means of length one. This is `argmax_y <phi(x), mu_y>`: a linear
    head without a bias whose rows are the means. So `nearest_mean` is the student with that head, and is validated, published and exported like any model; its
    logits rank classes and are no log-probabilities.
    Rebuffi et al. 2017, arXiv:1611.07725, algorithm 1. The student learns as with schemes.offline; the exemplars are those that the transfer set replay with
    `choose: herding` and the same size leaves. The paper's student learns by binary cross-entropies: here it learns by what `objectives` say.

    Args:
        size: how many exemplars there are of all classes together, as in `transfer`.
        head: the linear layer that gives the logits.

    Raises:
        RecipeError: a layer that the student has not, or a size below the classes.
        MismatchError: a head that is no linear layer.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: "nn.Module | Teacher | None",
        objectives: Iterable[Objective | Term],
        task: Task | None = None,
        example: object | None = None,
        facts: Facts | None = None,
        source: Artifact | None = None,
        *,
        size: int = 500,
        head: str = "head",
    ) -> None:
        super().__init__()
        self.base = Offline(student, teacher, objectives, task, example, facts)
        self.phases, self.task, self._head = self.base.phases, self.base.task, head
        if not isinstance(layer(student, head, side="student"), nn.Linear):
            raise MismatchError(
                f"icarl: {head!r} is a {type(layer(student, head)).__name__}; means of features take the place of a linear layer that gives the logits"
            )
        self._replay: Any = lookup.build("transfer", "replay", {"size": size, "choose": "herding", "layer": f"{head}:in"}, source)

    def forward(self, batch: object, phase: str = "student") -> Losses:
        return self.base(batch, phase)

    def shipped(self) -> dict[str, nn.Module]:
        student = self.base.shipped()["student"]
        return {"student": student, "nearest_mean": self._by_means(student)}

    @torch.no_grad()
    def _by_means(self, student: nn.Module) -> nn.Module:
        """The student with the exemplars' means for a head."""
        exemplars = self._replay.remember(self.task, student)
        made = copy.deepcopy(student)
        head = layer(made, self._head)
        assert isinstance(head, nn.Linear)
        found: list[Tensor] = []
        with evaluating(made):
            for part in exemplars.inputs.split(_ASKED):
                with Tap(made, [f"{self._head}:in"]) as tap:
                    self.task.forward(made, {"input": part.to(head.weight.device)})
                found.append(tap.features[f"{self._head}:in"])
        features = torch.cat(found)
        head.weight.copy_(class_means(features, exemplars.labels.to(features.device), head.out_features))
        if head.bias is not None:
            head.bias.zero_()
        return made

    def after_step(self) -> None:
        self.base.after_step()
