"""Ask a model about a batch, and read on the way what is wanted of it."""

import torch
from torch import Tensor, nn

from .errors import MismatchError
from .knowledge import Dense, Knowledge, Reads
from .tap import Survey, Tap, eagerly, layer
from .task import Batch, Task

__all__ = ["ask"]


def ask(model: nn.Module, batch: Batch, reads: Reads, task: Task, *, side: str) -> Knowledge:
    """Return what a model says about a batch and all that `reads` names; `side` is the model's part in the talk, for messages.

    Whether gradients are recorded is the caller's choice, but for the input's: that one is always computed, and carries a graph where the caller's do; a
    compiled model then runs as it is written, since what is compiled has no second derivative.

    Raises:
        RecipeError: a layer that the model has not.
        MismatchError: a layer that cannot be read, or an input that has no gradient.
    """
    if reads.input_gradient:
        with eagerly():
            return _with_input_gradient(model, batch, reads, task, side)
    with Tap(model, reads.features, side=side) as tap, Survey(model if reads.shapes else None) as survey:
        said = task.forward(model, batch)
    if not (reads.features or reads.modules or reads.shapes):
        return said
    modules = {path: layer(model, path, side=side) for path in reads.modules}
    return Knowledge(said.outputs, dict(tap.features), said.mask, modules, None, dict(survey.shapes))


def _with_input_gradient(model: nn.Module, batch: Batch, reads: Reads, task: Task, side: str) -> Knowledge:
    learns = torch.is_grad_enabled()
    x = batch.get("input")
    if x is None or not x.is_floating_point():
        given = f"is {x.dtype}" if x is not None else f"is no field 'input' (fields {', '.join(batch)})"
        raise MismatchError(f"the {side}'s input {given}, which has no gradient: an objective of the input's gradient wants real numbers")
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        asked = {**batch, "input": x}
        plain = Reads(reads.outputs, reads.features, reads.modules, False, reads.shapes)
        said = ask(model, asked, plain, task, side=side)
        loss: Tensor = task.loss(said, asked).sum()
        gradient = torch.autograd.grad(loss, x, create_graph=learns, allow_unused=True)[0] if loss.requires_grad else None
    if gradient is None:
        raise MismatchError(f"no gradient comes to the {side}'s input: its forward pass detaches it, or runs under no_grad; leave the objective out")
    if not learns:
        outputs = {name: Dense((one := said.whole(name)).logits.detach(), one.link) for name in said.outputs}
        said = Knowledge(outputs, {path: value.detach() for path, value in said.features.items()}, said.mask, said.modules, None, said.shapes)
    return Knowledge(said.outputs, said.features, said.mask, said.modules, gradient, said.shapes)
