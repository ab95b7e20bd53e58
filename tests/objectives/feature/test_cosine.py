"""`feature.cosine` against torch's, and its mask."""

from typing import cast

import pytest
import torch
from torch.nn import functional as F

from limbeck.core.errors import MismatchError
from limbeck.core.knowledge import Knowledge
from limbeck.core.task import Task
from limbeck.objectives.feature.cosine import Cosine, cosine_loss

NO_TASK = cast(Task, None)


@pytest.mark.parametrize("masked", [False, True])
def test_value_and_gradient_equal_a_loop(masked: bool) -> None:
    student, teacher = torch.randn(3, 4, 5, dtype=torch.float64, requires_grad=True), torch.randn(3, 4, 5, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 1], [0, 0, 1, 0]]) if masked else torch.ones(3, 4)
    rows: list[torch.Tensor] = []
    for row in range(3):
        each = [
            1 - (s * t).sum() / (s.square().sum().sqrt() * t.square().sum().sqrt())
            for s, t, real in zip(student[row], teacher[row], mask[row].tolist(), strict=True)
            if real
        ]
        rows.append(sum(each, torch.zeros(())) / len(each))
    loop, loss = torch.stack(rows), cosine_loss(student, teacher, mask=mask if masked else None)
    assert torch.allclose(loss, loop, rtol=1e-6)
    (one,), (other,) = torch.autograd.grad(loss.sum(), student), torch.autograd.grad(loop.sum(), student)
    assert torch.allclose(one, other, rtol=1e-6, atol=1e-12)


def test_the_mean_over_full_sequences_is_torchs_embedding_loss() -> None:
    student, teacher = torch.randn(3, 4, 5), torch.randn(3, 4, 5)
    torchs = F.cosine_embedding_loss(student.flatten(0, 1), teacher.flatten(0, 1), torch.ones(12))
    assert torch.allclose(cosine_loss(student, teacher).mean(), torchs)
    assert torch.allclose(cosine_loss(teacher, 7 * teacher), torch.zeros(3), atol=1e-6)
    assert torch.allclose(cosine_loss(teacher, -teacher), torch.full((3,), 2.0))


def test_the_mask_is_a_field_of_the_batch() -> None:
    cosine = Cosine(layers={"s": "t"}, mask="attention_mask")
    assert cosine.needs.fields == {"attention_mask"}
    assert not Cosine(layers={"s": "t"}).needs.fields
    student, teacher = Knowledge({}, {"s": torch.randn(2, 3, 4)}), Knowledge({}, {"t": torch.randn(2, 3, 6)})
    cosine.bind(student, teacher, NO_TASK, None)
    mask = torch.tensor([[1, 1, 0], [0, 0, 0]])
    loss = cosine(student, teacher, {"attention_mask": mask})
    states = cosine.projectors[0](student.features["s"])
    assert torch.allclose(loss[0], cosine_loss(states[:1, :2], teacher.features["t"][:1, :2])[0])
    assert loss[1] == 0, "no token, no loss"
    with pytest.raises(MismatchError, match=r"\[2, 2\].*\[2, 3\]"):
        cosine(student, teacher, {"attention_mask": mask[:, :2]})


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(MismatchError, match=r"\[2, 4\].*\[2, 5\].*project"):
        cosine_loss(torch.zeros(2, 4), torch.zeros(2, 5))
    for student, teacher, told in [((2, 4, 3, 3), (2, 4, 3, 3), "vectors"), ((2, 4), (2, 3, 4), "'s' are.*'t'"), ((2, 3, 4), (2, 5, 4), "length")]:
        with pytest.raises(MismatchError, match=told):
            Cosine(layers={"s": "t"}).bind(Knowledge({}, {"s": torch.zeros(student)}), Knowledge({}, {"t": torch.zeros(teacher)}), NO_TASK, None)
