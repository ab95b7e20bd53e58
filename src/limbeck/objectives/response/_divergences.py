"""How far two choices of one class are apart: each divergence once, for whole logits, heads that are streamed, and a teacher's likeliest classes.

With p the teacher's probabilities and q the student's, each gives its terms, whose sum over the classes it is, and its pull s = dD / d log q, class by
class. By softmax's derivative the gradient to the student's logits z, where q = softmax(z / T), is (s - q sum(s)) / T; a pull is known up to a multiple of
q. A class of probability zero on both sides costs nothing and pulls nothing; one that is impossible for the reference alone costs infinity, where the
formula does.

What is no number among p or q does not show in every term or pull: whoever adds them up sees to that.

Shapes: p, q and their logarithms `[..., C]`, any part of the classes: no class needs another one's numbers.
"""

import math
from functools import cache
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter
from torch import Tensor

__all__ = ["JSD", "Divergence", "ForwardKL", "ReverseKL", "SkewKL", "SkewReverseKL", "TotalVariation", "named"]

Inside = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]


class _Shape(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    total: ClassVar[float | None] = None
    """What the pulls of all classes sum to, where that is the same for all p and q: one pass over a vocabulary less."""


class ForwardKL(_Shape):
    """KL(p || q) = sum p log(p / q): the student must cover all that the teacher holds likely. Hinton et al. 2015, arXiv:1503.02531."""

    kind: Literal["forward_kl"] = "forward_kl"
    total: ClassVar[float | None] = -1.0

    def parts(self, p: Tensor, q: Tensor, log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
        """Terms, pulls."""
        return _weighed(p, log_p - log_q), -p


class ReverseKL(_Shape):
    """KL(q || p) = sum q log(q / p): the student must not hold likely what the teacher does not. Gu et al. 2024 (MiniLLM), arXiv:2306.08543, eq. 1."""

    kind: Literal["reverse_kl"] = "reverse_kl"

    def parts(self, p: Tensor, q: Tensor, log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
        """Terms, pulls: q (log(q / p) + 1), up to a multiple of q."""
        terms = _weighed(q, log_q - log_p)
        return terms, terms


class JSD(_Shape):
    """beta KL(p || m) + (1 - beta) KL(q || m) with m = beta p + (1 - beta) q, the generalised Jensen-Shannon divergence.

    Near 0 it behaves as the forward KL times beta would, near 1 as the reverse times 1 - beta. Agarwal et al. 2024 (GKD), arXiv:2306.13649, sec. 2.
    """

    kind: Literal["jsd"] = "jsd"
    beta: Inside = 0.5

    def parts(self, p: Tensor, q: Tensor, log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
        """Terms, pulls: (1 - beta) q log(q / m); what m's own change costs cancels out."""
        log_m = _mixed(p, q, self.beta)
        pull = _weighed(q, log_q - log_m).mul_(1 - self.beta)
        return _weighed(p, log_p - log_m).mul_(self.beta).add_(pull), pull


class SkewKL(_Shape):
    """KL(p || m) with m = alpha p + (1 - alpha) q: never more than -log(alpha). Ko et al. 2024 (DistiLLM), arXiv:2402.03898, sec. 3.1."""

    kind: Literal["skew_kl"] = "skew_kl"
    alpha: Inside = 0.1

    def parts(self, p: Tensor, q: Tensor, log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
        """Terms, pulls: -(1 - alpha) q p / m."""
        gap = log_p - _mixed(p, q, self.alpha)
        pull = _weighed(q, gap.exp()).mul_(self.alpha - 1)
        return _weighed(p, gap), pull


class SkewReverseKL(_Shape):
    """KL(q || m) with m = alpha q + (1 - alpha) p. Ko et al. 2024 (DistiLLM), arXiv:2402.03898, sec. 3.1."""

    kind: Literal["skew_reverse_kl"] = "skew_reverse_kl"
    alpha: Inside = 0.1

    def parts(self, p: Tensor, q: Tensor, log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
        """Terms, pulls: q (log(q / m) - alpha q / m), up to a multiple of q."""
        gap = log_q - _mixed(q, p, self.alpha)
        pull = _weighed(q, gap - self.alpha * gap.exp())
        return _weighed(q, gap), pull


class TotalVariation(_Shape):
    """Half the sum of |p - q|: between 0 and 1. Wen et al. 2023 (f-DISTILL), arXiv:2307.15190, sec. 3."""

    kind: Literal["total_variation"] = "total_variation"

    def parts(self, p: Tensor, q: Tensor, log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
        """Terms, pulls: q sign(q - p) / 2, zero where they are alike."""
        gap = q - p
        return gap.abs().div_(2), gap.sign_().mul_(q).div_(2)


Divergence = Annotated[ForwardKL | ReverseKL | JSD | SkewKL | SkewReverseKL | TotalVariation, Field(discriminator="kind")]


def named(told: "str | dict[str, object] | ForwardKL | ReverseKL | JSD | SkewKL | SkewReverseKL | TotalVariation") -> Divergence:
    """Return a divergence as a recipe writes it: its name, or a mapping with its options.

    >>> named("jsd").beta
    0.5
    """
    return _reader().validate_python({"kind": told} if isinstance(told, str) else told)


@cache
def _reader() -> TypeAdapter[Divergence]:
    return TypeAdapter(Divergence)


def _weighed(weight: Tensor, value: Tensor) -> Tensor:
    """Weight times value, in the value's place, and zero where the weight is zero, whatever the value.

    Zero times infinity alone is no number here, unless a probability is none.
    """
    return value.mul_(weight).nan_to_num_(nan=0.0, posinf=math.inf, neginf=-math.inf)


def _mixed(a: Tensor, b: Tensor, share: float) -> Tensor:
    """log(share a + (1 - share) b)."""
    return (a * share).add_(b, alpha=1 - share).log_()
