"""Any comparison of answers, of logits without their mean and scale.

Sun et al., "Logit Standardization in Knowledge Distillation", CVPR 2024, arXiv:2403.01427, algorithms 1 and 2.
"""

import math
from typing import Any, Literal

from torch import Tensor, nn

from limbeck.core.errors import RecipeError
from limbeck.core.knowledge import Dense, Knowledge, Needs
from limbeck.core.lookup import build
from limbeck.core.objective import Objective
from limbeck.core.task import Batch, Facts, Task
from limbeck.objectives._options import check_choice
from limbeck.objectives._precision import at_least_float32
from limbeck.objectives._teacher import given

from ._centred import centred
from ._logits import check_link

__all__ = ["Standardized", "standardized_logits"]

Deviation = Literal["population", "sample"]


def standardized_logits(logits: Tensor, *, deviation: Deviation = "population") -> Tensor:
    """Return (z - mean) / deviation over the C classes, the deviation by 1/C or, with `sample`, by 1/(C - 1).

    Logits `[..., C]` give `[..., C]`. Equal logits have no deviation, and give zeros without a gradient. The argmax stays, and no value is beyond sqrt(C - 1).

    >>> import torch
    >>> standardized_logits(torch.tensor([[1.0, 2.0, 3.0]]))
    tensor([[-1.2247,  0.0000,  1.2247]])
    """
    logits = at_least_float32(logits)
    classes = logits.shape[-1]
    return centred(logits)[0] * math.sqrt(classes if deviation == "population" else classes - 1)


class Standardized(Objective):
    """Give another objective the logits of both sides as z-scores, so that it matches how classes relate and not how large the logits are.

    Sun et al. 2024, arXiv:2403.01427, algorithms 1 and 2: their base temperature is the temperature of the objective inside (2 for `response.kd`), their
    weight 9 stands beside a cross-entropy of weight 0.1. The paper's deviation divides by C; the authors' code, and torchdistill 1.1.5, take torch's, by
    C - 1, and add 1e-7: `deviation: sample`. What the objective inside is (batchwise, with labels, with layers), this is too; its layers it sees as they are.

    Args:
        of: the objective inside, as in a recipe, without a weight; {kind: response.kd, temperature: 2.0} where it is left out, as in the paper.
        deviation: population is the paper's, over C; sample the authors' code's, over C - 1.

    Raises:
        RecipeError: an objective that reads no outputs of a teacher, no kind, a weight inside, another deviation.
        MismatchError: what the objective inside refuses, or answers that are no choice of one class.

    Example:
        {kind: response.standardized, of: {kind: response.kd, temperature: 2.0}, weight: 9}
    """

    usual = 9.0

    def __init__(self, *, of: Objective | dict[str, Any] | None = None, deviation: Deviation = "population") -> None:
        super().__init__()
        check_choice(self, "deviation", deviation, ("population", "sample"))
        self.of = of if isinstance(of, Objective) else _built({"kind": "response.kd", "temperature": 2.0} if of is None else of)
        self.deviation: Deviation = deviation
        self.batchwise, self.perfect = self.of.batchwise, self.of.perfect
        self.undecided = self.of.undecided
        if not self.undecided:
            self._check()

    @property
    def needs(self) -> Needs:
        return self.of.needs

    def choose(self, student: Knowledge, teacher: Knowledge | None) -> None:
        self.of.choose(student, teacher)
        self.undecided, self.said = self.of.undecided, self.of.said
        self._check()

    def bind(self, student: Knowledge, teacher: Knowledge | None, task: Task, facts: Facts | None) -> None:
        self.of.bind(self._seen(student), self._seen(given(self, teacher)), task, facts)
        check_link(self, student, "softmax")
        self.said = self.of.said

    def forward(self, student: Knowledge, teacher: Knowledge | None, batch: Batch) -> Tensor:
        return self.of(self._seen(student), self._seen(given(self, teacher)), batch)

    def graft(self, student: nn.Module) -> nn.Module:
        return self.of.graft(student)

    def after_step(self) -> None:
        self.of.after_step()

    def _check(self) -> None:
        reads = self.of.needs.teacher
        if reads is None or not reads.outputs:
            raise RecipeError(
                f"Standardized changes a teacher's outputs and {type(self.of).__name__} reads none: write it by itself, or give a response objective"
            )

    def _seen(self, said: Knowledge) -> Knowledge:
        answers = {name: said.whole(name) for name in said.outputs}
        outputs = {name: Dense(standardized_logits(one.logits, deviation=self.deviation), one.link) for name, one in answers.items()}
        return Knowledge(outputs, said.features, said.mask, said.modules, said.input_gradient, said.shapes)


def _built(of: dict[str, Any]) -> Objective:
    rest = dict(of)
    kind = rest.pop("kind", None)
    if not isinstance(kind, str):
        raise RecipeError(f"response.standardized stands around another objective and {of!r} names none: of: {{kind: response.kd, temperature: 2.0}}")
    if "weight" in rest:
        raise RecipeError("the weight belongs to response.standardized, not into its `of`: write it one level up")
    return build("objectives", kind, rest)
