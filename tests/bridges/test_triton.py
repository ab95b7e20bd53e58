"""The kernel for rows of logits, in Triton's interpreter where there is no GPU, against plain torch in float64; no time was ever measured."""

import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from limbeck.bridges import triton as bridge
from limbeck.core.errors import MissingDependency
from limbeck.core.knowledge import Dense, Hidden
from limbeck.objectives.response._divergences import named
from limbeck.objectives.response._streaming import streamed

INF = float("inf")
installed = pytest.mark.skipif(not bridge.available(), reason="triton is not installed: it comes with torch for CUDA")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PLAYED = "triton" not in sys.modules
"""Whether the interpreter is asked for in time: before triton is imported by whoever it is."""
if DEVICE == "cpu":
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture
def settle(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Tensor]]:
    if DEVICE == "cpu" and not PLAYED:
        pytest.skip("triton was imported before its interpreter was asked for: run this file alone, or with TRITON_INTERPRET=1")
    monkeypatch.setattr(bridge, "_BLOCK", 16)  # several parts in a row
    with np.errstate(all="ignore"):  # the interpreter's numbers are numpy's
        yield bridge.settle


def plain(z: Tensor, y: Tensor | None, labels: Tensor | None, weights: Tensor | None, kind: str, share: float, **how: Any) -> tuple[Tensor, Tensor]:
    """Losses and gradient in float64."""
    leaf, softcap = z.double().cpu().requires_grad_(), how.pop("softcap")
    how.pop("learns")
    capped = leaf if softcap is None else softcap * (leaf / softcap).tanh()
    options = {"jsd": {"beta": share}, "skew_kl": {"alpha": share}, "skew_reverse_kl": {"alpha": share}}.get(kind, {})
    of = [None if one is None else one.cpu() for one in (labels, weights)]
    losses = streamed(Dense(capped), None if y is None else Dense(y.double().cpu()), of[0], weights=of[1], divergence=named({"kind": kind, **options}), **how)
    return losses.detach(), torch.autograd.grad(losses.sum(), leaf)[0]


def agree(settle: Callable[..., Tensor], z: Tensor, y: Tensor | None, labels: Tensor | None = None, weights: Tensor | None = None, **asked: Any) -> None:
    how = {"share": 0.3, "temperature": 1.0, "hard": 0.0, "toward": None, "softcap": None, "learns": True, **asked}
    losses, gradient = plain(z, y, labels, weights, **how)
    logits = z if how["softcap"] is None else how["softcap"] * (z / how["softcap"]).tanh()
    written = logits.clone()
    found = settle(written, y, labels, weights, **how)
    torch.testing.assert_close(found.double().cpu(), losses, rtol=2e-5, atol=2e-6)
    torch.testing.assert_close(written.double().cpu(), gradient, rtol=2e-5, atol=2e-6)
    still = logits.clone()
    assert torch.equal(settle(still, y, labels, weights, **{**how, "learns": False}), found) and torch.equal(still, logits)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


@installed
@pytest.mark.parametrize("kind", bridge.KINDS)
def test_it_is_plain_torch(settle: Callable[..., Tensor], kind: str) -> None:
    z, y, labels, weights = 3 * drawn(2, 37), 3 * drawn(2, 40, seed=1)[:, :37], torch.tensor([0, 36], device=DEVICE), drawn(2, seed=2)
    hows: list[dict[str, Any]] = [{}, {"temperature": 2.5}, {"hard": 0.4, "temperature": 0.7, "toward": 0.3}, {"toward": 0.0, "hard": 0.5}, {"softcap": 4.0}]
    for number, how in enumerate(hows):
        agree(settle, z, y, labels, weights if number % 2 else None, kind=kind, **how)
    agree(settle, z, y.bfloat16(), kind=kind)
    agree(settle, drawn(2, 1), drawn(2, 1, seed=1), kind=kind)
    assert settle(drawn(0, 5), drawn(0, 5), None, None, kind=kind, share=0.5, temperature=1.0, hard=0.0, toward=None, softcap=None, learns=True).shape == (0,)


@installed
def test_the_cross_entropy_alone(settle: Callable[..., Tensor]) -> None:
    agree(settle, drawn(3, 20), None, torch.tensor([0, 19, 7], device=DEVICE), kind="forward_kl", hard=1.0)


@installed
@pytest.mark.parametrize("kind", bridge.KINDS)
def test_the_impossible_and_what_is_no_number(settle: Callable[..., Tensor], kind: str) -> None:
    z, y = drawn(4, 40), drawn(4, 40, seed=1)
    z[:, 16:32] = y[:, 16:32] = -INF  # a whole part
    z[:, 3] = y[:, 3] = -INF
    agree(settle, z, y, kind=kind)
    y[:, 5] = -INF
    if kind != "reverse_kl":
        agree(settle, z, y, kind=kind)
    y[1, 7], z[2, 8] = float("nan"), float("nan")
    losses = settle(z, y, None, None, kind=kind, share=0.5, temperature=1.0, hard=0.0, toward=None, softcap=None, learns=True)
    assert losses.isnan().tolist() == [False, True, True, False]
    assert z[1:3].isnan().any(-1).all() and (kind == "reverse_kl" or not z[[0, 3]].isnan().any())


@installed
@pytest.mark.parametrize("kind", bridge.KINDS)
def test_the_same_answer_twice_costs_nothing(settle: Callable[..., Tensor], kind: str) -> None:
    z, how = 4 * drawn(3, 50), {"share": 0.5, "temperature": 1.0, "hard": 0.0, "toward": None, "softcap": None, "learns": True}
    written = z.clone()
    assert settle(written, z, None, None, kind=kind, **how).abs().max() < 1e-6 and written.abs().max() < 1e-6


@installed
@pytest.mark.parametrize("kind", ["forward_kl", "jsd"])
@pytest.mark.parametrize("way", ["dense", "tokens"])
def test_the_streamed_loss_through_it_is_the_one_without(settle: Callable[..., Tensor], kind: str, way: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    h, w = drawn(3, 4).requires_grad_(), drawn(30, 4).requires_grad_()
    teacher, labels, weights = Hidden(drawn(3, 2), drawn(33, 2)), torch.tensor([0, 29, 4], device=DEVICE), drawn(3).abs()
    found = []
    for fused in (False, True):
        monkeypatch.setattr("limbeck.objectives.response._streaming_passes.fused", lambda z, teacher, told=fused: told)
        how = {"divergence": named(kind), "temperature": 2.0, "hard": 0.3, "toward": 0.5, "weights": weights, "way": way}
        loss = streamed(Hidden(h, w, softcap=3.0), teacher, labels, budget=None if way == "dense" else 2000, **how)
        found.append((loss, *torch.autograd.grad(loss.sum(), (h, w))))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-6)


@pytest.mark.skipif(bridge.available(), reason="triton is installed")
def test_without_triton_it_says_what_is_missing() -> None:
    with pytest.raises(MissingDependency, match="triton"):
        bridge.settle(torch.zeros(1, 2), None, None, None, kind="jsd", share=0.5, temperature=1.0, hard=0.0, toward=None, softcap=None, learns=True)
