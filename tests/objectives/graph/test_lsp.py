"""`graph.lsp` against a loop over neighbourhoods, its limits, and what it refuses."""

import math
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.knowledge import Dense, Knowledge
from limbeck.core.task import Task
from limbeck.objectives.graph.lsp import LSP, lsp_loss

EDGES = torch.tensor([[1, 2, 3, 0, 2, 0, 4, 4], [0, 0, 0, 1, 1, 2, 4, 2]])  # node 3 has no neighbour, node 4 itself alone
KERNELS = ["rbf", "linear", "poly", "euclidean", "laplace"]


def similar(kernel: str, sigma: float, one: list[float], other: list[float]) -> float:
    dot = sum(a * b for a, b in zip(one, other, strict=True))
    squares = sum((a - b) ** 2 for a, b in zip(one, other, strict=True))
    distance = sum(abs(a - b) for a, b in zip(one, other, strict=True))
    return {"rbf": math.exp(-squares / (2 * sigma)), "linear": dot, "poly": dot**2, "euclidean": squares, "laplace": math.exp(-distance / sigma)}[kernel]


def looped(student: Tensor, teacher: Tensor, kernel: str, sigma: float, direction: str) -> list[float]:
    losses = []
    for node in range(len(student)):
        neighbours = EDGES[0][EDGES[1] == node].tolist()
        sides = []
        for z in (student.tolist(), teacher.tolist()):
            weights = [math.exp(similar(kernel, sigma, z[node], z[other])) for other in neighbours]
            sides.append([weight / sum(weights) for weight in weights])
        s, t = sides if direction == "student" else sides[::-1]
        losses.append(sum(a * math.log(a / b) for a, b in zip(s, t, strict=True)))
    return losses


@pytest.mark.parametrize("direction", ["student", "teacher"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_it_is_the_loop_over_neighbourhoods(kernel: Any, direction: Any) -> None:
    student, teacher = torch.randn(5, 3, dtype=torch.float64, requires_grad=True), torch.randn(5, 4, dtype=torch.float64)
    how: dict[str, Any] = {"kernel": kernel, "sigma": 1.5, "direction": direction}
    loss = lsp_loss(student, teacher, EDGES, **how)
    assert loss.tolist() == pytest.approx(looped(student, teacher, kernel, 1.5, direction), rel=1e-9, abs=1e-12)
    assert loss[3] == 0 and loss[4] == 0
    assert torch.autograd.gradcheck(lambda z: lsp_loss(z, teacher, EDGES, **how), student)
    shift = torch.zeros(5, 3, dtype=torch.float64)
    shift[0, 1] = 1e-5
    slope = [(a - b) / 2e-5 for a, b in zip(*(looped(student.detach() + sign * shift, teacher, kernel, 1.5, direction) for sign in (1, -1)), strict=True)]
    (gradient,) = torch.autograd.grad(loss.sum(), student)
    assert gradient[0, 1].item() == pytest.approx(sum(slope), rel=1e-6, abs=1e-8)


def test_only_distances_matter_to_distances_and_the_width_is_free() -> None:
    """rbf does not see a rotation or a shift of a side; a wide kernel sees no difference at all."""
    student, teacher = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    turned = student @ torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))[0] + 2.0
    assert torch.allclose(lsp_loss(turned, teacher, EDGES, sigma=1.0), lsp_loss(student, teacher, EDGES, sigma=1.0))
    assert torch.allclose(lsp_loss(student, turned, EDGES, sigma=1.0), lsp_loss(student, student, EDGES), atol=1e-12)
    assert lsp_loss(student, teacher, EDGES, sigma=1e9).abs().max() < 1e-12


def test_the_order_of_edges_is_nothing() -> None:
    student, teacher = torch.randn(2, 5, 3, dtype=torch.float64).unbind()
    assert torch.allclose(lsp_loss(student, teacher, EDGES[:, torch.randperm(8)], sigma=1.0), lsp_loss(student, teacher, EDGES, sigma=1.0))


