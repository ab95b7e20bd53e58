"""Which weights an objective on weights reads, how they lie by outputs and inputs, and that it trains whatever reads them."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.knowledge import Knowledge
from limbeck.core.objective import Term
from limbeck.core.task import Task, default_task
from limbeck.objectives.sparsity._weights import by_input, by_output
from limbeck.objectives.sparsity.group_lasso import GroupLasso
from limbeck.objectives.sparsity.weight_elimination import WeightElimination
from limbeck.objectives.supervised import Supervised
from limbeck.schemes.offline import Offline


@pytest.fixture
def task() -> Task:
    return default_task()


def about(*, root: nn.Module | None = None, **modules: nn.Module) -> Knowledge:
    return Knowledge({}, modules=modules if root is None else {"": root})


def bound(objective: WeightElimination, student: Knowledge, task: Task) -> float:
    objective.bind(student, None, task, None)
    return objective(student, None, {}).item()


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, 3, bias=False), nn.Conv2d(4, 6, 3, groups=2, bias=False), nn.Conv1d(4, 4, 2, groups=4, bias=False), nn.Linear(4, 5, bias=False),
        nn.ConvTranspose2d(4, 6, 3, bias=False), nn.ConvTranspose2d(4, 6, 3, groups=2, bias=False),
    ],
)  # fmt: skip
def test_rows_are_those_that_reach_an_output_and_those_that_an_input_reaches(layer: nn.Module) -> None:
    """By what the layer computes: an output changes with the weights of its row alone, and its row holds all of them."""
    weight: Tensor = layer.weight  # pyright: ignore[reportAssignmentType]
    inputs = 4
    x = torch.randn(1, inputs) if isinstance(layer, nn.Linear) else torch.randn(1, inputs, *([7] * (weight.ndim - 2)))
    marks = torch.arange(weight.numel()).view_as(weight)
    said = layer(x)
    for index, row in enumerate(by_output(layer, marks)):
        (gradient,) = torch.autograd.grad(said[0, index].sum(), weight, retain_graph=True)
        assert sorted(row.tolist()) == gradient.flatten().nonzero().flatten().tolist()
    for index, row in enumerate(by_input(layer, marks)):
        alone = torch.zeros_like(x)
        alone[0, index] = x[0, index]
        (gradient,) = torch.autograd.grad(layer(alone).sum(), weight)
        assert sorted(row.tolist()) == gradient.flatten().nonzero().flatten().tolist()


def test_auto_takes_matrices_and_kernels_once_and_nothing_else(task: Task) -> None:
    model: Any = nn.ModuleDict({
        "conv": nn.Conv2d(1, 2, 3), "norm": nn.BatchNorm2d(2), "tokens": nn.Embedding(5, 4), "state": nn.LSTM(4, 3), "attends": nn.MultiheadAttention(4, 2),
        "one": nn.Linear(4, 4), "same": nn.Linear(4, 4),
    })  # fmt: skip
    model["same"].weight = model["one"].weight
    counted = [
        model["conv"].weight, model["state"].weight_ih_l0, model["state"].weight_hh_l0, model["attends"].in_proj_weight, model["attends"].out_proj.weight,
        model["one"].weight,
    ]  # fmt: skip
    expected = sum((w.double().square() / (1 + w.double().square())).sum().item() for w in counted)
    assert bound(WeightElimination(), about(root=model), task) == pytest.approx(expected, rel=1e-5)


def test_named_layers_are_read_with_all_inside_them_and_what_lies_in_both_counts_once(task: Task) -> None:
    inner = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 2))
    objective = WeightElimination(layers=["whole", "part"])
    assert objective.needs.student.modules == {"whole", "part"} and not objective.needs.student.outputs and objective.needs.teacher is None
    both = bound(objective, about(whole=inner, part=inner[2]), task)
    assert both == pytest.approx(bound(WeightElimination(layers=["whole"]), about(whole=inner), task))
    assert both > bound(WeightElimination(layers=["part"]), about(part=inner[2]), task) > 0


def test_a_parametrized_weight_counts_as_what_it_comes_to(task: Task) -> None:
    layer, plain = nn.Linear(3, 4), nn.Linear(3, 4)
    parametrizations.weight_norm(layer)
    plain.weight = nn.Parameter(layer.weight.detach().clone())
    assert bound(WeightElimination(), about(root=layer), task) == pytest.approx(bound(WeightElimination(), about(root=plain), task))


@pytest.mark.parametrize(("model", "layers"), [(nn.ReLU(), "auto"), (nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), ["1"])])
def test_a_layer_without_weights_is_named(model: nn.Module, layers: list[str], task: Task) -> None:
    objective = GroupLasso(layers=layers)
    modules = {path: model.get_submodule(path) for path in objective.needs.student.modules}
    with pytest.raises(MismatchError, match=r"(the student|layer '1').*holds no weights"):
        objective.bind(Knowledge({}, modules=modules), None, task, None)


def test_no_layers_and_a_scheme_that_shows_no_modules_are_refused(task: Task) -> None:
    with pytest.raises(RecipeError, match="no layers"):
        GroupLasso(layers=[])
    with pytest.raises(MismatchError, match="does not hand over the student"):
        GroupLasso().bind(Knowledge({}), None, task, None)


def test_in_a_scheme_it_adds_its_weight_times_the_penalty_whatever_the_batch(task: Task) -> None:
    first, last = nn.Linear(3, 4), nn.Linear(4, 2)
    model = nn.Sequential(first, nn.ReLU(), last)
    for rows in (2, 5):
        batch = {"input": torch.randn(rows, 3), "label": torch.arange(rows) % 2}
        scheme = Offline(copy.deepcopy(model), None, [Term(Supervised()), Term(GroupLasso(), 0.25)], task, batch)
        losses = scheme(batch)
        bare = Offline(copy.deepcopy(model), None, [Term(Supervised())], task, batch)(batch).loss
        penalty = sum(w.shape[1] ** 0.5 * w.norm(dim=1).sum() for w in (first.weight, last.weight))
        assert losses.loss.item() == pytest.approx((bare + 0.25 * penalty).item(), rel=1e-5)
        losses.loss.backward()
        assert all(one.grad is not None for one in scheme.student.parameters())


def test_nested_layers_trace_as_one_graph(task: Task) -> None:
    student = about(root=nn.Sequential(nn.Sequential(nn.Linear(3, 4)), nn.Conv2d(1, 2, 3)))
    objective = GroupLasso()
    objective.bind(student, None, task, None)
    torch.compiler.reset()
    assert torch.allclose(torch.compile(objective, backend="aot_eager", fullgraph=True)(student, None, {}), objective(student, None, {}))
