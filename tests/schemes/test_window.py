"""A teacher seen through, buffers lent, the head found."""

import pytest
import torch
from torch import nn

from limbeck.core.errors import MismatchError
from limbeck.core.lookup import build
from limbeck.core.task import default_task
from limbeck.schemes._window import Window, last_linear, lent


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Dropout(0.5), nn.Linear(5, 3))


def test_the_gradient_reaches_the_input_as_through_the_model_itself_and_nothing_else() -> None:
    model = net()
    window = Window(build("teachers", "frozen", {}, model), default_task(), "it")
    x = torch.randn(6, 4, requires_grad=True)
    said = window.look(x, frozenset({"4:in"}))
    said.main.logits.square().sum().backward()
    assert all(one.grad is None and one.requires_grad for one in model.parameters()) and not model.training
    y = x.detach().clone().requires_grad_()
    model.eval()(y).square().sum().backward()
    assert x.grad is not None and y.grad is not None and torch.equal(x.grad, y.grad)
    assert torch.equal(said.feature("4:in"), model[:4](x))


def test_lent_buffers_come_back_and_the_graph_still_holds() -> None:
    model = net().train()
    before = {name: value.clone() for name, value in model.named_buffers()}
    with lent(model):
        loss = model(torch.randn(6, 4)).sum()
    model(torch.randn(6, 4))
    moved = {name for name, value in model.named_buffers() if not torch.equal(value, before[name])}
    loss.backward()  # in-place writes to what the graph has kept would raise here
    assert moved == set(before), "the second pass alone has moved them"
    assert int(model[1].num_batches_tracked) == 1


def test_the_last_linear_layer_is_the_head() -> None:
    assert last_linear(net(), "dafl") == "4"
    with pytest.raises(MismatchError, match="ReLU has none: name the layer"):
        last_linear(nn.ReLU(), "dafl")
