"""An ensemble says the mean of what its members say."""

import copy
import math
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.knowledge import Dense, Knowledge, Link, Reads
from limbeck.core.lookup import build, find
from limbeck.core.task import Batch, Task, default_task
from limbeck.core.teacher import Teacher
from limbeck.teachers.ensemble import Ensemble


class Says(Teacher):
    """A teacher that says the same of every batch, and notes what it is told."""

    def __init__(self, logits: Tensor, link: Link = "softmax") -> None:
        super().__init__()
        self.said = Dense(logits, link)
        self.followed: list[nn.Module] = []

    def prepare(self, reads: Reads, task: Task) -> None: ...

    def forward(self, batch: Batch, student: Knowledge | None = None) -> Knowledge:
        return Knowledge({"main": self.said})

    def after_step(self, student: nn.Module) -> None:
        self.followed.append(student)


def ask(members: list[nn.Module], **options: Any) -> Tensor:
    made = Ensemble(members, **options)
    made.prepare(Reads(), default_task())
    return made({"input": torch.zeros(5, 4)}).main.logits


def logits(count: int, scale: float = 3.0) -> list[Tensor]:
    return list(scale * torch.randn(count, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))


def naive(said: list[Tensor], weights: list[float], average: str) -> Tensor:
    """The mean of probabilities `[N, C]`, number by number, in float64."""
    total = sum(weights)
    mean = torch.zeros(5, 4, dtype=torch.float64)
    for row in range(5):
        for column in range(4):
            for z, weight in zip(said, weights, strict=True):
                if average == "logits":
                    mean[row, column] += weight / total * z[row, column]
                else:
                    mean[row, column] += weight / total * math.exp(z[row, column]) / sum(math.exp(v) for v in z[row])
    return mean.softmax(-1) if average == "logits" else mean


@pytest.mark.parametrize("average", ["probabilities", "logits"])
@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 0.5], [3.0, 0.0, 1.0]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_a_naive_mean(average: Literal["probabilities", "logits"], weights: list[float] | None, dtype: torch.dtype) -> None:
    said = logits(3)
    found = ask([Says(one.to(dtype)) for one in said], average=average, weights=weights)
    assert found.dtype == dtype
    expected = naive(said, weights or [1.0] * 3, average)
    torch.testing.assert_close(found.softmax(-1), expected.to(dtype), rtol=1e-5 if dtype == torch.float32 else 1e-12, atol=0)


def test_arithmetic_and_geometric_means_differ() -> None:
    said: list[nn.Module] = [Says(one) for one in logits(2)]
    assert (ask(said).softmax(-1) - ask(said, average="logits").softmax(-1)).abs().max() > 0.05


def test_peaky_and_excluded_classes_stay_finite_where_a_member_allows_them() -> None:
    one, other = torch.tensor([[1e4, 0.0, -math.inf]]), torch.tensor([[0.0, 1e4, -math.inf]])
    found = ask([Says(one), Says(other)]).softmax(-1)
    torch.testing.assert_close(found, torch.tensor([[0.5, 0.5, 0.0]]))
    found = ask([Says(one.half()), Says(other.half())])
    assert found.dtype == torch.float32 and not found.isnan().any()


def test_yes_or_no_answers_are_averaged_one_by_one() -> None:
    said = logits(2)
    found = ask([Says(one, "bernoulli") for one in said], weights=[1.0, 3.0])
    torch.testing.assert_close(found.sigmoid(), (said[0].sigmoid() + 3 * said[1].sigmoid()) / 4)


def test_real_numbers_are_averaged_as_they_are() -> None:
    said = logits(2)
    torch.testing.assert_close(ask([Says(one, "identity") for one in said]), (said[0] + said[1]) / 2)


def test_bare_modules_are_frozen_and_out_of_reach() -> None:
    members: list[nn.Module] = [nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.9)), nn.Linear(4, 4)]
    made = Ensemble(members)
    made.prepare(Reads(), default_task())
    assert not list(made.parameters()) and not made.state_dict()
    made.train()
    batch = {"input": torch.randn(5, 4)}
    assert torch.equal(made(batch).main.logits, made(batch).main.logits)
    assert not made(batch).main.logits.requires_grad
    copied = copy.deepcopy(made).to(torch.float64)
    assert next(members[1].parameters()).dtype == torch.float32
    assert copied({"input": batch["input"].double()}).main.logits.dtype == torch.float64


