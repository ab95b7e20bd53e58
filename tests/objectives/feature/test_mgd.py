"""`feature.mgd` against a loop, and masks that depend on the example and the epoch alone."""

from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.objectives.conftest import check_sound
from torch import Tensor

from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.knowledge import Dense, Knowledge
from limbeck.core.schedule import Clock
from limbeck.core.task import Task
from limbeck.objectives.feature._mask import kept
from limbeck.objectives.feature.mgd import MGD, mgd_loss

DTYPES = st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64])
IDS = torch.tensor([7, 2**62, 0, -3])


def bound(ours: Tensor, theirs: Tensor, **options: Any) -> tuple[MGD, Knowledge, Knowledge]:
    mgd = MGD(layers={"s": "t"}, **options)
    student, teacher = Knowledge({"main": Dense(torch.zeros(len(ours), 2))}, {"s": ours}), Knowledge({}, {"t": theirs})
    mgd.bind(student, teacher, cast(Task, None), None)
    return mgd, student, teacher


def test_it_is_the_sum_of_squares_of_a_loop_value_and_gradient() -> None:
    generated, teacher = torch.randn(2, 2, 3, 2, 3, dtype=torch.float64).unbind()
    generated.requires_grad_()
    loss = mgd_loss(generated, teacher)
    for row in range(2):
        squares = [(a - b) ** 2 for a, b in zip(generated[row].flatten().tolist(), teacher[row].flatten().tolist(), strict=True)]
        assert loss[row].item() == pytest.approx(sum(squares), rel=1e-9)
    (gradient,) = torch.autograd.grad(loss.sum(), generated)
    assert torch.allclose(gradient, 2 * (generated - teacher).detach())


@pytest.mark.parametrize("masks", ["places", "channels"])
def test_the_whole_objective_equals_its_steps_written_out(masks: str) -> None:
    mgd, student, teacher = bound(torch.randn(4, 3, 4, 5), torch.randn(4, 3, 4, 5), masks=masks, ratio=0.5)
    mgd.clock = Clock(2.75, 4)
    holes = kept(IDS, 20 if masks == "places" else 3, ratio=0.5, epoch=2, layer=0).float().reshape((4, 1, 4, 5) if masks == "places" else (4, 3, 1, 1))
    assert set(holes.flatten().tolist()) == {0.0, 1.0}
    (generate,) = mgd.generators
    expected = mgd_loss(generate(student.features["s"] * holes), teacher.features["t"])
    assert torch.allclose(mgd(student, teacher, {"id": IDS}), expected, rtol=1e-5)


@pytest.mark.parametrize("ratio", [0.0, 0.15, 0.65])
def test_the_share_that_is_masked_is_the_ratio_and_places_know_nothing_of_each_other(ratio: float) -> None:
    mask = kept(torch.arange(500), 64, ratio=ratio, epoch=3, layer=1)
    assert 1 - mask.float().mean().item() == pytest.approx(ratio, abs=5 * (ratio * (1 - ratio) / mask.numel()) ** 0.5)
    if ratio:
        together = (mask[:, 1:] == mask[:, :-1]).float().mean().item()
        assert together == pytest.approx(ratio**2 + (1 - ratio) ** 2, abs=0.02)
        by_example = mask.float().mean(1)
        assert by_example.var().item() == pytest.approx(ratio * (1 - ratio) / 64, rel=0.3), "no example is masked more than chance has it"


def test_a_mask_depends_on_the_example_the_epoch_and_the_layer_alone() -> None:
    how = {"ratio": 0.5, "epoch": 0, "layer": 0}
    whole = kept(IDS, 40, **how)
    assert torch.equal(kept(IDS.flip(0), 40, **how).flip(0), whole)
    assert torch.equal(torch.cat([kept(one[None], 40, **how) for one in IDS]), whole)
    others = [kept(IDS, 40, **(how | change)) for change in ({"epoch": 1}, {"layer": 1})]
    assert all(0.3 < (other == whole).float().mean() < 0.7 for other in [*others, kept(IDS + 1, 40, **how)])
    state = torch.get_rng_state()
    kept(IDS, 40, **how)
    assert torch.equal(torch.get_rng_state(), state)


@settings(max_examples=25, deadline=None)
@given(st.tuples(*(st.integers(1, 4),) * 4), st.tuples(*(st.integers(1, 4),) * 3), st.sampled_from([1e-4, 1.0, 1e4]), DTYPES)
def test_every_shape_scale_and_precision_is_finite(small: tuple[int, ...], large: tuple[int, ...], scale: float, dtype: torch.dtype) -> None:
    ours, theirs = (scale * torch.randn(small)).to(dtype).requires_grad_(), (scale * torch.randn(small[0], *large)).to(dtype)
    mgd, student, teacher = bound(ours, theirs)
    loss = mgd(student, teacher, {"id": torch.arange(small[0])})
    check_sound(loss, ours)


def test_what_cannot_be_is_refused() -> None:
    assert MGD(layers={"s": "t"}).needs.ids
    with pytest.raises(RecipeError, match="ratio is 1"):
        MGD(ratio=1.0)
    with pytest.raises(RecipeError, match="did you mean 'channels'"):
        MGD(masks=cast(Any, "channel"))
    with pytest.raises(MismatchError, match=r"'s' is \[2, 4\].*maps"):
        bound(torch.zeros(2, 4), torch.zeros(2, 4))
    with pytest.raises(MismatchError, match=r"\[2, 4, 2, 2\].*\[2, 4, 3, 3\]"):
        mgd_loss(torch.zeros(2, 4, 2, 2), torch.zeros(2, 4, 3, 3))
