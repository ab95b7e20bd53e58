"""Discriminators tell the teacher's features from the student's, and the student learns to be taken for the teacher.

Shen et al., "MEAL: Multi-Model Ensemble via Adversarial Learning", AAAI 2019, arXiv:1812.02425; on whole maps by convolutions: Chung et al., "Feature-map-level
Online Adversarial Knowledge Distillation", ICML 2020, arXiv:2002.01775.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from limbeck.core.knowledge import Knowledge
from limbeck.core.objective import Contest
from limbeck.core.task import Batch
from limbeck.objectives._layered import Layered, Layers
from limbeck.objectives._precision import at_least_float32
from limbeck.objectives._projectors import projectors

from ._discriminator import discriminator
from ._gan import PENALTY, ROUNDS, Game, check_game, gradient_penalty, opponent_loss, student_loss, told_apart

__all__ = ["FeatureDiscriminator"]


class FeatureDiscriminator(Layered, Contest):
    """Be taken for the teacher, layer by layer: the sum over pairs of layers of -log sigmoid(D(r(f))), f the student's feature, one number per example.

    Shen et al. 2019, arXiv:1812.02425: D learns against it, -log sigmoid(D(g)) - log(1 - sigmoid(D(r(f)))), g the teacher's feature, in a phase of its own
    before each step of the student. Theirs sees features pooled to vectors; here a map's D is a small network of convolutions whose scores are averaged over
    places (maps as in Chung et al. 2020), that of vectors and sequences a perceptron. Their code steps both sides at once. r brings the student's feature to
    the teacher's shape where they differ and learns with the student. `wgan_gp` as in `adversarial.logit_discriminator`. The discriminators of all pairs are
    the one player `feature_discriminator`, and step as the one of `adversarial.logit_discriminator` does.

    Args:
        layers: student's layer -> teacher's layer, such as {layer3: layer3}; auto takes the end of the last stage.
        loss: plain (Goodfellow et al. 2014) or wgan_gp.
        rounds: steps of the discriminators before each of the student; 1 for plain and 5 for wgan_gp, as in their papers, where it is left out.
        hidden: width of the discriminators' inner layers.

    Raises:
        RecipeError: another loss, no rounds, no width.
        MismatchError: no teacher, or features that no projector brings together.

    Example:
        {kind: adversarial.feature_discriminator, layers: {layer2: layer2, pool: pool}, loss: wgan_gp, weight: 0.1}
    """

    wish = "last"
    perfect = "no"

    def __init__(self, *, layers: Layers = "auto", loss: Game = "plain", rounds: int | None = None, hidden: int = 64) -> None:
        super().__init__(layers)
        check_game(self, loss, rounds, hidden)
        self.loss: Game = loss
        self.rounds = ROUNDS[loss] if rounds is None else rounds
        self.hidden = hidden
        self.projectors = nn.ModuleList()
        self.discriminators = nn.ModuleList()

    @property
    def opponent(self) -> nn.Module:
        return self.discriminators

    def fit(self, features: Sequence[tuple[Tensor, Tensor]]) -> None:
        self.projectors = projectors(features, self.pairs)
        self.discriminators = nn.ModuleList(discriminator(theirs, self.hidden) for _, theirs in features)

    def forward(self, student: Knowledge, teacher: Knowledge | None, batch: Batch) -> Tensor:
        losses = [student_loss(score(ours), loss=self.loss) for score, ours, _ in self._sides(student, teacher)]
        return torch.stack(losses).sum(0)

    def oppose(self, student: Knowledge, teacher: Knowledge | None, batch: Batch) -> Tensor:
        losses: list[Tensor] = []
        with torch.no_grad():
            sides = list(self._sides(student, teacher))
        for score, ours, theirs in sides:
            loss = opponent_loss(score(ours), score(theirs), loss=self.loss)
            if self.loss == "wgan_gp":
                mix = torch.rand(len(ours), *[1] * (ours.ndim - 1), dtype=ours.dtype, device=ours.device)
                loss = loss + PENALTY * gradient_penalty(score, ours, theirs, mix)
            losses.append(loss)
        return torch.stack(losses).sum(0)

    def told_apart(self, student: Knowledge, teacher: Knowledge | None) -> Tensor:
        return torch.stack([told_apart(score(ours), score(theirs), loss=self.loss) for score, ours, theirs in self._sides(student, teacher)]).mean(0)

    def _sides(self, student: Knowledge, teacher: Knowledge | None) -> Iterator[tuple[nn.Module, Tensor, Tensor]]:
        """Each pair's discriminator, and what it is shown of either side, in one shape."""
        for score, project, (ours, theirs) in zip(self.discriminators, self.projectors, self.matched(student, teacher), strict=True):
            yield score, at_least_float32(project(ours)), at_least_float32(theirs)
