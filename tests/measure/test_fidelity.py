import math

import numpy as np
import pytest
import torch

from limbeck.core.errors import DataError, MismatchError
from limbeck.measure.fidelity import fidelity, per_class, reliability
from limbeck.measure.statistics import wilson


def softmax(row) -> list[float]:
    top = max(row)
    powers = [math.exp(x - top) for x in row]
    return [power / sum(powers) for power in powers]


def naive(logits, labels, teacher, bins=15) -> dict[str, float]:
    n = len(labels)
    right = same = 0
    nll = kl = 0.0
    held: dict[int, list[tuple[float, bool]]] = {}
    for z, y, t in zip(logits, labels, teacher, strict=True):
        p, q = softmax(z), softmax(t)
        answer, told = p.index(max(p)), q.index(max(q))
        right += answer == y
        same += answer == told
        nll -= math.log(p[y])
        kl += sum(qi * math.log(qi / pi) for pi, qi in zip(p, q, strict=True))
        m = next(m for m in range(bins) if m / bins < max(p) <= (m + 1) / bins)
        held.setdefault(m, []).append((max(p), answer == y))
    ece = sum(abs(sum(c for c, _ in rows) - sum(hit for _, hit in rows)) for rows in held.values()) / n
    return {"accuracy": right / n, "errors": n - right, "examples": n, "nll": nll / n, "ece": ece, "agreement": same / n, "kl_to_teacher": kl / n}


@pytest.fixture
def answers():
    generator = np.random.default_rng(0)
    teacher = generator.normal(size=(300, 7)) * 2
    return teacher + generator.normal(size=(300, 7)), generator.integers(0, 7, 300), teacher


def test_fidelity_agrees_with_a_naive_loop(answers):
    found, expected = fidelity(*answers), naive(*answers)
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, abs=1e-12), key
    assert (found["accuracy_low"], found["accuracy_high"]) == wilson(300 - int(found["errors"]), 300)
    assert (found["agreement_low"], found["agreement_high"]) == wilson(round(found["agreement"] * 300), 300)


def test_fidelity_without_a_teacher_says_nothing_of_one(answers):
    assert not {"agreement", "kl_to_teacher"} & set(fidelity(answers[0], answers[1]))


def test_a_perfect_student_is_its_teacher(answers):
    found = fidelity(answers[2], answers[1], answers[2] + 5.0)  # a softmax does not see a constant
    assert found["agreement"] == 1.0
    assert found["kl_to_teacher"] == pytest.approx(0.0, abs=1e-12)


def test_kl_runs_from_teacher_to_student():
    # two classes: q log(q/p) + (1-q) log((1-q)/(1-p)), q the teacher's
    p, q = 0.2, 0.9
    found = fidelity(np.array([[math.log(p / (1 - p)), 0.0]]), np.array([0]), np.array([[math.log(q / (1 - q)), 0.0]]))
    assert found["kl_to_teacher"] == pytest.approx(q * math.log(q / p) + (1 - q) * math.log((1 - q) / (1 - p)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_tensors_of_any_kind_give_what_arrays_give(answers, dtype):
    logits, labels, teacher = (torch.from_numpy(x) for x in answers)
    z, t = logits.to(dtype).requires_grad_(), teacher.to(dtype)
    assert fidelity(z, labels, t) == fidelity(z.detach().double().numpy(), answers[1], t.double().numpy())


def test_peaky_logits_stay_finite():
    found = fidelity(np.array([[1e4, -1e4], [-1e4, 1e4]]), np.array([0, 0]), np.array([[-1e4, 1e4], [-1e4, 1e4]]))
    assert all(math.isfinite(value) for value in found.values())
    assert found["nll"] == 1e4
    assert found["kl_to_teacher"] == 1e4


def test_expected_calibration_error_of_a_worked_example():
    # confidence 0.8 for ten answers of which six are right, 0.6 for ten of which seven are: 0.5 * 0.2 + 0.5 * 0.1
    z = np.array([[math.log(4), 0.0]] * 10 + [[math.log(1.5), 0.0]] * 10)
    y = np.array([0] * 6 + [1] * 4 + [0] * 7 + [1] * 3)
    assert fidelity(z, y)["ece"] == pytest.approx(0.15)
    rows = {round(row["confidence"], 6): (row["accuracy"], row["count"]) for row in reliability(z, y) if row["count"]}
    assert rows == {0.8: (0.6, 10), 0.6: (0.7, 10)}


def test_reliability_bins_are_closed_above_and_cover_everything(answers):
    rows = reliability(answers[0], answers[1], bins=4)
    assert [row["low"] for row in rows] == [0.0, 0.25, 0.5, 0.75]
    assert sum(row["count"] for row in rows) == 300
    [half] = [row for row in reliability(np.zeros((1, 2)), np.array([0]), bins=4) if row["count"]]
    assert (half["low"], half["high"], half["confidence"]) == (0.25, 0.5, 0.5)


def test_per_class_counts_every_class_also_the_absent():
    z = np.array([[3.0, 0.0, 0.0], [0.0, 3.0, 0.0], [3.0, 0.0, 0.0]])
    assert per_class(z, np.array([0, 1, 1]), 3) == [{"correct": 1, "total": 1}, {"correct": 1, "total": 2}, {"correct": 0, "total": 0}]


def test_per_class_sums_to_the_accuracy(answers):
    rows = per_class(answers[0], answers[1], 7)
    assert sum(row["correct"] for row in rows) / sum(row["total"] for row in rows) == fidelity(*answers)["accuracy"]


Z = np.zeros((2, 3))


@pytest.mark.parametrize(
    ("logits", "labels", "teacher", "error", "says"),
    [
        (np.zeros((0, 3)), np.zeros(0, int), None, DataError, "no example"),
        (np.array([[math.nan, 0, 0], [0, 0, 0]]), [0, 1], None, DataError, "1 of 2 examples"),
        (Z + math.inf, [0, 1], None, DataError, "not finite"),
        (Z, [0, 3], None, DataError, "classes 0 to 2"),
        (Z, [-1, 0], None, DataError, "from -1 to 0"),
        (Z, [0], None, MismatchError, "one class index per example"),
        (Z, [0.0, 1.0], None, MismatchError, "integers"),
        (np.zeros((2, 1)), [0, 0], None, MismatchError, "two classes"),
        (np.zeros(3), [0], None, MismatchError, r"\[N, C\]"),
        (Z, [0, 1], np.zeros((2, 4)), MismatchError, "same classes"),
        (Z, [0, 1], np.zeros((3, 3)), MismatchError, "same examples"),
        (Z, [0, 1], Z + math.nan, DataError, "teacher_logits"),
    ],
)
def test_bad_input_has_one_clear_line(logits, labels, teacher, error, says):
    with pytest.raises(error, match=says) as raised:
        fidelity(logits, np.asarray(labels), teacher)
    assert "\n" not in str(raised.value)


def test_per_class_and_reliability_refuse_what_does_not_fit():
    with pytest.raises(MismatchError, match="3 classes, the data have 4"):
        per_class(Z, np.array([0, 1]), 4)
    with pytest.raises(MismatchError, match="bins"):
        reliability(Z, np.array([0, 1]), bins=0)
