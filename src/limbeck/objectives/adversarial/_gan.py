"""The two games that a discriminator plays with a student, told by its scores: high for the teacher, low for the student.

`plain`: Goodfellow et al., "Generative Adversarial Networks", NIPS 2014, arXiv:1406.2661, eq. 1; the student's loss is the one that does not saturate, sec. 3.
`wgan_gp`: Gulrajani et al., "Improved Training of Wasserstein GANs", NIPS 2017, arXiv:1704.00028, eq. 3 and algorithm 1.
Shapes: scores `[...]`, one for each prediction or example, and a loss for each.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.core.errors import RecipeError
from limbeck.objectives._options import check_choice

__all__ = ["PENALTY", "ROUNDS", "Game", "check_game", "gradient_penalty", "opponent_loss", "student_loss", "told_apart"]

Game = Literal["plain", "wgan_gp"]

PENALTY = 10.0
"""The weight of the gradient penalty: lambda of algorithm 1."""
ROUNDS: dict[str, int] = {"plain": 1, "wgan_gp": 5}
"""Steps of the discriminator before each of the student: k and n_critic of the papers."""


def check_game(objective: nn.Module, loss: str, rounds: int | None, hidden: int) -> None:
    """Refuse a game that there is not, no rounds, and a discriminator of no width."""
    check_choice(objective, "loss", loss, ROUNDS)
    for name, value in (("rounds", ROUNDS[loss] if rounds is None else rounds), ("hidden", hidden)):
        if value < 1:
            raise RecipeError(f"{name} of {type(objective).__name__} is {value}; it must be 1 or more")


def student_loss(student: Tensor, *, loss: Game) -> Tensor:
    """Return what its score costs the student: -log sigmoid(s) in the plain game, -s against a Wasserstein critic.

    >>> student_loss(torch.tensor([0.0, 3.0]), loss="plain")[0], student_loss(torch.tensor([3.0]), loss="wgan_gp")
    (tensor(0.6931), tensor([-3.]))
    """
    return F.softplus(-student) if loss == "plain" else -student


def opponent_loss(student: Tensor, teacher: Tensor, *, loss: Game) -> Tensor:
    """Return what two scores cost the discriminator: -log sigmoid(t) - log(1 - sigmoid(s)), or s - t for a critic, its penalty not yet added.

    >>> opponent_loss(torch.tensor([0.0]), torch.tensor([0.0]), loss="plain"), opponent_loss(torch.tensor([1.0]), torch.tensor([4.0]), loss="wgan_gp")
    (tensor([1.3863]), tensor([-3.]))
    """
    return F.softplus(-teacher) + F.softplus(student) if loss == "plain" else student - teacher


def told_apart(student: Tensor, teacher: Tensor, *, loss: Game) -> Tensor:
    """Return the share of each pair of scores on its own side of the threshold, ties half: 0 in the plain game, for a critic midway between the two means.

    1 where both sides are always told apart, 1/2 for a discriminator that says the same of everything.

    >>> told_apart(torch.tensor([-1.0, 2.0]), torch.tensor([3.0, 0.0]), loss="plain")
    tensor([1.0000, 0.2500])
    """
    threshold = teacher.new_zeros(()) if loss == "plain" else (student.mean() + teacher.mean()) / 2
    return (2 + (teacher - threshold).sign() - (student - threshold).sign()) / 4


def gradient_penalty(critic: Callable[[Tensor], Tensor], student: Tensor, teacher: Tensor, mix: Tensor) -> Tensor:
    """Return (||grad_x critic(x)|| - 1)^2 at x = mix * teacher + (1 - mix) * student, with a graph to the critic's parameters.

    Sides of one shape and `mix`, which broadcasts to it, give a penalty for each score: the norm is over the axes that the critic's answer has not.
    """
    with torch.enable_grad(), torch.autocast(student.device.type, enabled=False):  # else the way back would be in half precision
        x = (mix * teacher + (1 - mix) * student).detach().requires_grad_()
        scores = critic(x)
        (slope,) = torch.autograd.grad(scores.sum(), x, create_graph=True)
        return (torch.linalg.vector_norm(slope.flatten(scores.ndim), dim=-1) - 1).square()
