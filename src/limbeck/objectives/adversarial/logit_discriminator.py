"""A discriminator tells the teacher's logits from the student's, and the student learns to be taken for the teacher.

Xu et al., "Training Shallow and Thin Networks for Acceleration via Knowledge Distillation with Conditional Adversarial Networks", 2018, arXiv:1709.00513.
"""

import torch
from torch import Tensor, nn

from limbeck.core.errors import MismatchError
from limbeck.core.knowledge import Knowledge, Needs
from limbeck.core.objective import Contest
from limbeck.core.task import Batch, Facts, Task
from limbeck.objectives._teacher import given
from limbeck.objectives.response._logits import check_fit, prepared

from ._discriminator import discriminator
from ._gan import PENALTY, ROUNDS, Game, check_game, gradient_penalty, opponent_loss, student_loss, told_apart

__all__ = ["LogitDiscriminator"]


class LogitDiscriminator(Contest):
    """Be taken for the teacher: -log sigmoid(D(z)), z the student's logits, D a perceptron of three layers, one number per prediction.

    Xu et al. 2018, arXiv:1709.00513: D learns against it, -log sigmoid(D(v)) - log(1 - sigmoid(D(z))), v the teacher's logits, in a phase of its own before
    each step of the student. Theirs also classifies what it is shown; here that is left to `supervised`. With `wgan_gp` D is a critic under a gradient
    penalty of weight 10 (Gulrajani et al. 2017, arXiv:1704.00028) and the student pays -D(z); all rounds see the step's own batch, where theirs draws a
    fresh one for each. D is the player `logit_discriminator` and steps with their Adam (1e-4, betas 0 and 0.9) unless `optimizers` names it.

    Args:
        loss: plain (Goodfellow et al. 2014) or wgan_gp.
        rounds: steps of the discriminator before each of the student; 1 for plain and 5 for wgan_gp, as in their papers, where it is left out.
        hidden: width of the discriminator's inner layers.

    Raises:
        RecipeError: another loss, no rounds, no width.
        MismatchError: no teacher, or answers of another size or kind than the student's.

    Example:
        {kind: adversarial.logit_discriminator, loss: wgan_gp, weight: 0.1}
    """

    perfect = "no"

    def __init__(self, *, loss: Game = "plain", rounds: int | None = None, hidden: int = 128) -> None:
        super().__init__()
        check_game(self, loss, rounds, hidden)
        self.loss: Game = loss
        self.rounds = ROUNDS[loss] if rounds is None else rounds
        self.hidden = hidden
        self.discriminators = nn.ModuleList()
        self._classes = 0

    @property
    def needs(self) -> Needs:
        return Needs()

    @property
    def opponent(self) -> nn.Module:
        return self.discriminators

    def bind(self, student: Knowledge, teacher: Knowledge | None, task: Task, facts: Facts | None) -> None:
        check_fit(self, student, teacher, link=None)
        logits = student.main.logits
        if not self._classes:
            self.discriminators.append(discriminator(logits, self.hidden, kept=logits.ndim - 1))
            self._classes = student.main.classes
        elif self._classes != student.main.classes:
            raise MismatchError(f"LogitDiscriminator was bound to {self._classes} classes, not to {student.main.classes}: make a new one")

    def forward(self, student: Knowledge, teacher: Knowledge | None, batch: Batch) -> Tensor:
        z, _ = prepared(student.main.logits, given(self, teacher).main.logits)
        return student_loss(self.discriminators[0](z), loss=self.loss)

    def oppose(self, student: Knowledge, teacher: Knowledge | None, batch: Batch) -> Tensor:
        z, v = prepared(student.main.logits.detach(), given(self, teacher).main.logits)
        score = self.discriminators[0]
        loss = opponent_loss(score(z), score(v), loss=self.loss)
        if self.loss == "wgan_gp":
            loss = loss + PENALTY * gradient_penalty(score, z, v, torch.rand_like(z[..., :1]))
        return loss

    def told_apart(self, student: Knowledge, teacher: Knowledge | None) -> Tensor:
        z, v = prepared(student.main.logits, given(self, teacher).main.logits)
        return told_apart(self.discriminators[0](z), self.discriminators[0](v), loss=self.loss)
