"""How far two choices of one class are apart: each divergence once, for whole logits, heads that are streamed, and a teacher's likeliest classes.

With p the teacher's probabilities and q the student's, each gives its terms, whose sum over the classes it is, and its pull s = dD / d log q, class by
class. By softmax's derivative the gradient to the student's logits z, where q = softmax(z / T), is (s - q sum(s)) / T; a pull is known up to a multiple of
q. A class of probability zero on both sides costs nothing and pulls nothing; one that is impossible for the reference alone costs infinity, where the
formula does.
"""

import math
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter
from torch import Tensor

__all__ = ["JSD", "Divergence", "ForwardKL", "ReverseKL", "SkewKL", "SkewReverseKL", "TotalVariation", "named"]

Inside = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]


class _Shape(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ForwardKL(_Shape):
    """KL(p || q) = sum p log(p / q): the student must cover all that the teacher holds likely. Hinton et al. 2015, arXiv:1503.02531."""

    kind: Literal["forward_kl"] = "forward_kl"

    def terms(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        return _weighed(log_p, log_p - log_q)

    def pull(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        return log_p.exp().neg_()


class ReverseKL(_Shape):
    """KL(q || p) = sum q log(q / p): the student must not hold likely what the teacher does not. Gu et al. 2024 (MiniLLM), arXiv:2306.08543, eq. 1."""

    kind: Literal["reverse_kl"] = "reverse_kl"

    def terms(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        return _weighed(log_q, log_q - log_p)

    def pull(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        return _weighed(log_q, log_q - log_p)


class JSD(_Shape):
    """beta KL(p || m) + (1 - beta) KL(q || m) with m = beta p + (1 - beta) q, the generalised Jensen-Shannon divergence.

    Near 0 it behaves as the forward KL divided by beta would, near 1 as the reverse. Agarwal et al. 2024 (GKD), arXiv:2306.13649, sec. 2.
    """

    kind: Literal["jsd"] = "jsd"
    beta: Inside = 0.5

    def terms(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        log_m = _mixed(log_p, log_q, self.beta)
        return self.beta * _weighed(log_p, log_p - log_m) + (1 - self.beta) * _weighed(log_q, log_q - log_m)

    def pull(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        return _weighed(log_q, log_q - _mixed(log_p, log_q, self.beta)).mul_(1 - self.beta)


class SkewKL(_Shape):
    """KL(p || m) with m = alpha p + (1 - alpha) q: never more than -log(alpha). Ko et al. 2024 (DistiLLM), arXiv:2402.03898, sec. 3.1."""

    kind: Literal["skew_kl"] = "skew_kl"
    alpha: Inside = 0.1

    def terms(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        return _weighed(log_p, log_p - _mixed(log_p, log_q, self.alpha))

    def pull(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        return _weighed(log_q, (log_p - _mixed(log_p, log_q, self.alpha)).exp()).mul_(self.alpha - 1)


class SkewReverseKL(_Shape):
    """KL(q || m) with m = alpha q + (1 - alpha) p. Ko et al. 2024 (DistiLLM), arXiv:2402.03898, sec. 3.1."""

    kind: Literal["skew_reverse_kl"] = "skew_reverse_kl"
    alpha: Inside = 0.1

    def terms(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        return _weighed(log_q, log_q - _mixed(log_q, log_p, self.alpha))

    def pull(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        gap = log_q - _mixed(log_q, log_p, self.alpha)
        return _weighed(log_q, gap - self.alpha * gap.exp())


class TotalVariation(_Shape):
    """Half the sum of |p - q|: between 0 and 1. Wen et al. 2023 (f-DISTILL), arXiv:2307.15190, sec. 3."""

    kind: Literal["total_variation"] = "total_variation"

    def terms(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        return (log_p.exp() - log_q.exp()).abs() / 2

    def pull(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        q = log_q.exp()
        return (q - log_p.exp()).sign_().mul_(q).div_(2)


Divergence = Annotated[ForwardKL | ReverseKL | JSD | SkewKL | SkewReverseKL | TotalVariation, Field(discriminator="kind")]


def named(told: "str | dict[str, object] | ForwardKL | ReverseKL | JSD | SkewKL | SkewReverseKL | TotalVariation") -> Divergence:
    """Return a divergence as a recipe writes it: its name, or a mapping with its options.

    >>> named("jsd").beta
    0.5
    """
    return TypeAdapter(Divergence).validate_python({"kind": told} if isinstance(told, str) else told)


def _weighed(log_weight: Tensor, value: Tensor) -> Tensor:
    """exp(log_weight) value, and zero where the weight is zero, whatever the value."""
    weight = log_weight.exp()
    return value.masked_fill(weight == 0, 0.0) * weight


def _mixed(log_a: Tensor, log_b: Tensor, share: float) -> Tensor:
    """log(share a + (1 - share) b), for a class that is impossible on both sides the least number instead of minus infinity: no difference becomes NaN."""
    both = torch.logaddexp(log_a + math.log(share), log_b + math.log1p(-share))
    return both.clamp_min(torch.finfo(both.dtype).min)
