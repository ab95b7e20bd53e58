"""`graph.irg` against a loop over examples and pairs."""

from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from limbeck import Offline
from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.knowledge import Dense, Knowledge
from limbeck.core.task import Task
from limbeck.objectives.graph.irg import IRG, irg_loss

NO_TASK = cast(Task, None)


def squares(one: Tensor, other: Tensor) -> Tensor:
    return torch.stack([(a - b) ** 2 for a, b in zip(one.flatten(), other.flatten(), strict=True)])


def pooled(x: Tensor) -> Tensor:
    return x if x.ndim == 2 else x.mean(1) if x.ndim == 3 else x.mean((2, 3))


def divided(x: Tensor, scale: str) -> Tensor:
    return x / x.max() if scale == "max" else x


def edges(x: Tensor, scale: str) -> Tensor:
    rows = pooled(x)
    return divided(torch.stack([squares(one, other).sum() for one in rows for other in rows]), scale)


def moved(x: Tensor, following: Tensor, scale: str) -> Tensor:
    """The second has half as many channels as the first."""
    halved = (pooled(x)[:, ::2] + pooled(x)[:, 1::2]) / 2
    return divided(torch.stack([squares(one, other).sum() for one, other in zip(halved, pooled(following), strict=True)]), scale)


@pytest.mark.parametrize("scale", ["max", "none"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_it_equals_a_loop_in_value_and_gradient(scale: Any, reduction: Any) -> None:
    shapes: list[Any] = [(4, 8, 3, 2), (4, 4, 5), (4, 10, 1, 1), (4, 5)]
    shapes[1] = (4, 3, 4)  # a sequence of 4 channels
    ours = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes[:2]]
    theirs = [torch.randn(shape, dtype=torch.float64) for shape in shapes[2:]]
    logits = torch.randn(4, 3, dtype=torch.float64, requires_grad=True), torch.randn(4, 3, dtype=torch.float64)
    how: dict[str, Any] = {"vertices": 0.3, "edges": 2.0, "transformations": 7.0, "scale": scale, "reduction": reduction}
    loss = irg_loss(*logits, ours, theirs, edge_transformations=True, **how)
    norm = torch.mean if reduction == "mean" else torch.sum
    graphs = [(edges(one, scale), edges(other, scale)) for one, other in zip(ours, theirs, strict=True)]
    expected = 0.3 * norm(squares(*logits)) + 2 * sum(norm(squares(*pair)) for pair in graphs)
    expected = expected + 7 * norm(squares(moved(ours[0], ours[1], scale), moved(theirs[0], theirs[1], scale)))
    (first, their_first), (second, their_second) = graphs
    expected = expected + 7 * (norm(squares(first, second)) - norm(squares(their_first, their_second))) ** 2
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    leaves = [*ours, logits[0]]
    for one, other in zip(torch.autograd.grad(loss, leaves), torch.autograd.grad(expected, leaves), strict=True):
        assert torch.allclose(one, other, rtol=1e-6, atol=1e-9)


def test_edges_are_blind_to_scale_and_turns_only_when_they_are_divided() -> None:
    teacher = torch.randn(5, 6)
    turned, _ = torch.linalg.qr(torch.randn(6, 6))
    logits = torch.randn(5, 3)
    assert irg_loss(logits, logits, [3 * teacher @ turned], [teacher]).item() == pytest.approx(0, abs=1e-9)
    assert irg_loss(logits, logits, [3 * teacher @ turned], [teacher], scale="none").item() > 1


@pytest.mark.parametrize("of", ["logits", "features", "both"])
def test_each_kind_reads_what_it_says_and_trains_the_student_through_real_modules(of: Any) -> None:
    def net(width: int) -> nn.Sequential:
        body = [nn.Conv2d(1, width, 3, 2, 1), nn.ReLU(), nn.Conv2d(width, 2 * width, 3, 2, 1), nn.ReLU()]
        return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, 3))

    student, teacher = net(4), net(6)
    x, y = torch.randn(5, 1, 8, 8), torch.tensor([0, 1, 2, 0, 1])
    scheme = Offline(student, teacher, [irg := IRG(of=of)], example=(x, y))
    assert bool(irg.needs.student.outputs) == (of != "features")
    assert bool(irg.needs.student.features) == (of != "logits")
    assert len(list(irg.parameters())) == (2 if of == "features" else 0)
    loss = scheme((x, y)).loss
    both = [[net[:2](x), net[:4](x)] for net in (student, teacher)]
    if of == "both":
        assert torch.allclose(loss, irg_loss(student(x), teacher(x), *both))
    elif of == "logits":
        assert torch.allclose(loss, irg_loss(student(x), teacher(x), [student(x)], [teacher(x)]))
    else:
        vertices = irg.project[0](both[0][1].mean((2, 3))), both[1][1].mean((2, 3))
        assert torch.allclose(loss, irg_loss(*vertices, *both))
    loss.backward()
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in student.parameters())
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_masked_examples_are_in_no_graph() -> None:
    irg, mask = IRG(of="logits"), torch.tensor([True, False, True, True])
    ours, theirs = torch.randn(2, 4, 3).unbind()
    student, teacher = Knowledge({"main": Dense(ours)}, mask=mask), Knowledge({"main": Dense(theirs)})
    irg.bind(student, teacher, NO_TASK, None)
    assert torch.equal(irg(student, teacher, {}), irg_loss(ours[mask], theirs[mask], [ours[mask]], [theirs[mask]]))
    nobody = Knowledge({"main": Dense(ours.requires_grad_())}, mask=torch.zeros(4, dtype=torch.bool))
    assert irg(nobody, teacher, {}).item() == 0


