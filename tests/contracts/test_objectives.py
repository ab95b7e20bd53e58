"""Every objective, found by name: a new file is in without a line here.

An objective is built from the recipe line under `Example:` in its class docstring; the layers it names there are those of the standard pair below.
It sees of each side only what its `needs` declare. Its `perfect` says what a student identical to the teacher costs: "zero" (the rule, zero gradient too),
"stationary" (zero gradient) or "no" (neither).
"""

import copy
import inspect
from collections.abc import Mapping
from dataclasses import replace
from types import FunctionType
from typing import Any, cast

import pytest
import torch
import yaml
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.core.errors import MismatchError
from limbeck.core.knowledge import Dense, Knowledge, Link, Reads
from limbeck.core.lookup import build, find, full_name, names
from limbeck.core.objective import Objective
from limbeck.core.task import Facts, Task
from limbeck.objectives.response._response import Responding

N, C = 6, 5
SMALL = {
    "layer1": (4, 6, 6), "layer2": (6, 4, 4), "layer3": (8, 2, 2), "pool": (8,), "head": (C,), "attention": (2, 3, 3),
    "sequence": (3, 8), "query": (3, 8), "key": (3, 8), "value": (3, 8),
}  # fmt: skip
LARGE = SMALL | {"layer2": (12, 5, 3), "layer3": (16, 2, 2), "pool": (16,), "sequence": (3, 12), "query": (3, 12), "key": (3, 12), "value": (3, 12)}
FACTS = Facts(in_shape=(1, 6, 6), classes=C, class_names=tuple("abcde"), examples=N)

every = pytest.mark.parametrize("kind", names("objectives"))


class _CrossEntropy:
    """What an objective may ask of a task: its loss."""

    def loss(self, knowledge: Knowledge, batch: Mapping[str, Tensor]) -> Tensor:
        return F.cross_entropy(knowledge.main.logits.float(), batch["label"], reduction="none")


TASK = cast(Task, _CrossEntropy())


def example(kind: str) -> dict[str, Any]:
    """The options that the recipe line in a part's docstring gives, its weight left out."""
    lines = inspect.cleandoc(find("objectives", kind).__doc__).splitlines()
    assert "Example:" in lines, f"objectives.{kind}: its docstring needs an `Example:`, a line as in a recipe"
    line = yaml.safe_load(lines[lines.index("Example:") + 1])
    assert full_name("objectives", line.pop("kind")) == kind
    line.pop("weight", None)
    return line


def link(kind: str) -> Link:
    """The kind of answers that an objective compares."""
    part = find("objectives", kind)
    return (part.link if issubclass(part, Responding) else None) or "softmax"


def record(
    shapes: Mapping[str, tuple[int, ...]], reads: Reads | None, *, seed: int, n: int = N, dtype: torch.dtype = torch.float32, link: Link = "softmax"
) -> Knowledge | None:
    """What a model of the standard pair says, of what is read: leaves with a gradient."""
    if reads is None:
        return None
    draw = torch.Generator().manual_seed(seed)
    outputs = {name: Dense(3 * torch.randn(n, C, generator=draw), link) for name in sorted(reads.outputs)}
    features = {path: torch.randn(n, *shapes[path], generator=draw) for path in sorted(reads.features)}
    features = {path: feature.softmax(-1) if path == "attention" else feature for path, feature in features.items()}
    modules = {path: layer(path, shapes) for path in sorted(reads.modules)}
    gradient = torch.randn(n, *FACTS.in_shape, generator=draw) if reads.input_gradient else None
    return change(Knowledge(outputs, features, modules=modules, input_gradient=gradient), lambda x: x.to(dtype))


