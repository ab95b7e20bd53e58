"""Objectives that match layers, between real models."""

import copy
from collections.abc import Sequence
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.knowledge import Dense, Knowledge
from limbeck.core.lookup import build, find
from limbeck.core.task import Batch, Task
from limbeck.objectives._layered import Layered, Layers
from limbeck.objectives._pairing import Wish

NO_TASK = cast(Task, None)


class Distance(Layered):
    """The mean square between layers of one shape."""

    def __init__(self, *, layers: Layers = "auto") -> None:
        super().__init__(layers)
        self.fitted: list[tuple[torch.Size, torch.Size]] = []

    def fit(self, features: Sequence[tuple[Tensor, Tensor]]) -> None:
        self.fitted += [(ours.shape, theirs.shape) for ours, theirs in features]

    def forward(self, student: Knowledge, teacher: Knowledge | None, batch: Batch) -> Tensor:
        return torch.stack([(ours - theirs).square().flatten(1).mean(-1) for ours, theirs in self.matched(student, teacher)]).sum(0)


class Together(Distance):
    batchwise = True


def record(rows: int = 3, mask: Tensor | None = None, **features: Tensor) -> Knowledge:
    return Knowledge({"main": Dense(torch.zeros(rows, 5))}, features, mask)


def images(kind: str, size: int = 16, **options: Any) -> nn.Module:
    return build("models", kind, options, in_shape=(3, size, size), classes=5)


X, Y = torch.randn(4, 3, 16, 16), torch.tensor([0, 1, 2, 3])


@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        (("cnn", {"width": 4}), ("resnet", {"depth": 8})),
        (("resnet", {"depth": 8}), ("wrn", {"depth": 10, "width": 1})),
        (("mlp", {"widths": [8]}), ("mlp", {"widths": [16, 12]})),
        (("cnn", {"width": 4}), ("vit", {})),
        (("vit", {}), ("cnn", {"width": 4})),
    ],
)
def test_auto_between_models_of_all_kinds_teaches_and_says_what_it_chose(student: tuple[str, Any], teacher: tuple[str, Any]) -> None:
    hint = build("objectives", "feature.fitnet", {"reduction": "mean"})
    scheme = find("schemes", "offline")(images(student[0], **student[1]), images(teacher[0], **teacher[1]), [hint], example=(X, Y))
    assert len(hint.pairs) == 1 == len(hint.said)
    (ours, theirs), line = hint.pairs[0], hint.said[0]
    assert line.startswith(f"FitNet pairs the student's {ours} [") and f"] with the teacher's {theirs} [" in line
    assert "head" not in (ours, theirs)
    scheme((X, Y)).loss.backward()
    assert scheme.student.get_submodule(ours) is not None
    assert any(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in scheme.student.parameters())
    assert all(weight.grad is not None for weight in hint.parameters())


def test_auto_between_inputs_of_other_sizes() -> None:
    ours, theirs = images("cnn", 16, width=4), images("cnn", 16, width=6)
    small: Any = nn.Sequential(nn.AvgPool2d(2), ours)
    hint = build("objectives", "feature.fitnet", {})
    find("schemes", "offline")(small, theirs, [hint], example=(X, Y))
    assert hint.pairs == [("1.layer2", "layer2")]  # the middle of 8, 4, 2 and of 16, 8, 4: as many stages meet one by one


@pytest.mark.parametrize(("wish", "pairs"), [("stages", 3), ("middle", 1), ("last", 1), ("vector", 1)])
def test_what_a_class_wishes_is_what_auto_pairs(wish: Wish, pairs: int) -> None:
    class Wishing(Distance):
        pass

    Wishing.wish = wish
    objective = Wishing()
    assert objective.undecided
    model = images("cnn", width=4)
    find("schemes", "offline")(model, copy.deepcopy(model), [objective], example=(X, Y))
    assert not objective.undecided
    assert len(objective.pairs) == pairs == len(objective.fitted)
    if wish == "vector":
        assert objective.said == ("Wishing pairs the student's head:in with the teacher's head:in",)


def test_layers_that_are_named_are_not_chosen_again() -> None:
    objective = Distance(layers={"a": "b"})
    assert not objective.undecided
    objective.choose(record(), record())
    assert objective.pairs == [("a", "b")] and not objective.said
    assert objective.needs.student.features == {"a"}
    assert objective.needs.teacher is not None and objective.needs.teacher.features == {"b"}


