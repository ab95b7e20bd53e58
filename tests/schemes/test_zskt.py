"""ZSKT: the divergence against a naive loop, who pulls which way, and the paper's attention term."""

import math

import torch

from limbeck.core.lookup import build
from limbeck.schemes.zskt import belief_gap

from .test_synthetic import batch, scheme


def test_the_gap_is_the_divergence_of_the_student_from_the_teacher() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(4, 3), 3 * torch.randn(4, 3)

    def softmax(row: list[float]) -> list[float]:
        return [math.exp(z) / sum(math.exp(other) for other in row) for z in row]

    naive = [
        sum(p * math.log(p / q) for p, q in zip(softmax(t), softmax(s), strict=True))
        for s, t in zip(student.double().tolist(), teacher.double().tolist(), strict=True)
    ]
    assert torch.allclose(belief_gap(student, teacher), torch.tensor(naive), atol=1e-5)
    assert belief_gap(student, 1e4 * teacher).isfinite().all()


def test_the_generator_is_paid_for_what_the_student_pays() -> None:
    images = torch.rand(6, 1, 8, 8)
    made = scheme("zskt", [0.0 * build("objectives", "response.kd", {})]).eval()
    cost, _ = made.price(images)  # pyright: ignore[reportCallIssue]
    assert torch.isclose(made.lessons({"input": images}).loss, -cost)  # pyright: ignore[reportCallIssue]


def test_attention_is_an_objective_beside_the_game() -> None:
    made = scheme("zskt", [250.0 * build("objectives", "attention.at", {"layers": {"layer2": "layer2", "layer3": "layer3"}})]).train()
    losses = made(batch(), "student")
    assert set(losses.parts) == {"at", "zskt"}
    assert torch.isclose(losses.sums["student"].detach(), 250 * losses.parts["at"] + losses.parts["zskt"], rtol=1e-4)
