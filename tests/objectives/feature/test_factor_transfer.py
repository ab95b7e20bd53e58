"""`feature.factor_transfer` against a loop, and who learns what."""

from typing import Any, Literal, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.objectives.conftest import check_sound

from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.knowledge import Knowledge
from limbeck.core.task import Task
from limbeck.objectives.feature.factor_transfer import FactorTransfer, factor_transfer_loss, reconstruction_loss

NO_TASK = cast(Task, None)


def bound(shape: tuple[int, ...] = (4, 3, 4, 4), **how: Any) -> tuple[FactorTransfer, Knowledge, Knowledge]:
    student, teacher = Knowledge({}, {"s": torch.randn(shape, requires_grad=True)}), Knowledge({}, {"t": torch.randn(4, 6, 3, 3).relu()})
    objective = FactorTransfer(layers={"s": "t"}, **how)
    objective.bind(student, teacher, NO_TASK, None)
    return objective, student, teacher


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_value_and_gradient_equal_a_loop(p: Literal[1, 2], reduction: Literal["sum", "mean"]) -> None:
    student, teacher = torch.randn(3, 2, 2, 2, dtype=torch.float64, requires_grad=True), torch.randn(3, 2, 2, 2, dtype=torch.float64)
    rows: list[torch.Tensor] = []
    for s, t in zip(student.flatten(1), teacher.flatten(1), strict=True):
        long, wide = sum((x * x for x in s), torch.zeros(())).sqrt(), sum((x * x for x in t), torch.zeros(())).sqrt()
        total = sum(((x / long - y / wide).abs() ** p for x, y in zip(s, t, strict=True)), torch.zeros(()))
        rows.append(total / 8 if reduction == "mean" else total ** (1 / p))
    loop, loss = torch.stack(rows), factor_transfer_loss(student, teacher, p=p, reduction=reduction)
    assert torch.allclose(loss, loop, rtol=1e-6)
    (one,), (other,) = torch.autograd.grad(loss.sum(), student), torch.autograd.grad(loop.sum(), student)
    assert torch.allclose(one, other, rtol=1e-6, atol=1e-12)


def test_equal_factors_cost_nothing_and_hold_still_whatever_their_scale() -> None:
    factors = torch.randn(3, 4).double()
    for p in cast(list[Literal[1, 2]], [1, 2]):
        student = (3 * factors).requires_grad_()
        assert torch.allclose(factor_transfer_loss(student, factors, p=p), torch.zeros(3).double(), atol=1e-12)
        same = factors.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(factor_transfer_loss(same, factors, p=p).sum(), same)
        assert torch.equal(gradient, torch.zeros_like(gradient))


def test_both_is_the_sum_and_each_part_has_its_own_gradient() -> None:
    both, student, teacher = bound()
    paraphraser, translator = cast(Any, both.paraphrasers[0]), both.translators[0]
    maps = teacher.features["t"]
    factors = paraphraser.encoder(maps)
    assert factors.shape == (4, 3, 3, 3), "half of six channels"
    rebuilt, translated = reconstruction_loss(paraphraser.decoder(factors), maps), factor_transfer_loss(translator(student.features["s"]), factors)
    assert torch.allclose(both(student, teacher, {}), rebuilt + translated)
    assert torch.allclose(rebuilt, (paraphraser.decoder(factors) - maps).square().mean((1, 2, 3)))
    own = torch.autograd.grad(rebuilt.sum(), list(paraphraser.parameters()), retain_graph=True)
    whole = torch.autograd.grad(both(student, teacher, {}).sum(), list(paraphraser.parameters()))
    assert all(torch.allclose(one, other) for one, other in zip(own, whole, strict=True)), "factors are targets, not pupils"


def test_a_stage_for_the_paraphraser_and_one_for_the_translator() -> None:
    first, student, teacher = bound(learns="paraphraser")
    assert not first.translators
    optimizer = torch.optim.Adam(first.parameters(), lr=0.01)
    losses: list[float] = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = first(student, teacher, {}).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    assert student.features["s"].grad is None
    second, _, _ = bound(learns="translator")
    with pytest.raises(MismatchError, match=r"paraphrasers.load_state_dict.*learns: both"):
        second(student, teacher, {})
    second.paraphrasers.load_state_dict(first.paraphrasers.state_dict())
    second(student, teacher, {}).sum().backward()
    assert all(p.grad is None and not p.requires_grad for p in second.paraphrasers.parameters())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in second.translators.parameters())
    resumed, _, _ = bound(learns="translator")
    resumed.load_state_dict(second.state_dict())
    assert torch.equal(resumed(student, teacher, {}), second(student, teacher, {}))


@pytest.mark.parametrize("shape", [(4, 3, 3, 3), (4, 5, 8, 8), (4, 1, 1, 1)])
def test_the_translator_meets_any_size_of_map(shape: tuple[int, ...]) -> None:
    objective, student, teacher = bound(shape, rate=0.01)
    assert objective.translators[0](student.features["s"]).shape == (4, 1, 3, 3), "one channel at least"
    assert objective(student, teacher, {}).shape == (4,)


def test_what_does_not_fit_is_refused() -> None:
    for loss in (factor_transfer_loss, reconstruction_loss):
        with pytest.raises(MismatchError, match=r"\[2, 3\].*\[2, 4\]"):
            loss(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(MismatchError, match=r"'s' is \[4, 3\].*maps"):
        bound((4, 3))
    for how, told in [({"rate": 0.0}, "rate is 0"), ({"p": 3}, "p is 3"), ({"learns": "boht"}, "did you mean 'both'"), ({"reduction": "none"}, "no reduction")]:
        with pytest.raises(RecipeError, match=told):
            FactorTransfer(**cast(Any, how))


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from([(1, 1), (1, 1, 1, 1), (2, 3, 5, 4)]),
    st.sampled_from([1e-4, 1.0, 1e4]),
    st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    st.sampled_from([1, 2]),
    st.booleans(),
)
def test_any_factors_have_a_finite_loss_and_gradient(shape: tuple[int, ...], scale: float, dtype: torch.dtype, p: Any, dead: bool) -> None:
    scale = 1.0 if dtype == torch.float16 else scale  # the gradient itself must be a number that half precision has
    student = (torch.randn(shape) * scale * (not dead)).to(dtype).requires_grad_()
    loss = factor_transfer_loss(student, torch.randn(shape).to(dtype) * scale, p=p)
    check_sound(loss, student)
