"""`feature.fitnet` against a loop, and what its projector does with features of every shape."""

from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.knowledge import Dense, Knowledge
from limbeck.core.task import Task
from limbeck.objectives._projectors import Projector
from limbeck.objectives.feature.fitnet import FitNet, fitnet_loss

NO_TASK = cast(Task, None)


def sides(student: Tensor, teacher: Tensor) -> tuple[Knowledge, Knowledge]:
    return Knowledge({"main": Dense(torch.zeros(len(student), 3))}, {"s": student}), Knowledge({"main": Dense(torch.zeros(len(teacher), 3))}, {"t": teacher})


def bound(student: Tensor, teacher: Tensor) -> tuple[FitNet, Knowledge, Knowledge]:
    fitnet = FitNet(layers={"s": "t"})
    ours, theirs = sides(student, teacher)
    fitnet.bind(ours, theirs, NO_TASK, None)
    return fitnet, ours, theirs


@pytest.mark.parametrize("shape", [(3, 4), (3, 2, 4), (3, 2, 4, 5)])
def test_both_reductions_equal_a_loop(shape: tuple[int, ...]) -> None:
    student, teacher = torch.randn(2, *shape, dtype=torch.float64).unbind()
    student.requires_grad_()
    for row in range(3):
        squares = [(one - other) ** 2 for one, other in zip(student[row].flatten().tolist(), teacher[row].flatten().tolist(), strict=True)]
        assert fitnet_loss(student, teacher)[row].item() == pytest.approx(sum(squares) / 2, rel=1e-9)
        assert fitnet_loss(student, teacher, reduction="mean")[row].item() == pytest.approx(sum(squares) / len(squares), rel=1e-9)
    (gradient,) = torch.autograd.grad(fitnet_loss(student, teacher).sum(), student)
    assert torch.allclose(gradient, (student - teacher).detach())


def test_the_mean_is_pytorchs() -> None:
    student, teacher = torch.randn(2, 3, 4).unbind()
    assert torch.allclose(fitnet_loss(student, teacher, reduction="mean").mean(), F.mse_loss(student, teacher))


@pytest.mark.parametrize("shape", [(2, 4), (2, 3, 4), (2, 4, 5, 5)])
def test_equal_shapes_build_nothing(shape: tuple[int, ...]) -> None:
    fitnet, _, _ = bound(torch.randn(shape), torch.randn(shape))
    assert not list(fitnet.parameters())
    assert not fitnet.state_dict()


@pytest.mark.parametrize(
    ("student", "teacher", "kind"), [((2, 4), (2, 6), nn.Linear), ((2, 3, 4), (2, 3, 6), nn.Linear), ((2, 4, 5, 5), (2, 6, 5, 5), nn.Conv2d)]
)
def test_the_projector_is_a_linear_map_of_the_channels(student: tuple[int, ...], teacher: tuple[int, ...], kind: type[nn.Module]) -> None:
    fitnet, ours, theirs = bound(torch.randn(student), torch.randn(teacher))
    (project,) = fitnet.projectors
    assert isinstance(project, Projector)
    linear = project.linear
    assert isinstance(linear, kind)
    assert linear.weight.numel() == 4 * 6
    channels_last = ours.features["s"].movedim(1, -1) if len(student) == 4 else ours.features["s"]
    projected = channels_last @ linear.weight.reshape(6, 4).T + linear.get_parameter("bias")
    expected = fitnet_loss(projected.movedim(-1, 1) if len(student) == 4 else projected, theirs.features["t"])
    assert torch.allclose(fitnet(ours, theirs, {}), expected, rtol=1e-5)


def test_maps_are_averaged_down_and_interpolated_up() -> None:
    wide = torch.randn(2, 3, 8, 8)
    fitnet, ours, theirs = bound(wide, torch.randn(2, 3, 4, 4))
    assert not list(fitnet.parameters())
    assert torch.allclose(fitnet(ours, theirs, {}), fitnet_loss(F.avg_pool2d(wide, 2), theirs.features["t"]), rtol=1e-5)
    constant = torch.full((2, 3, 2, 8), 5.0)
    fitnet, ours, theirs = bound(constant, torch.full((2, 3, 4, 4), 5.0))
    assert torch.allclose(fitnet(ours, theirs, {}), torch.zeros(2), atol=1e-9), "a constant map stays one, up and down"
    rising = torch.arange(4.0).reshape(1, 1, 1, 4).expand(2, 3, 4, 4)
    fitnet, ours, theirs = bound(rising[..., ::2] + 0.5, rising)
    assert fitnet(ours, theirs, {}).max() < 0.5 * 3 * 4 * (2 * 0.5**2) + 1e-6, "a slope stays one but for its two ends"


@pytest.mark.parametrize(
    ("student", "teacher", "told"),
    [
        ((2, 4), (2, 4, 3, 3), r"'s' gives \[2, 4\].*'t' \[2, 4, 3, 3\].*maps"),
        ((2, 4, 1, 1, 1), (2, 4, 1, 1, 1), r"\[2, 4, 1, 1, 1\].*vectors"),
        ((2, 4), (2, 5, 4), r"\[2, 4\].*\[2, 5, 4\].*a vector has no places"),
    ],
)
def test_features_that_cannot_meet_are_refused(student: tuple[int, ...], teacher: tuple[int, ...], told: str) -> None:
    with pytest.raises(MismatchError, match=told):
        bound(torch.zeros(student), torch.zeros(teacher))


def test_binding_again_to_other_shapes_is_refused_and_leaves_the_first() -> None:
    fitnet, ours, theirs = bound(torch.randn(2, 4), torch.randn(2, 6))
    before = fitnet(ours, theirs, {})
    with pytest.raises(MismatchError, match=r"\[4\].*\[6\].*\[5\].*\[6\]"):
        fitnet.bind(*sides(torch.randn(2, 5), torch.randn(2, 6)), NO_TASK, None)
    fitnet.bind(*sides(torch.randn(7, 4), torch.randn(7, 6)), NO_TASK, None)
    assert torch.equal(fitnet(ours, theirs, {}), before)


def test_no_layers_unequal_shapes_and_an_unread_layer_are_refused() -> None:
    fitnet = FitNet(layers={"s": "t"})
    with pytest.raises(MismatchError, match=r"\[2, 4\].*\[2, 6\].*project"):
        fitnet_loss(torch.zeros(2, 4), torch.zeros(2, 6))
    with pytest.raises(RecipeError, match="no layers to match"):
        FitNet(layers={})
    with pytest.raises(MismatchError, match="'s'"):
        fitnet.bind(Knowledge({}), sides(torch.zeros(2, 4), torch.zeros(2, 6))[1], NO_TASK, None)
    with pytest.raises(RecipeError, match="did you mean 'mean'"):
        FitNet(layers={"s": "t"}, reduction=cast(Any, "means"))


def test_half_precision_features_meet_weights_in_float32() -> None:
    fitnet, ours, theirs = bound(torch.randn(2, 4).half(), torch.randn(2, 6).half())
    assert all(parameter.dtype == torch.float32 for parameter in fitnet.parameters())
    loss = fitnet(ours, theirs, {})
    assert loss.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.allclose(fitnet(ours, theirs, {}), loss, rtol=0.05)


def test_it_reads_only_its_two_layers() -> None:
    needs = FitNet(layers={"s": "t"}).needs
    assert (needs.student.features, needs.student.outputs) == ({"s"}, set())
    assert needs.teacher is not None
    assert (needs.teacher.features, needs.teacher.outputs) == ({"t"}, set())
    assert not needs.labels