def sides(mask: Tensor | None = None) -> tuple[Knowledge, Knowledge]:
    outputs = {"main": Dense(torch.zeros(5, 2))}
    return Knowledge(outputs, {"a": torch.randn(5, 3), "b": torch.randn(5, 6)}, mask), Knowledge(outputs, {"a": torch.randn(5, 4), "b": torch.randn(5, 2)})


@pytest.mark.parametrize("mask", [None, torch.tensor([True, False, True, False, False]), torch.zeros(5, dtype=torch.bool)])
def test_nodes_that_count_are_averaged_over_all_their_neighbours_and_pairs_add_up(mask: Tensor | None) -> None:
    lsp = LSP(layers={"a": "a", "b": "b"}, sigma=1.0)
    student, teacher = sides(mask)
    lsp.bind(student, teacher, cast(Task, None), None)
    each = sum(lsp_loss(student.features[one], teacher.features[one], EDGES, sigma=1.0) for one in "ab")
    assert isinstance(each, Tensor)
    expected = each.mean() if mask is None else each[mask].mean() if mask.any() else torch.tensor(0.0)
    assert torch.allclose(lsp(student, teacher, {"edge_index": EDGES}), expected)


def test_it_asks_for_edges_and_two_layers() -> None:
    needs = LSP(layers={"a": "b"}).needs
    assert needs.fields == {"edge_index"} and not needs.labels
    assert needs.student.features == {"a"} and needs.teacher is not None and needs.teacher.features == {"b"}


@pytest.mark.parametrize(
    ("shapes", "edges", "told"),
    [
        (((5, 3), (4, 3)), EDGES, r"\[5, 3\].*\[4, 3\].*same nodes"),
        (((5, 3, 2), (5, 3)), EDGES, r"\[5, 3, 2\].*\[M, D\]"),
        (((5, 3), (5, 3)), EDGES.T, r"int64 \[8, 2\].*\[2, E\]"),
        (((5, 3), (5, 3)), EDGES.float(), r"float32 \[2, 8\].*whole numbers"),
    ],
)
def test_what_does_not_fit_is_refused(shapes: Any, edges: Tensor, told: str) -> None:
    with pytest.raises(MismatchError, match=told):
        lsp_loss(torch.zeros(shapes[0]), torch.zeros(shapes[1]), edges)


def test_options_and_maps_are_refused() -> None:
    for options, told in (({"kernel": "rfb"}, "did you mean 'rbf'"), ({"direction": "both"}, "student"), ({"sigma": 0.0}, "above zero")):
        with pytest.raises(RecipeError, match=told):
            LSP(layers={"a": "a"}, **cast(Any, options))
    maps = Knowledge({}, {"a": torch.zeros(2, 3, 4, 4)})
    with pytest.raises(MismatchError, match=r"'a' gives \[2, 3, 4, 4\]"):
        LSP(layers={"a": "a"}).bind(maps, maps, cast(Task, None), None)


@settings(max_examples=25, deadline=None)
@given(
    nodes=st.integers(1, 6),
    widths=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    edges=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=12),
    scale=st.sampled_from([1e-4, 1.0, 1e2, 1e4]),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    kernel=st.sampled_from(KERNELS),
)
def test_losses_and_gradients_are_finite(nodes: int, widths: Any, edges: Any, scale: float, dtype: torch.dtype, kernel: Any) -> None:
    student = (torch.randn(nodes, widths[0]).clamp(-3, 3) * scale).to(dtype).requires_grad_()
    teacher = (torch.randn(nodes, widths[1]).clamp(-3, 3) * scale).to(dtype)
    pairs = torch.tensor([(a % nodes, b % nodes) for a, b in edges], dtype=torch.int64).reshape(-1, 2).T
    loss = lsp_loss(student, teacher, pairs, kernel=kernel)
    loss.sum().backward()
    assert loss.shape == (nodes,) and loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert loss.isfinite().all() and (loss > -1e-5 * max(1.0, loss.abs().max().item())).all()
    assert student.grad is not None
    assert student.grad.float().isfinite().all() or (dtype == torch.float16 and kernel in ("poly", "euclidean", "linear"))
