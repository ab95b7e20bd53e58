"""Products of states and a head: parts are the whole, and what is rounded on the way."""

import math

import pytest
import torch
from torch import Tensor

from limbeck.core.knowledge import Dense, Hidden
from limbeck.objectives.response import _streaming_products as products
from limbeck.objectives.response._divergences import JSD, Divergence, ForwardKL, ReverseKL
from limbeck.objectives.response._streaming import Way, streamed
from limbeck.objectives.response._streaming_products import go_back, logits, room


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("biased", [False, True])
def test_parts_are_the_whole(dtype: torch.dtype, biased: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("limbeck.objectives.response._streaming_products._BLOCK", 3)
    draw = torch.Generator().manual_seed(0)
    h, w, bias, pull = (torch.randn(*shape, generator=draw, dtype=torch.float64).to(dtype) for shape in ((5, 4), (10, 4), (10,), (5, 10)))
    answer = Hidden(h, w, bias if biased else None, scale=0.7, softcap=2.0)
    at, to = torch.float64 if dtype == torch.float64 else torch.float32, 1e-12 if dtype == torch.float64 else 1e-6
    exact = Hidden(h.to(at), w.to(at), bias.to(at) if biased else None, 0.7, 2.0).logits
    space = room(answer, 5 * 7, at)
    torch.testing.assert_close(logits(answer, slice(1, 4), 2, 9, space), exact[1:4, 2:9], rtol=to, atol=to)
    assert room(Dense(exact), 10, at) is None and logits(Dense(exact), slice(1, 4), 2, 9, None).data_ptr() == exact[1:4, 2:9].data_ptr()
    pull = pull.to(at)
    grads = torch.empty(5, 4, dtype=at), torch.full((10, 4), float("nan"), dtype=at), torch.zeros(10, dtype=at)
    for rows, first in ((slice(0, 2), True), (slice(2, 5), False)):
        for start, end in ((0, 7), (7, 10)):
            go_back(answer, pull[rows, start:end].clone(), rows, start, grads, first_rows=first)
    right = 0.7 * pull @ w.to(at), 0.7 * pull.t() @ h.to(at), 0.7 * pull.sum(0)
    torch.testing.assert_close(grads, right, rtol=10 * to, atol=10 * to)


def test_the_heads_own_gradient_is_summed_in_float32() -> None:
    h, w = torch.ones(512, 1).bfloat16(), torch.zeros(2, 1).bfloat16().requires_grad_()
    (found,) = torch.autograd.grad(
        3 * streamed(Hidden(h, w), Dense(torch.tensor([[0.0, 1.0]]).expand(512, 2)), way="tokens", budget=200).sum(), w
    )  # two rows at a time
    assert found[0].item() == pytest.approx(3 * 512 * (0.5 - 1 / (1 + math.e)), rel=0.004)


@pytest.mark.parametrize("divergence", [ForwardKL(), ReverseKL(), JSD()], ids=lambda one: one.kind)
@pytest.mark.parametrize("way", ["tokens", "vocabulary"])
def test_what_a_gpu_rounds_is_less_than_logits_in_bfloat16_lose(divergence: Divergence, way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU's products of bfloat16, which give float32, played on a CPU: what they round is the gradient to the logits, once."""
    draw = torch.Generator().manual_seed(0)
    h, w = torch.randn(24, 64, generator=draw).bfloat16(), torch.randn(1000, 64, generator=draw).div(8).bfloat16()
    teacher = Hidden((h.float() + 0.1 * torch.randn(24, 64, generator=draw)).bfloat16(), w)

    def played(one: Tensor, other: Tensor, *, out_dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
        assert one.dtype == other.dtype == torch.bfloat16 and out_dtype == torch.float32
        product = one.float() @ other.float()
        return product if out is None else out.copy_(product)

    def gradients(kind: torch.dtype) -> tuple[Tensor, ...]:
        leaves = [one.to(kind).requires_grad_() for one in (h, w)]
        theirs = Hidden(teacher.states.to(kind), teacher.weight.to(kind))
        return torch.autograd.grad(streamed(Hidden(leaves[0], leaves[1], scale=0.9), theirs, divergence=divergence, way=way, budget=100_000).sum(), leaves)

    exact = gradients(torch.float64)
    leaves = [one.clone().requires_grad_() for one in (h, w)]
    q, p = (0.9 * (leaves[0] @ leaves[1].t()).float()).softmax(-1), teacher.logits.float().softmax(-1)
    m = (p + q) / 2
    terms = {"forward_kl": p * (p / q).log(), "reverse_kl": q * (q / p).log(), "jsd": (p * (p / m).log() + q * (q / m).log()) / 2}
    dense = torch.autograd.grad(terms[divergence.kind].sum(), leaves)
    monkeypatch.setattr(products, "_rounded", lambda weight, states: weight.dtype == states.dtype == torch.bfloat16)
    monkeypatch.setattr(torch, "mm", played)
    for one, other, right in zip(gradients(torch.bfloat16), dense, exact, strict=True):
        error, usual = ((found - right).norm() / right.norm() for found in (one, other))
        assert error < 0.005 and 5 * error < usual