def test_members_that_move_follow_the_student() -> None:
    members = [Says(one) for one in logits(2)]
    student = nn.Linear(1, 1)
    Ensemble(members).after_step(student)
    assert [one.followed for one in members] == [[student], [student]]


@pytest.mark.parametrize(
    ("count", "options", "message"),
    [
        (1, {}, "an ensemble of 1: give two teachers or more"),
        (0, {}, "an ensemble of 0"),
        (2, {"weights": [1.0]}, "1 weights for 2 teachers: give one each"),
        (2, {"weights": [1.0, -0.5]}, "must be finite, zero or more"),
        (2, {"weights": [0.0, 0.0]}, "not all zero"),
        (2, {"weights": [1.0, math.nan]}, "must be finite"),
        (2, {"weights": [1.0, math.inf]}, "must be finite"),
        (2, {"average": "median"}, "'probabilities' or 'logits'"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused(count: int, options: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        build("teachers", "ensemble", options, [Says(one) for one in logits(count)])
    assert "\n" not in str(caught.value)


def test_members_must_know_the_same_classes_in_the_same_way() -> None:
    with pytest.raises(MismatchError, match=r"\(5, 3\), \(5, 4\); they must know the same classes"):
        ask([Says(torch.zeros(5, 3)), Says(torch.zeros(5, 4))])
    with pytest.raises(MismatchError, match="answer in different ways, softmax, bernoulli"):
        ask([Says(torch.zeros(5, 4)), Says(torch.zeros(5, 4), "bernoulli")])


def nets(count: int = 2) -> list[nn.Module]:
    torch.manual_seed(0)
    return [nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4)) for _ in range(count)]


def test_features_of_several_members_are_read_at_once_by_their_numbers() -> None:
    members, x = nets(), torch.randn(5, 4)
    made = Ensemble(members)
    made.prepare(Reads(features=frozenset({"0.1", "1.0", "1.1:in"}), modules=frozenset({"1.2"})), default_task())
    said = made({"input": x})
    assert set(said.features) == {"0.1", "1.0", "1.1:in"} and said.modules == {"1.2": members[1].get_submodule("2")}
    torch.testing.assert_close(said.feature("0.1"), members[0].get_submodule("1")(members[0].get_submodule("0")(x)))
    torch.testing.assert_close(said.feature("1.0"), members[1].get_submodule("0")(x))
    assert torch.equal(said.feature("1.0"), said.feature("1.1:in"))
    assert torch.equal(said.whole("1").logits, members[1](x).detach()) and set(said.outputs) == {"main", "0", "1"}


def test_a_student_learns_from_layers_of_two_teachers() -> None:
    batch = (torch.randn(8, 4), torch.arange(8) % 4)
    layers = {"1": "0.1", "0": "1.0"}
    hint = build("objectives", "feature.fitnet", {"layers": layers})
    student = nets(1)[0]
    scheme = find("schemes", "offline")(student, Ensemble(nets()), [hint, build("objectives", "kd", {})], example=batch)
    scheme(batch).loss.backward()
    assert all(one.grad is not None for one in student.parameters())


@pytest.mark.parametrize(
    ("reads", "message"),
    [
        (Reads(features=frozenset({"layer1"})), r"no single layer layer1: name a member's, 0\.layer1 for the first"),
        (Reads(modules=frozenset({"0"})), "no single layer 0: name a member's"),
        (Reads(features=frozenset({"2.layer1"})), r"2\.layer1 is a layer of member 2, and the ensemble's members are 0 to 1"),
        (Reads(shapes=True), r"not paired by themselves: name them, layers: \{layer3: 0\.layer3\}"),
        (Reads(input_gradient=True), "no one gradient by its input"),
    ],
)
def test_what_only_one_model_has_is_refused(reads: Reads, message: str) -> None:
    with pytest.raises(MismatchError, match=message) as caught:
        Ensemble(nets()).prepare(reads, default_task())
    assert "\n" not in str(caught.value)


def labelled(**fields: Tensor) -> dict[str, Tensor]:
    return {"input": torch.zeros(5, 4), "label": torch.tensor([0, 1, 2, 3, 0]), **fields}


def says(members: list[nn.Module], batch: dict[str, Tensor], **options: Any) -> Tensor:
    made = build("teachers", "ensemble", options, members)
    made.prepare(Reads(), default_task())
    return made(batch).main.logits


@pytest.mark.parametrize(("weights", "temperature"), [("entropy", 0.2), ("agreement", 1.0), ({"kind": "entropy", "temperature": 0.05}, 0.05),
                                                      ({"kind": "agreement", "temperature": 3.0}, 3.0)])  # fmt: skip
@pytest.mark.parametrize("average", ["probabilities", "logits"])
def test_weights_of_each_example_are_those_of_a_loop(weights: Any, temperature: float, average: str) -> None:
    said, batch = logits(3), labelled()
    found = says([Says(one) for one in said], batch, weights=weights, average=average).softmax(-1)
    for row in range(5):
        probabilities = [[math.exp(v) / sum(math.exp(u) for u in z[row]) for v in z[row]] for z in said]
        if weights == "entropy" or weights == {"kind": "entropy", "temperature": 0.05}:
            costs = [-sum(p * math.log(p) for p in one) / math.log(4) for one in probabilities]
        else:
            costs = [-math.log(one[int(batch["label"][row])]) for one in probabilities]
        shares = [math.exp(-cost / temperature) for cost in costs]
        shares = [share / sum(shares) for share in shares]
        if average == "probabilities":
            expected = torch.tensor([sum(w * one[c] for w, one in zip(shares, probabilities, strict=True)) for c in range(4)])
        else:
            expected = torch.stack([w * z[row] for w, z in zip(shares, said, strict=True)]).sum(0).softmax(-1)
        torch.testing.assert_close(found[row], expected.double(), rtol=1e-5, atol=1e-7)


def test_a_sure_teacher_counts_more_and_a_right_one_too() -> None:
    sure, unsure = torch.tensor([[6.0, 0, 0, 0]]).repeat(5, 1), torch.tensor([[0.0, 0.1, 0, 0]]).repeat(5, 1)
    assert says([Says(sure), Says(unsure)], labelled(), weights="entropy").softmax(-1)[0, 0] > 0.9
    wrong = labelled(label=torch.full((5,), 1))
    assert says([Says(sure), Says(unsure)], wrong, weights="agreement").softmax(-1)[0, 0] < 0.3


def test_predictions_without_a_label_count_for_all_teachers_alike() -> None:
    said = logits(2)
    seen = torch.tensor([True, True, False, True, False])
    found = says([Says(one) for one in said], labelled(labelled=seen), weights="agreement")
    torch.testing.assert_close(found[~seen].softmax(-1), ((said[0].softmax(-1) + said[1].softmax(-1)) / 2)[~seen], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(found[seen], says([Says(one) for one in said], labelled(), weights="agreement")[seen])


def test_teachers_of_yes_or_no_answers_are_weighed_too() -> None:
    said = logits(2)
    found = says([Says(one, "bernoulli") for one in said], {"input": torch.zeros(5, 4)}, weights="entropy")
    p = [one.sigmoid() for one in said]
    costs = [-(one * one.log() + (1 - one) * (1 - one).log()).sum(-1) / (4 * math.log(2)) for one in p]
    w = (-torch.stack(costs) / 0.2).softmax(0)
    torch.testing.assert_close(found.sigmoid(), (w[..., None] * torch.stack(p)).sum(0), rtol=1e-5, atol=1e-7)


def test_the_union_of_classes_is_the_table_by_hand() -> None:
    """One teacher knows classes 0 and 1 of four, the other 3, 1 and 2."""
    one, other = torch.tensor([[0.8, 0.2]]).repeat(5, 1), torch.tensor([[0.1, 0.3, 0.6]]).repeat(5, 1)
    members: list[nn.Module] = [Says(one.log()), Says(other.log())]
    classes = [[0, 1], [3, 1, 2]]
    found = says(members, labelled(), classes=classes, weights=[1.0, 3.0]).softmax(-1)
    torch.testing.assert_close(found[0], torch.tensor([0.25 * 0.8, 0.25 * 0.2 + 0.75 * 0.3, 0.75 * 0.6, 0.75 * 0.1]))
    geometric = torch.tensor([0.8, math.sqrt(0.2 * 0.3), 0.6, 0.1])
    torch.testing.assert_close(says(members, labelled(), classes=classes, average="logits").softmax(-1)[0], geometric / geometric.sum())
    by_label = says(members, labelled(), classes=classes, weights="agreement").softmax(-1)
    torch.testing.assert_close(by_label[0], torch.tensor([0.8, 0.2, 0.0, 0.0]))  # label 0, which the second does not know
    torch.testing.assert_close(by_label[1], torch.tensor([0.4 * 0.8, 0.4 * 0.2 + 0.6 * 0.3, 0.6 * 0.6, 0.6 * 0.1]))
    made = Ensemble(members, classes=classes)
    made.prepare(Reads(), default_task())
    assert made(labelled()).whole("0").logits.softmax(-1)[0].tolist() == pytest.approx([0.8, 0.2, 0.0, 0.0])


def test_a_yes_or_no_class_is_the_mean_over_those_who_know_it() -> None:
    one, other = torch.tensor([[0.8, 0.2]]).repeat(5, 1).logit(), torch.tensor([[0.4, 0.6]]).repeat(5, 1).logit()
    found = says([Says(one, "bernoulli"), Says(other, "bernoulli")], labelled(), classes=[[0, 1], [1, 2]]).sigmoid()
    torch.testing.assert_close(found[0], torch.tensor([0.8, 0.3, 0.6]))


def test_a_student_over_the_union_learns_and_stays_finite() -> None:
    torch.manual_seed(0)
    batch = (torch.randn(8, 4), torch.arange(8) % 5)
    teacher = build("teachers", "ensemble", {"classes": [[0, 1, 2], [3, 4]], "weights": "entropy"}, [nn.Linear(4, 3), nn.Linear(4, 2)])
    scheme = find("schemes", "offline")(nn.Linear(4, 5), teacher, [build("objectives", "kd", {})], example=batch)
    loss = scheme(batch).loss
    loss.backward()
    assert loss.isfinite() and loss > 0
    with pytest.raises(MismatchError, match="the student has 4 classes, the teacher 5"):
        find("schemes", "offline")(nn.Linear(4, 4), teacher, [build("objectives", "kd", {})], example=batch)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ([[0, 1]], "classes names those of 1 teachers, and there are 2"),
        ([[0, 1], []], "the classes of member 1 are"),
        ([[0, 1], [1, -2]], "from 0"),
        ([[0, 0], [1, 2]], "each output is a class of its own"),
        ([[0, 1], [1, 3]], "class 2 is known to no member"),
    ],
)
def test_maps_that_cannot_be_meant_are_refused(classes: list[list[int]], message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        build("teachers", "ensemble", {"classes": classes}, [Says(torch.zeros(5, 2)), Says(torch.zeros(5, 2))])
    assert "\n" not in str(caught.value)


def test_what_does_not_fit_the_weighing_is_refused() -> None:
    numbers: list[nn.Module] = [Says(one, "identity") for one in logits(2)]
    with pytest.raises(MismatchError, match="real numbers have no entropy"):
        says(numbers, labelled(), weights="entropy")
    with pytest.raises(MismatchError, match=r"weighs its members by labels and the batch has none \(fields input\)"):
        says([Says(one) for one in logits(2)], {"input": torch.zeros(5, 4)}, weights="agreement")
    with pytest.raises(MismatchError, match="member 1 of the ensemble answers for 4 classes and `classes` names 2"):
        says([Says(one) for one in logits(2)], labelled(), classes=[[0, 1, 2, 3], [0, 1]])
    with pytest.raises(RecipeError, match="entropie"):
        build("teachers", "ensemble", {"weights": {"kind": "entropie"}}, numbers)


def learning(members: list[nn.Module], rate: float = 0.5, **options: Any) -> Ensemble:
    made = build("teachers", "ensemble", {"weights": {"kind": "learned", "rate": rate}, **options}, members)
    made.prepare(Reads(), default_task())
    return made


@pytest.mark.parametrize("average", ["probabilities", "logits"])
def test_learned_weights_take_the_step_of_a_loop(average: str) -> None:
    said, batch = logits(3), labelled()
    made = learning([Says(one) for one in said], average=average)
    g = torch.tensor([0.2, -0.1, -0.1], dtype=torch.float64)
    assert made.gate is not None
    made.gate.logarithms.copy_(g)

    def cost(g: Tensor) -> float:
        weights = [math.exp(v) for v in g]
        return sum(-math.log(float(row[label])) for row, label in zip(naive(said, weights, average), batch["label"], strict=True)) / 5

    gradient = [(cost(g + 1e-6 * step) - cost(g - 1e-6 * step)) / 2e-6 for step in torch.eye(3, dtype=torch.float64)]
    made(batch)
    made(batch)  # two micro-batches of one step
    made.after_step(nn.Linear(1, 1))
    torch.testing.assert_close(made.gate.logarithms.double(), g - 0.5 * torch.tensor(gradient), rtol=1e-4, atol=1e-6)
    before = made.gate.logarithms.clone()
    made.after_step(nn.Linear(1, 1))
    assert torch.equal(made.gate.logarithms, before), "nothing was heard since"


def test_learned_weights_find_the_likeliest_mixture() -> None:
    """Labels drawn from a mixture of two fixed distributions: the weights come to the shares with which they were mixed."""
    p = torch.tensor([[0.7, 0.1, 0.1, 0.1], [0.1, 0.1, 0.1, 0.7]])
    label = torch.multinomial(torch.tensor([0.2, 0.8]) @ p, 4000, replacement=True, generator=torch.Generator().manual_seed(0))
    shares = torch.stack([(label == 0).float().mean(), (label == 3).float().mean()])
    made = learning([Says(one.log().expand(4000, 4)) for one in p], rate=1.0)
    batch = {"input": torch.zeros(4000, 1), "label": label}
    for _ in range(300):
        made(batch)
        made.after_step(nn.Linear(1, 1))
    assert made.gate is not None
    ours = made.gate.weights @ p
    torch.testing.assert_close(ours[0] / ours[3], shares[0] / shares[1], rtol=1e-3, atol=0)
    assert made.gate.weights[1].item() == pytest.approx(0.8, abs=0.03)
    assert not list(made.parameters()) and len(made.state_dict()) == 3


def test_learned_weights_and_a_label_that_nobody_can_see_stay_finite() -> None:
    made = learning([Says(torch.tensor([[1e4, 0.0, 0.0, 0.0]]).repeat(5, 1)), Says(torch.zeros(5, 4))])
    for _ in range(50):
        made(labelled())
        made.after_step(nn.Linear(1, 1))
    assert made.gate is not None
    assert made.gate.weights.isfinite().all() and made.gate.weights[1] > made.gate.weights[0]


def test_views_and_asking_the_student_are_those_of_the_members() -> None:
    one, other = Says(torch.zeros(5, 4)), Says(torch.zeros(5, 4))
    assert Ensemble([one, other]).views is None and not Ensemble([one, other]).reads_student
    one.views, one.reads_student = 2, True
    assert Ensemble([one, other]).views == 2 and Ensemble([one, other]).reads_student
    other.views = 3
    with pytest.raises(MismatchError, match="know 2 and 3 views"):
        Ensemble([one, other])


def test_it_teaches_a_student() -> None:
    batch = (torch.randn(8, 4), torch.arange(8) % 3)
    scheme = find("schemes", "offline")(nn.Linear(4, 3), Ensemble([nn.Linear(4, 3), nn.Linear(4, 3)]), [build("objectives", "kd", {})])
    loss = scheme(batch).loss
    loss.backward()
    assert loss > 0 and len(list(scheme.parameters())) == 2
