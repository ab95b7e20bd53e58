"""DeepInversion: its terms against naive loops, and that images come nearer to what the teacher saw."""

import math

import pytest
import torch

from limbeck.core.errors import MismatchError
from limbeck.core.lookup import build
from limbeck.schemes.inversion import agreement, roughness

from .test_synthetic import batch, cnn, scheme, task


def test_roughness_is_of_neighbours_right_and_below() -> None:
    x = torch.tensor([[[[0.0, 1.0], [3.0, 3.0]]]])
    assert float(roughness(x)) == pytest.approx((1 + 0) / 2 + (9 + 4) / 2)
    assert roughness(torch.full((2, 3, 4, 4), 7.0)) == 0


def test_agreement_is_one_less_the_jensen_shannon_divergence() -> None:
    torch.manual_seed(0)
    one, other = torch.randn(5, 4), torch.randn(5, 4)
    p, q = one.double().softmax(-1), other.double().softmax(-1)
    middle = (p + q) / 2
    naive = 1 - ((p * (p / middle).log()).sum(-1) + (q * (q / middle).log()).sum(-1)) / 2
    assert torch.allclose(agreement(one, other).double(), naive, atol=1e-6)
    assert torch.allclose(agreement(one, one), torch.ones(5))
    apart = 1e3 * torch.eye(2)
    assert torch.allclose(agreement(apart, apart.flip(0)), torch.full((2,), 1 - math.log(2)), atol=1e-6)


@pytest.mark.parametrize(("weight", "part"), [("bn", "images_bn"), ("class_weight", "images_class"), ("tv", "images_tv"), ("l2", "images_l2")])
def test_each_term_falls_where_it_is_asked_for(weight: str, part: str) -> None:
    alone = {"class_weight": 0.0, "bn": 0.0, "tv": 0.0, "l2": 0.0, "compete": 0.0, "jitter": 0, weight: 1.0}
    found = []
    for rounds in (1, 60):
        made = scheme("inversion", **alone, rounds=rounds, lr=0.1).train()
        torch.manual_seed(3)
        found.append(made(batch(), "student").parts[part])
    assert found[1] < 0.7 * found[0]


def test_competition_looks_for_what_the_student_gets_wrong() -> None:
    images, targets = torch.rand(6, 1, 8, 8), torch.arange(6) % 3
    plain, competing = (scheme("inversion", compete=weight) for weight in (0.0, 2.0))
    one, _ = plain.price(images, targets)  # pyright: ignore[reportCallIssue]
    other, parts = competing.price(images, targets)  # pyright: ignore[reportCallIssue]
    assert torch.isclose(other - one, 2 * parts["compete"], rtol=1e-4)


def test_a_step_makes_one_batch_and_the_bank_keeps_the_newest() -> None:
    made = scheme("inversion", bank=20).train()
    for step, held in enumerate((8, 16, 20), 1):
        for phase in made.phases:
            made(batch(), phase)
        made.after_step()
        assert int(made.made) == 8 * step  # pyright: ignore[reportCallIssue,reportArgumentType]
        bank = made.bank  # pyright: ignore[reportAttributeAccessIssue]
        assert int((bank.flatten(1).abs().sum(1) > 0).sum()) == held  # pyright: ignore[reportCallIssue, reportArgumentType]


def test_images_stay_within_what_a_pixel_can_be() -> None:
    on = task(mean=[0.25], std=[0.5])
    terms = [build("objectives", "response.kd", {})]
    made = build("schemes", "inversion", {"rounds": 5, "student_steps": 1, "lr": 1.0, "bank": 8}, cnn(2), cnn(1), terms, on, batch(), on.facts())
    made.train()(batch(), "student")
    assert made.bank.min() >= -0.5 and made.bank.max() <= 1.5
    assert made.bank.min() == -0.5, "else nothing was tested"


def test_a_teacher_without_batch_norm_is_refused() -> None:
    mlp = build("models", "mlp", {"widths": [4]}, in_shape=(1, 8, 8), classes=3)
    with pytest.raises(MismatchError, match="batch norms, and MLP has none: take a teacher with batch norm, or a data-free scheme without"):
        scheme("inversion", teacher=mlp)