@given(
    n=st.integers(1, 5), shape=st.sampled_from([(1,), (3,), (2, 4), (2, 3, 5), (1, 1, 1)]), scale=st.sampled_from([1e-4, 1.0, 1e4]),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]), divide=st.sampled_from(["max", "none"]),
)  # fmt: skip
@settings(max_examples=25, deadline=None)
def test_it_is_finite_everywhere(n: int, shape: tuple[int, ...], scale: float, dtype: torch.dtype, divide: Any) -> None:
    made = [(torch.randn(n, *one) * scale).to(dtype) for one in (shape, (4, 3, 3), (2,), (5,), (3,), (3,))]
    loss = irg_loss(made[4], made[5], made[:2], made[2:4], edge_transformations=True, scale=divide)
    assert loss.isfinite()
    draw = [(one if dtype == torch.float64 else one.float()).requires_grad_() for one in made]  # a slope above 65504 has no float16
    irg_loss(draw[4], draw[5], draw[:2], draw[2:4], edge_transformations=True, scale=divide).backward()
    assert all(one.grad is not None and one.grad.isfinite().all() for one in (*draw[:2], draw[4]))
    assert all(one.grad is None for one in (*draw[2:4], draw[5]))
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_what_cannot_be_meant_is_refused() -> None:
    with pytest.raises(MismatchError, match=r"\[2, 4\].*\[2, 5\]"):
        irg_loss(torch.zeros(2, 4), torch.zeros(2, 5), [], [])
    with pytest.raises(RecipeError, match="did you mean 'features'"):
        IRG(of=cast(Any, "feature"))
    with pytest.raises(RecipeError, match="reads no layers"):
        IRG(of="logits", layers={"a": "b"})
    with pytest.raises(RecipeError, match="edges is -1"):
        IRG(edges=-1)
    with pytest.raises(MismatchError, match=r"\[2, 4\].*\[2, 5\].*of: features"):
        IRG(of="logits").bind(Knowledge({"main": Dense(torch.zeros(2, 4))}), Knowledge({"main": Dense(torch.zeros(2, 5))}), NO_TASK, None)