def layer(path: str, shapes: Mapping[str, tuple[int, ...]]) -> nn.Module:
    """A layer of the standard pair, for objectives that build on one; the same weights every time."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return {"pool": nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), "head": nn.Linear(shapes["pool"][0], C)}[path]


def change(knowledge: Knowledge, how: Any) -> Knowledge:
    """The record with every tensor changed: new leaves."""
    return Knowledge(
        {name: Dense(how(said.logits.detach()).requires_grad_(), said.link) for name, said in knowledge.outputs.items()},
        {path: how(feature.detach()).requires_grad_() for path, feature in knowledge.features.items()},
        modules=copy.deepcopy(knowledge.modules),
        input_gradient=None if knowledge.input_gradient is None else how(knowledge.input_gradient.detach()).requires_grad_(),
    )


def leaves(knowledge: Knowledge | None) -> list[Tensor]:
    if knowledge is None:
        return []
    gradient = [] if knowledge.input_gradient is None else [knowledge.input_gradient]
    weights = [weight for module in knowledge.modules.values() for weight in module.parameters()]
    return [*(said.logits for said in knowledge.outputs.values()), *knowledge.features.values(), *gradient, *weights]


def labels(objective: Objective, n: int = N) -> dict[str, Tensor]:
    """A batch with what the objective reads of it: a graph's edges are a ring, a text is one token, the same on both sides."""
    byte = {"starts": torch.zeros(n, dtype=torch.int64), "ends": torch.ones(n, dtype=torch.int64)}
    text = {**byte, **{f"teacher_{name}": value for name, value in byte.items()}, "teacher_label": torch.arange(n) % C, "twins": torch.arange(C).expand(n, C)}
    ring = {"edge_index": torch.stack([torch.arange(n).repeat(2), torch.cat([(torch.arange(n) + 1) % n, (torch.arange(n) - 1) % n])])}
    needs = objective.needs
    return {"id": torch.arange(n), **({"label": torch.arange(n) % C} if needs.labels else {}), **{name: (ring | text)[name] for name in needs.fields}}


def bound(kind: str, *, teacher_shapes: Mapping[str, tuple[int, ...]] = LARGE, start: int = 0, **how: Any) -> tuple[Objective, Knowledge, Knowledge | None]:
    """An objective bound to the standard pair; `start` seeds what it learns from."""
    torch.manual_seed(start)
    objective = build("objectives", kind, example(kind))
    student = record(SMALL, objective.needs.student, seed=1, link=link(kind), **how)
    teacher = record(teacher_shapes, objective.needs.teacher, seed=2, link=link(kind), **how)
    assert student is not None
    objective.bind(student, teacher, TASK, FACTS)
    return objective, student, teacher


def gradients(knowledge: Knowledge) -> list[Tensor]:
    return [leaf.grad for leaf in leaves(knowledge) if leaf.grad is not None]


@every
def test_gives_one_loss_per_prediction_or_declares_a_scalar(kind: str) -> None:
    objective, student, teacher = bound(kind)
    loss = objective(student, teacher, labels(objective))
    assert loss.shape == (() if objective.batchwise else (N,))
    assert torch.isfinite(loss).all()


@every
def test_teaches_the_student_and_never_the_teacher(kind: str) -> None:
    objective, student, teacher = bound(kind)
    objective(student, teacher, labels(objective)).sum().backward()
    assert any(grad.abs().sum() > 0 for grad in gradients(student))
    assert all(leaf.grad is None for leaf in leaves(teacher))
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in objective.parameters())


@every
def test_a_perfect_student_pays_nothing_and_stays(kind: str) -> None:
    objective, student, teacher = bound(kind, teacher_shapes=SMALL)
    perfect = type(objective).perfect
    if teacher is None or perfect == "no":
        pytest.skip("a student identical to the teacher is not where this objective leads")
    assert not list(objective.parameters()), "between equal shapes nothing is to be learnt"
    teacher = change(student, torch.clone)
    loss = objective(student, teacher, labels(objective))
    loss.sum().backward()
    if perfect == "zero":
        assert torch.allclose(loss, torch.zeros_like(loss), atol=1e-6)
    for leaf, grad in zip(leaves(student), gradients(student), strict=True):
        assert torch.allclose(grad, torch.zeros_like(grad), atol=1e-5)
        nudged = change(student, lambda x, of=leaf: x + 0.1 * torch.randn_like(x) if x.shape == of.shape else x)
        assert objective(nudged, teacher, labels(objective)).sum() > loss.sum()


