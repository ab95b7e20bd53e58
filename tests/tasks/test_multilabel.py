"""Several labels at once: the loss and the scores against naive loops and scikit-learn, labels of every kind, and what is refused."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from limbeck import Offline, Supervised
from limbeck.core.errors import DataError, LimbeckError, MismatchError, RecipeError
from limbeck.core.knowledge import Dense, Knowledge
from limbeck.objectives.response.bernoulli_kd import BernoulliKD
from limbeck.tasks.multilabel import MultiLabel

MADE = torch.Generator().manual_seed(0)
X = torch.randn(12, 5, generator=MADE)
Y = (torch.rand(12, 4, generator=MADE) > 0.6).long()
LOGITS = torch.randn(12, 4, dtype=torch.float64, generator=MADE).mul(4).round().div(2)  # with ties


def known(logits: Tensor) -> Knowledge:
    return Knowledge({"main": Dense(logits, "bernoulli")})


@pytest.mark.parametrize("weight", [None, [0.5, 1.0, 2.0, 30.0]])
def test_loss_and_gradient_equal_their_formula(weight: list[float] | None) -> None:
    task, logits = MultiLabel(pos_weight=weight), LOGITS.clone().requires_grad_()
    found = task.loss(known(logits), task.batch((X, Y)))
    found.sum().backward()
    found = found.detach()
    assert logits.grad is not None and found.shape == (12,)
    for n in range(12):
        expected = 0.0
        for c in range(4):
            z, y, w = float(LOGITS[n, c]), int(Y[n, c]), 1.0 if weight is None else weight[c]
            p = 1 / (1 + math.exp(-z))
            expected -= w * y * math.log(p) + (1 - y) * math.log(1 - p)
            assert float(logits.grad[n, c]) == pytest.approx((1 - y) * p - w * y * (1 - p), rel=1e-6)
        assert float(found[n]) == pytest.approx(expected, rel=1e-9)


def test_the_scores_are_scikit_learn_s() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    task = MultiLabel()
    labels = Y.clone()
    labels[0], labels[1] = 0, 1
    found = {name: float(value.double().mean()) for name, value in task.scores(known(LOGITS), task.batch((X, labels))).items()}
    true, said = labels.numpy(), (LOGITS > 0).numpy().astype(int)
    assert found["lrap"] == pytest.approx(metrics.label_ranking_average_precision_score(true, LOGITS.numpy()), rel=1e-6)
    assert found["f1"] == pytest.approx(metrics.f1_score(true, said, average="samples", zero_division=1.0), rel=1e-6)
    assert found["exact_match"] == pytest.approx(metrics.accuracy_score(true, said), rel=1e-6)
    assert task.metric in found and task.higher_is_better


@pytest.mark.parametrize("labels", [Y, Y.bool(), Y.float(), Y.double(), Y.to(torch.uint8)])
def test_labels_of_every_type_become_float32(labels: Tensor) -> None:
    for raw in ((X, labels), {"pixel_values": X, "labels": labels, "id": torch.arange(12)}):
        batch = MultiLabel().batch(raw)
        assert batch["label"].dtype == torch.float32 and torch.equal(batch["label"], Y.float())
        assert MultiLabel().batch(batch).keys() == batch.keys()


@pytest.mark.parametrize(
    ("labels", "error", "told"),
    [
        (Y[:, 0], MismatchError, r"torch.int64 \[12\]; it must be a tensor \[12, C\] of 0 and 1"),
        (Y[:11], MismatchError, r"\[11, 4\]"),
        (Y[:, :0], MismatchError, r"\[12, 0\]"),
        (Y * 2, DataError, "label 2 of example .* 0 .no. and 1 .yes."),
        (Y.float() / 2, DataError, "label 0.5"),
        (torch.full((12, 4), math.nan), DataError, "example 0 of a batch are not finite"),
        (np.asarray(Y), MismatchError, "ndarray"),
    ],
)
def test_labels_that_are_refused(labels: Any, error: type[LimbeckError], told: str) -> None:
    with pytest.raises(error, match=told):
        MultiLabel().batch((X, labels))


def test_the_facts_are_of_the_loader() -> None:
    facts = MultiLabel({"train": DataLoader(TensorDataset(X, Y), batch_size=5)}).facts()
    assert (facts.in_shape, facts.classes, facts.class_names, facts.examples, facts.labelled) == ((5,), 4, ("0", "1", "2", "3"), 12, True)
    unlabelled = MultiLabel({"train": [X]}, class_names=["a", "b"]).facts()
    assert (unlabelled.class_names, unlabelled.labelled) == (("a", "b"), False)
    with pytest.raises(DataError, match="give class_names"):
        MultiLabel({"train": [X]}).facts()
    with pytest.raises(MismatchError, match="4 by labels, 2 by class_names"):
        MultiLabel({"train": [(X, Y)]}, class_names=["a", "b"]).facts()


def test_options_that_cannot_be_meant() -> None:
    with pytest.raises(RecipeError, match="above zero"):
        MultiLabel(pos_weight=[1.0, 0.0])
    with pytest.raises(RecipeError, match="1 and 2 classes"):
        MultiLabel(pos_weight=[1.0], class_names=["a", "b"])
    with pytest.raises(RecipeError, match="one of the two"):
        MultiLabel({"train": [(X, Y)]}, root="a.npz")
    with pytest.raises(MismatchError, match="2 weights, and the model gives 4 logits"):
        MultiLabel(pos_weight=[1.0, 2.0]).loss(known(LOGITS), {"input": X, "label": Y})
    with pytest.raises(MismatchError, match=r"gives \[12, 4\] and the labels are \[12, 1\]"):
        MultiLabel().loss(known(LOGITS), {"input": X, "label": Y[:, :1]})
    with pytest.raises(MismatchError, match=r"MultiLabel\(label=...\)"):
        MultiLabel().loss(known(LOGITS), {"input": X})


def test_one_class_and_a_batch_of_one_in_half_precision() -> None:
    task = MultiLabel()
    model = nn.Linear(5, 1).to(torch.bfloat16)
    batch = task.batch((X[:1].to(torch.bfloat16), Y[:1, :1]))
    scores = task.scores(task.forward(model, batch), batch)
    assert all(value.shape == (1,) and value.isfinite().all() for value in scores.values()) and scores["loss"].dtype == torch.float32


def test_a_loop_of_one_s_own() -> None:
    torch.manual_seed(0)
    teacher, student = nn.Linear(5, 4), nn.Linear(5, 4)
    kd = Offline(student, teacher, [0.9 * BernoulliKD(), 0.1 * Supervised()], task=MultiLabel())
    found = kd((X, Y)).loss
    p, z = teacher(X).sigmoid().detach(), student(X)
    p, logs = torch.stack([p, 1 - p]), torch.stack([nn.functional.logsigmoid(z), nn.functional.logsigmoid(-z)])
    bce = nn.functional.binary_cross_entropy_with_logits(z, Y.float(), reduction="none").sum(1).mean()
    torch.testing.assert_close(found, 0.9 * (p * (p.log() - logs)).sum((0, 2)).mean() + 0.1 * bce)