def test_binding_fits_once_and_checks_after() -> None:
    objective = Distance(layers={"a": "b"})
    ours, theirs = record(a=torch.zeros(3, 2)), record(b=torch.zeros(3, 4))
    objective.bind(ours, theirs, NO_TASK, None)
    objective.bind(record(7, a=torch.zeros(7, 2)), record(7, b=torch.zeros(7, 4)), NO_TASK, None)
    assert objective.fitted == [(torch.Size([3, 2]), torch.Size([3, 4]))]
    with pytest.raises(MismatchError, match=r"bound to features \[2\] \(student\), \[4\] \(teacher\), not to \[9\] \(student\)"):
        objective.bind(record(a=torch.zeros(3, 9)), theirs, NO_TASK, None)


def test_a_layer_without_the_examples_first_is_refused() -> None:
    objective = Distance(layers={"a": "b"})
    with pytest.raises(MismatchError, match=r"the student's 'a' gives \[7, 3, 2\] for 3 examples.*batch_first=True"):
        objective.bind(record(a=torch.zeros(7, 3, 2)), record(b=torch.zeros(3, 7, 2)), NO_TASK, None)
    with pytest.raises(MismatchError, match=r"the teacher's 'b' gives \[\] for 3 examples"):
        objective.bind(record(a=torch.zeros(3, 2)), record(b=torch.zeros(())), NO_TASK, None)
    with pytest.raises(MismatchError, match="the student's 'a' has 3 examples and the teacher's 'b' 4"):
        list(objective.matched(record(a=torch.zeros(3, 2)), record(4, b=torch.zeros(4, 2))))


def test_masks_select_what_a_batchwise_objective_compares_and_nothing_else() -> None:
    mask = torch.tensor([True, False, True])
    ours, theirs = record(mask=mask, a=torch.arange(3.0)[:, None]), record(b=torch.zeros(3, 1).requires_grad_())
    ((one, other),) = Together(layers={"a": "b"}).matched(ours, theirs)
    assert one.flatten().tolist() == [0.0, 2.0] and len(other) == 2 and not other.requires_grad
    ((one, _),) = Distance(layers={"a": "b"}).matched(ours, theirs)
    assert len(one) == 3


@pytest.mark.parametrize("layers", ["layer2", ["layer2"], [("a", "b")], 3, True])
def test_layers_of_another_form_are_refused(layers: Any) -> None:
    with pytest.raises(RecipeError, match=r"Distance cannot match the layers .*: write layers: {layer2: layer2}"):
        Distance(layers=layers)


def test_no_layers_and_no_teacher_are_refused() -> None:
    for none in ({}, None):
        with pytest.raises(RecipeError, match="Distance has no layers to match"):
            Distance(layers=cast(Any, none))
    with pytest.raises(MismatchError, match="needs a teacher"):
        Distance(layers={"a": "b"}).bind(record(a=torch.zeros(3, 2)), None, NO_TASK, None)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # torch's own, where a graph goes on with one
@pytest.mark.parametrize("what", ["student", "teacher", "both", "in place", "scheme"])
def test_a_compiled_pair_learns_as_a_plain_one(what: str) -> None:
    def made(wrap: Any) -> Any:
        torch.manual_seed(1)
        student, teacher = images("cnn", width=4), images("cnn", width=6)
        if what in ("student", "both"):
            student = wrap(student)
        if what in ("teacher", "both"):
            teacher = wrap(teacher)
        if what == "in place" and wrap is compiled:
            student.compile(backend="aot_eager")
        torch.manual_seed(2)
        terms = [build("objectives", "response.kd", {}), build("objectives", "feature.fitnet", {"layers": {"layer2.2:in": "layer2.2:in"}})]
        scheme = find("schemes", "offline")(student, teacher, terms, example=(X, Y))
        return wrap(scheme) if what == "scheme" else scheme

    def compiled(module: nn.Module) -> Any:
        return torch.compile(module, backend="aot_eager")

    torch.compiler.reset()
    plain, other = made(lambda module: module), made(compiled)
    for scheme in (plain, other):
        for _ in range(2):
            scheme.zero_grad()
            scheme((X, Y)).loss.backward()
    for one, two in zip(plain.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in other.modules())
    torch.compiler.reset()