@every
def test_takes_a_batch_of_one(kind: str) -> None:
    objective, _, _ = bound(kind)
    student, teacher = record(SMALL, objective.needs.student, seed=1, n=1), record(LARGE, objective.needs.teacher, seed=2, n=1)
    loss = objective(student, teacher, labels(objective, 1))
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert student is not None
    assert all(torch.isfinite(grad).all() for grad in gradients(student))


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_computes_half_precision_in_float32(kind: str, dtype: torch.dtype) -> None:
    objective, student, teacher = bound(kind, dtype=dtype)
    loss = objective(student, teacher, labels(objective))
    loss.sum().backward()
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss).all()
    assert all(torch.isfinite(grad).all() for grad in gradients(student))
    exact = objective(change(student, Tensor.float), teacher and change(teacher, Tensor.float), labels(objective))
    assert torch.allclose(loss, exact, rtol=1e-5)


@every
def test_stays_finite_where_both_are_sure_and_disagree(kind: str) -> None:
    objective, student, teacher = bound(kind)
    sure = {name: Dense((F.one_hot(torch.arange(N) % C, C) * 2e4 - 1e4).requires_grad_()) for name in student.outputs}
    student = replace(student, outputs=sure)
    if teacher is not None:
        teacher = replace(teacher, outputs={name: Dense(F.one_hot((torch.arange(N) + 1) % C, C) * 2e4 - 1e4) for name in teacher.outputs})
    loss = objective(student, teacher, {**labels(objective), **({"label": (torch.arange(N) + 2) % C} if objective.needs.labels else {})})
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert all(torch.isfinite(grad).all() for grad in gradients(student))


@every
def test_what_it_learns_is_saved_and_restored(kind: str) -> None:
    objective, student, teacher = bound(kind)
    batch = labels(objective)
    with torch.no_grad():
        for parameter in objective.parameters():
            parameter.add_(torch.randn_like(parameter))
    loss = objective(student, teacher, batch)
    objective.bind(student, teacher, TASK, FACTS)
    assert torch.equal(objective(student, teacher, batch), loss), "binding again must keep what was learnt"
    fresh, _, _ = bound(kind, start=1)
    fresh.load_state_dict(objective.state_dict())
    assert torch.equal(fresh(student, teacher, batch), loss)
    assert set(objective.state_dict()) >= {name for name, _ in objective.named_parameters()}


@every
def test_a_deep_copy_is_its_own(kind: str) -> None:
    objective, student, teacher = bound(kind)
    batch = labels(objective)
    loss = objective(student, teacher, batch)
    other = copy.deepcopy(objective)
    assert torch.equal(other(student, teacher, batch), loss)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert torch.equal(objective(student, teacher, batch), loss)


@every
def test_traces_as_one_graph(kind: str) -> None:
    objective, student, teacher = bound(kind)
    batch = labels(objective)
    torch.compiler.reset()
    compiled = torch.compile(objective, backend="aot_eager", fullgraph=True)
    loss = compiled(student, teacher, batch)
    loss.sum().backward()
    traced = gradients(student)
    again = change(student, torch.clone)
    eager = objective(again, teacher, batch)
    eager.sum().backward()
    assert torch.allclose(loss, eager, rtol=1e-5)
    assert all(torch.allclose(one, other, rtol=1e-5, atol=1e-7) for one, other in zip(traced, gradients(again), strict=True))


@every
def test_micro_batches_add_up_to_the_whole(kind: str) -> None:
    objective, student, teacher = bound(kind)
    if objective.batchwise:
        pytest.skip("declared batchwise: its loss depends on which examples meet")
    batch = labels(objective)
    whole = objective(student, teacher, batch)
    parts = [
        objective(
            change(student, lambda x, at=at: x[at]), teacher and change(teacher, lambda x, at=at: x[at]), {key: field[at] for key, field in batch.items()}
        )
        for at in (slice(0, 1), slice(1, 4), slice(4, N))
    ]
    assert torch.allclose(torch.cat(parts), whole, rtol=1e-6, atol=1e-7)


