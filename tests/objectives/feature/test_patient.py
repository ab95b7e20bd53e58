"""`feature.patient` against a loop, and which tokens it reads."""

from typing import Any, cast

import pytest
import torch
from torch.nn import functional as F

from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.knowledge import Knowledge
from limbeck.core.task import Task
from limbeck.objectives.feature.cosine import cosine_loss
from limbeck.objectives.feature.patient import Patient, patient_loss

NO_TASK = cast(Task, None)


def test_value_and_gradient_equal_a_loop() -> None:
    student, teacher = torch.randn(3, 5, dtype=torch.float64, requires_grad=True), torch.randn(3, 5, dtype=torch.float64)
    rows: list[torch.Tensor] = []
    for s, t in zip(student, teacher, strict=True):
        long, wide = sum((x * x for x in s), torch.zeros(())).sqrt(), sum((x * x for x in t), torch.zeros(())).sqrt()
        rows.append(sum(((x / long - y / wide) ** 2 for x, y in zip(s, t, strict=True)), torch.zeros(())))
    loop, loss = torch.stack(rows), patient_loss(student, teacher)
    assert torch.allclose(loss, loop, rtol=1e-6)
    (one,), (other,) = torch.autograd.grad(loss.sum(), student), torch.autograd.grad(loop.sum(), student)
    assert torch.allclose(one, other, rtol=1e-6, atol=1e-12)


def test_it_is_twice_the_cosine_loss() -> None:
    student, teacher, mask = torch.randn(3, 4, 5).double(), torch.randn(3, 4, 5).double(), torch.tensor([[1, 1, 1, 1], [1, 0, 0, 1], [0, 0, 1, 0]])
    assert torch.allclose(patient_loss(student, teacher), 2 * cosine_loss(student, teacher))
    assert torch.allclose(patient_loss(student, teacher, mask=mask), 2 * cosine_loss(student, teacher, mask=mask))


def test_the_authors_mean_over_elements_is_layers_and_width_times_smaller() -> None:
    states = [(torch.randn(6, 8), torch.randn(6, 8)) for _ in range(3)]
    ours, theirs = (torch.stack([F.normalize(both[side], dim=-1) for both in states], 1) for side in (0, 1))
    summed = torch.stack([patient_loss(*both) for both in states]).sum(0).mean()
    assert torch.allclose(F.mse_loss(ours, theirs) * 3 * 8, summed, rtol=1e-5)


def test_it_reads_the_first_token_of_each_layer_or_all_of_them() -> None:
    ours, theirs = torch.randn(2, 2, 3, 4), torch.randn(2, 2, 3, 4)
    student, teacher = Knowledge({}, {"a": ours[0], "b": ours[1]}), Knowledge({}, {"x": theirs[0], "y": theirs[1]})
    first, every, real = (
        Patient(layers={"a": "x", "b": "y"}, **how) for how in cast(list[dict[str, Any]], [{}, {"tokens": "all"}, {"tokens": "all", "mask": "real"}])
    )
    for one in (first, every, real):
        one.bind(student, teacher, NO_TASK, None)
        assert not one.state_dict()
    assert torch.allclose(first(student, teacher, {}), patient_loss(ours[0][:, 0], theirs[0][:, 0]) + patient_loss(ours[1][:, 0], theirs[1][:, 0]))
    assert torch.allclose(every(student, teacher, {}), patient_loss(ours[0], theirs[0]) + patient_loss(ours[1], theirs[1]))
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    assert real.needs.fields == {"real"}
    assert torch.allclose(real(student, teacher, {"real": mask}), patient_loss(ours[0], theirs[0], mask=mask) + patient_loss(ours[1], theirs[1], mask=mask))


def test_first_tokens_meet_whatever_the_length_and_width() -> None:
    patient = Patient(layers={"s": "t"})
    student, teacher = Knowledge({}, {"s": torch.randn(2, 3, 4)}), Knowledge({}, {"t": torch.randn(2, 7, 6)})
    patient.bind(student, teacher, NO_TASK, None)
    assert [tuple(p.shape) for p in patient.parameters()] == [(6, 4), (6,)]
    assert patient(student, teacher, {}).shape == (2,)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(RecipeError, match="did you mean 'first'"):
        Patient(tokens=cast(Any, "frist"))
    with pytest.raises(RecipeError, match="tokens: all"):
        Patient(mask="attention_mask")
    with pytest.raises(MismatchError, match=r"'s' are \[2, 4, 3, 3\].*vectors"):
        Patient(layers={"s": "t"}).bind(Knowledge({}, {"s": torch.zeros(2, 4, 3, 3)}), Knowledge({}, {"t": torch.zeros(2, 4, 3, 3)}), NO_TASK, None)
    with pytest.raises(MismatchError, match="length"):
        Patient(layers={"s": "t"}, tokens="all").bind(Knowledge({}, {"s": torch.zeros(2, 3, 4)}), Knowledge({}, {"t": torch.zeros(2, 5, 4)}), NO_TASK, None)
