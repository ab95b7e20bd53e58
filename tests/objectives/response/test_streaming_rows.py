"""A teacher's likeliest classes: the others' mass is summed up where it can be, and reckoned with by logarithms where it is too small, to the same gradient."""

import pytest
import torch
from torch import Tensor

from limbeck.core.knowledge import Dense, TopK
from limbeck.objectives.response._divergences import named
from limbeck.objectives.response._streaming import streamed
from limbeck.objectives.response._streaming_rows import Rows

V, K = 40, 6


def sides(peak: float) -> tuple[Tensor, TopK]:
    torch.manual_seed(0)
    z = torch.randn(20, V, dtype=torch.float64)
    y = torch.randn(20, V, dtype=torch.float64)
    y[:, :K] += 2.0
    log_p, index = (y / 2.0).log_softmax(-1).topk(K)
    z = z.scatter_add(-1, index, torch.full_like(log_p, peak))  # the student's mass on the others is about exp(-peak / 2.0)
    z, log_p = z.float().double(), log_p.float().double()  # what is asked about is the same in both
    return z, TopK(log_p, index, (1 - log_p.exp().sum(-1)).log(), 2.0, V)


def asked(z: Tensor, teacher: TopK, kind: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    z = z.detach().to(dtype, copy=True).requires_grad_()
    labels = teacher.indices[:, 0]
    losses = streamed(Dense(z), teacher, labels, divergence=named(kind), temperature=2.0, hard=0.25)
    losses.sum().backward()
    assert z.grad is not None
    return losses.detach().double(), z.grad.double()


@pytest.mark.parametrize("kind", ["forward_kl", "jsd", "reverse_kl", "total_variation"])
@pytest.mark.parametrize("peak", [0.0, 20.0, 90.0, 140.0, 400.0])
def test_float32_is_float64_however_little_is_left_to_the_others(kind: str, peak: float) -> None:
    z, teacher = sides(peak)
    exact, rounded = (asked(z, teacher, kind, dtype) for dtype in (torch.float64, torch.float32))
    assert exact[0].isfinite().all()
    assert torch.allclose(rounded[0], exact[0], rtol=2e-5, atol=2e-6)
    assert torch.allclose(rounded[1], exact[1], rtol=2e-5, atol=2e-6)


def test_both_ways_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    z, teacher = sides(3.0)
    summed = asked(z, teacher, "jsd", torch.float64)
    monkeypatch.setattr(Rows, "_summed_up", lambda *_: False)
    reckoned = asked(z, teacher, "jsd", torch.float64)
    for one, other in zip(summed, reckoned, strict=True):
        assert torch.allclose(one, other, rtol=1e-12, atol=1e-14)