@every
def test_a_masked_prediction_spoils_no_other(kind: str) -> None:
    objective, student, teacher = bound(kind)
    if objective.batchwise:
        pytest.skip("declared batchwise: it applies the mask itself")
    batch = labels(objective)
    sound = objective(student, teacher, batch)

    def spoil(x: Tensor) -> Tensor:
        return torch.cat([torch.full_like(x[:1], float("nan")), x[1:]])

    spoilt = change(student, spoil)
    loss = objective(spoilt, teacher and change(teacher, spoil), batch)
    loss[1:].sum().backward()
    assert torch.equal(loss[1:], sound[1:])
    assert loss[0].isnan(), "what is not a number must not pass for one"
    assert all(torch.isfinite(grad[1:]).all() for grad in gradients(spoilt))


@every
def test_refuses_two_sides_of_different_length(kind: str) -> None:
    objective, student, _ = bound(kind)
    teacher = record(LARGE, objective.needs.teacher, seed=2, n=N + 1)
    if teacher is None:
        pytest.skip("asks no teacher")
    with pytest.raises(MismatchError, match=rf"\b{N}\b.*\b{N + 1}\b"):
        objective(student, teacher, labels(objective))


@every
def test_refuses_to_be_taught_by_nobody(kind: str) -> None:
    objective = build("objectives", kind, example(kind))
    student = record(SMALL, objective.needs.student, seed=1)
    assert student is not None
    if objective.needs.teacher is None:
        objective.bind(student, None, TASK, FACTS)
        return
    with pytest.raises(MismatchError, match="teacher"):
        objective.bind(student, None, TASK, FACTS)


@pytest.mark.parametrize("kind", [name for name in names("objectives") if name.startswith("response.")])
def test_a_response_objective_refuses_other_classes_and_other_links(kind: str) -> None:
    objective = build("objectives", kind, example(kind))
    own: Link = link(kind)
    other: Link = "softmax" if own == "bernoulli" else "bernoulli"
    student, stranger = Knowledge({"main": Dense(torch.zeros(2, 10), own)}), Knowledge({"main": Dense(torch.zeros(2, 10), other)})
    if objective.needs.teacher is None:
        with pytest.raises(MismatchError, match=rf"{own}.*{other}"):
            objective.bind(stranger, None, TASK, None)
        return
    fewer = Knowledge({"main": Dense(torch.zeros(2, 7), own)})
    with pytest.raises(MismatchError, match=r"\b10\b.*\b7\b"):
        objective.bind(*((fewer, student) if kind == "response.lwf" else (student, fewer)), TASK, None)  # the old self knows fewer classes, never more
    with pytest.raises(MismatchError, match=rf"{own}.*{other}"):
        objective.bind(student, stranger, TASK, None)


@every
def test_overrides_no_concrete_method_of_a_shared_base_but_its_hooks(kind: str) -> None:
    lineage = [base for base in find("objectives", kind).__mro__ if base.__module__.startswith("limbeck.objectives.")]
    for at, base in enumerate(lineage):
        for name, member in vars(base).items():
            if name.startswith("__") or not isinstance(member, (FunctionType, property)) or getattr(member, "__isabstractmethod__", False):
                continue
            below = [final.__name__ for final in lineage[:at] if name in vars(final)]
            assert not below or (member.__doc__ or "").startswith("Hook:"), f"{below[0]} overrides {base.__name__}.{name}"


@every
def test_names_every_public_leaf_function_with_the_class(kind: str) -> None:
    part: type[nn.Module] = find("objectives", kind)
    module = inspect.getmodule(part)
    assert module is not None
    public = {name for name, member in vars(module).items() if not name.startswith("_") and getattr(member, "__module__", "") == module.__name__}
    assert set(module.__all__) == public
