"""From one form and size of a feature to another: what moves where, what is learnt, and what cannot be."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.core.errors import MismatchError
from limbeck.objectives._projectors import Projector, as_map, as_tokens, projector, projectors, resized

NAMES = ("s", "t")


def numbered(*shape: int) -> Tensor:
    return torch.arange(math.prod(shape), dtype=torch.float64).reshape(shape)


def made(student: Tensor, teacher: Tensor) -> Projector:
    found = projector(student, teacher, names=NAMES)
    assert found is not None
    return found


@pytest.mark.parametrize("shape", [(2, 4), (2, 3, 4), (2, 4, 5, 3)])
def test_equal_shapes_need_nothing(shape: tuple[int, ...]) -> None:
    assert projector(torch.zeros(shape), torch.zeros(shape), names=NAMES) is None
    (one,) = projectors([(torch.zeros(shape), torch.zeros(shape))], [NAMES])
    assert isinstance(one, nn.Identity)


def test_a_map_is_read_row_by_row_and_back() -> None:
    x = numbered(2, 3, 4, 5)
    tokens = as_tokens(x, 20)
    for n in range(2):
        for row in range(4):
            for column in range(5):
                assert torch.equal(tokens[n, row * 5 + column], x[n, :, row, column])
    assert torch.equal(as_map(tokens, (4, 5)), x)


def test_a_class_token_is_the_mean_of_the_map_and_is_left_out_on_the_way_back() -> None:
    x = numbered(2, 3, 4, 5)
    tokens = as_tokens(x, 21)
    assert torch.allclose(tokens[:, 0], x.flatten(2).mean(-1))
    assert torch.equal(tokens[:, 1:], as_tokens(x, 20))
    assert torch.equal(as_map(tokens, (4, 5)), x)
    spoilt = torch.cat([torch.full_like(tokens[:, :1], float("nan")), tokens[:, 1:]], 1)
    assert torch.equal(as_map(spoilt, (4, 5)), x)


@pytest.mark.parametrize(("length", "side", "extra"), [(16, 4, 0), (17, 4, 1), (65, 8, 1), (197, 14, 1), (9, 3, 0), (2, 1, 1), (1, 1, 0)])
def test_a_map_of_another_size_is_resized_to_a_square(length: int, side: int, extra: int) -> None:
    x = torch.randn(2, 3, 6, 7)
    expected = resized(x, (side, side)).flatten(2).transpose(1, 2)
    assert torch.equal(as_tokens(x, length)[:, extra:], expected)
    tokens = torch.randn(2, length, 3)
    assert torch.equal(as_map(tokens, (6, 7)), resized(tokens[:, extra:].transpose(1, 2).reshape(2, 3, side, side), (6, 7)))


def test_tokens_that_are_no_square_are_resized_as_a_sequence() -> None:
    x = torch.randn(2, 3, 4, 5)
    assert torch.equal(as_tokens(x, 7), resized(x.flatten(2).transpose(1, 2), (7,)))
    tokens = torch.randn(2, 7, 3)
    assert torch.equal(as_map(tokens, (4, 5)), resized(tokens, (20,)).transpose(1, 2).reshape(2, 3, 4, 5))


def test_a_sequence_is_averaged_down_and_interpolated_up() -> None:
    x = torch.randn(2, 8, 3)
    assert torch.allclose(resized(x, (4,)), (x[:, ::2] + x[:, 1::2]) / 2)
    rising = torch.arange(4.0)[None, :, None].expand(2, 4, 3)
    up = resized(rising, (8,))
    assert torch.allclose(up[:, 1:-1], torch.linspace(0.25, 2.75, 6)[None, :, None].expand(2, 6, 3)), "a slope stays one but for its two ends"
    assert torch.allclose(resized(torch.full((2, 5, 3), 7.0), (3,)), torch.full((2, 3, 3), 7.0))


def test_maps_and_sequences_are_pooled_to_vectors() -> None:
    x, y = torch.randn(2, 4, 5, 3), torch.randn(2, 7, 4)
    pooled = made(x, torch.zeros(2, 4))(x)
    assert torch.allclose(pooled, F.adaptive_avg_pool2d(x, 1).flatten(1), atol=1e-6)
    assert torch.allclose(made(y, torch.zeros(2, 4))(y), y.mean(1))
    project = made(x, torch.zeros(2, 9))
    assert isinstance(project.linear, nn.Linear)
    assert torch.allclose(project(x), project.linear(pooled), atol=1e-6)


SHAPES = [(2, 4), (2, 4, 5, 3), (2, 6, 4), (2, 6, 2, 2), (2, 17, 6), (2, 5, 6)]


@pytest.mark.parametrize("student", SHAPES)
@pytest.mark.parametrize("teacher", SHAPES)
def test_every_form_comes_to_the_other_s_shape_with_a_gradient_or_is_refused(student: tuple[int, ...], teacher: tuple[int, ...]) -> None:
    x = torch.randn(student, requires_grad=True)
    if len(student) == 2 and len(teacher) > 2:
        with pytest.raises(MismatchError, match=r"student's 's' gives \[2, 4\], the teacher's 't' \[2, .*a vector has no places"):
            projector(x, torch.zeros(teacher), names=NAMES)
        return
    project = projector(x, torch.zeros(teacher), names=NAMES) or nn.Identity()
    out = project(x)
    assert out.shape == teacher
    out.square().sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in project.parameters())
    channels = [shape[-1 if len(shape) == 3 else 1] for shape in (student, teacher)]
    assert bool(list(project.parameters())) == (channels[0] != channels[1]), "nothing is learnt where the channels agree"


@pytest.mark.parametrize("shapes", [((2, 4, 1, 1, 1), (2, 4, 1, 1, 1)), ((2,), (2, 4)), ((2, 4), (2,))])
def test_other_ranks_are_refused(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    with pytest.raises(MismatchError, match=r"vectors \[N, D\] or sequences \[N, T, D\] or maps \[N, D, H, W\]"):
        projector(torch.zeros(shapes[0]), torch.zeros(shapes[1]), names=NAMES)


@pytest.mark.parametrize(("student", "teacher"), [((2, 4, 5, 5), (2, 10, 6)), ((2, 10, 6), (2, 4, 5, 5)), ((2, 10, 6), (2, 7, 6)), ((2, 4, 5, 5), (2, 4))])
def test_a_projector_is_copied_saved_and_traced(student: tuple[int, ...], teacher: tuple[int, ...]) -> None:
    x = torch.randn(student)
    project = made(x, torch.zeros(teacher))
    assert torch.equal(copy.deepcopy(project)(x), project(x))
    other = made(x, torch.zeros(teacher))
    other.load_state_dict(project.state_dict())
    assert torch.equal(other(x), project(x))
    assert torch.allclose(torch.compile(project, backend="aot_eager", fullgraph=True)(x), project(x), atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(
    size=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    other=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    length=st.integers(1, 40),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
)
def test_any_size_meets_any_other_and_a_constant_stays_one(size: tuple[int, int], other: tuple[int, int], length: int, dtype: torch.dtype) -> None:
    flat = {4: torch.full((1, 1, *size), 3.0, dtype=dtype), 3: torch.full((1, length, 1), 3.0, dtype=dtype)}
    for x in flat.values():
        for teacher in (torch.zeros(1, 1, *other), torch.zeros(1, length + 3, 1), torch.zeros(1, max(1, length - 2), 1), torch.zeros(1, 1)):
            project = projector(x, teacher.to(dtype), names=NAMES) or nn.Identity()
            out = project(x)
            assert out.shape == teacher.shape
            assert torch.allclose(out.double(), torch.full_like(out, 3.0).double(), atol=1e-5)
