"""What a model is asked, and what comes back."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.core.ask import ask
from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.knowledge import Reads
from limbeck.core.task import Batch, Task, default_task

TASK: Task = default_task()


@pytest.fixture
def batch() -> Batch:
    torch.manual_seed(0)
    return {"input": torch.randn(5, 3, dtype=torch.float64), "label": torch.tensor([0, 1, 1, 0, 1])}


def net() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


def test_what_is_not_asked_for_is_empty(batch: Batch):
    said = ask(net(), batch, Reads(), TASK, side="student")
    assert torch.equal(said.main.logits, net()(batch["input"]))
    assert not said.features and not said.modules and not said.shapes and said.input_gradient is None


def test_features_modules_and_shapes(batch: Batch):
    model = net()
    said = ask(model, batch, Reads(features=frozenset({"0", "2:in"}), modules=frozenset({"2"}), shapes=True), TASK, side="student")
    assert torch.equal(said.feature("0"), model[0](batch["input"]))
    assert said.modules == {"2": model[2]}
    assert torch.equal(said.modules["2"](said.feature("2:in")), said.main.logits)
    assert said.shapes == {"0": (5, 4), "1": (5, 4), "2": (5, 2)}
    assert list(said.shapes) == ["0", "1", "2"]
    with pytest.raises(RecipeError, match=r"the student \(Sequential\) has no layer '7'"):
        ask(model, batch, Reads(modules=frozenset({"7"})), TASK, side="student")


def test_a_wrapped_model_s_modules_are_its_own(batch: Batch):
    model = net()
    wrapped: Any = torch.compile(model, backend="eager")
    said = ask(wrapped, batch, Reads(modules=frozenset({"2", "_orig_mod.0"}), shapes=True), TASK, side="student")
    assert said.modules["2"] is model[2] and said.modules["_orig_mod.0"] is model[0]
    assert list(said.shapes) == ["0", "1", "2"], "the wrapper is in no path"


def test_the_input_s_gradient_is_the_loss_s_by_finite_differences(batch: Batch):
    model, x = net(), batch["input"]
    with torch.no_grad():
        said = ask(model, batch, Reads(features=frozenset({"1"}), input_gradient=True), TASK, side="teacher")
    assert said.input_gradient is not None
    assert not said.input_gradient.requires_grad and not said.main.logits.requires_grad and not said.feature("1").requires_grad
    assert torch.equal(said.main.logits, model(x))
    for row, column in ((0, 0), (3, 2)):
        step = torch.zeros_like(x)
        step[row, column] = 1e-6
        rise = F.cross_entropy(model(x + step), batch["label"], reduction="sum") - F.cross_entropy(model(x - step), batch["label"], reduction="sum")
        assert said.input_gradient[row, column].item() == pytest.approx(rise.item() / 2e-6, rel=1e-6)
    assert not x.requires_grad, "the batch is as it was"


@pytest.mark.parametrize("wrap", [lambda m: m, lambda m: torch.compile(m, backend="aot_eager")], ids=["plain", "compiled"])
def test_the_input_s_gradient_carries_a_graph_where_gradients_are_on(wrap: Callable[[nn.Module], Any], batch: Batch):
    model = net()
    said = ask(wrap(model), batch, Reads(input_gradient=True), TASK, side="student")
    assert said.input_gradient is not None
    said.input_gradient.square().sum().backward()
    weight = model[0].weight
    assert weight.grad is not None
    step = torch.zeros_like(weight)
    step[1, 2] = 1e-6

    def cost(sign: int) -> float:
        with torch.no_grad():
            moved = net()
            moved[0].weight += sign * step
            asked = ask(moved, batch, Reads(input_gradient=True), TASK, side="student").input_gradient
        assert asked is not None
        return asked.square().sum().item()

    assert weight.grad[1, 2].item() == pytest.approx((cost(1) - cost(-1)) / 2e-6, rel=1e-5)


class Detaches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.detach())


def test_an_input_without_a_gradient_is_refused(batch: Batch):
    reads = Reads(input_gradient=True)
    with pytest.raises(MismatchError, match=r"the student's input is torch.int64, which has no gradient"):
        ask(net(), {**batch, "input": torch.ones(5, 3, dtype=torch.long)}, reads, TASK, side="student")
    with pytest.raises(MismatchError, match=r"the student's input is no field 'input' \(fields label\)"):
        ask(net(), {"label": batch["label"]}, reads, TASK, side="student")
    with pytest.raises(MismatchError, match="no gradient comes to the teacher's input"):
        ask(Detaches(), batch, reads, TASK, side="teacher")
    with pytest.raises(MismatchError, match="no gradient comes to the teacher's input"):
        ask(Detaches().requires_grad_(False), batch, reads, TASK, side="teacher")
    with pytest.raises(MismatchError, match="has no labels"):
        ask(net(), {"input": batch["input"]}, reads, TASK, side="teacher")
