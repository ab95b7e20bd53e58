"""The gradient of one example after another, of which every curvature is made: rows whose outer products sum to it.

Shapes: N examples, T places (tokens, or positions of a convolution) and G groups of a layer, I inputs and O outputs of a group; D numbers that an example's
loss reads.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.compress._method import Bench
from limbeck.core.errors import DataError, RecipeError
from limbeck.core.knowledge import Dense, Knowledge
from limbeck.core.task import Batch, Task

from .saliency._asking import batches, gradients

__all__ = ["Curvature", "Rows", "sweep"]

Curvature = Literal["gauss_newton", "empirical"]
_CHUNK = 1 << 24
"""Numbers of per-example gradients that are made at a time where only their squares are wanted."""
_WIDEST = 1024
"""The most numbers of one example whose loss is differentiated twice by each pair of them."""


class Rows(ABC):
    """One parameter's gradient for each example of a batch."""

    @abstractmethod
    def each(self) -> Tensor:
        """Return them one by one, `[N, *shape]`."""

    @abstractmethod
    def squares(self) -> Tensor:
        """Return the sum over examples of their squares, `shape`."""


@dataclass(frozen=True)
class _Plain(Rows):
    """Rows that were found one by one."""

    rows: Tensor  # [N, *shape]

    def each(self) -> Tensor:
        return self.rows

    def squares(self) -> Tensor:
        return self.rows.square().sum(0)


@dataclass(frozen=True)
class _Product(Rows):
    """The rows of a weight: sums over places of the slope at a layer's output times its input."""

    slopes: Tensor  # [N, T, G, O]
    inputs: Tensor  # [N, T, G, I]
    shape: torch.Size

    def each(self) -> Tensor:
        return torch.einsum("ntgo,ntgi->ngoi", self.slopes, self.inputs).reshape(-1, *self.shape)

    def squares(self) -> Tensor:
        if self.slopes.shape[1] == 1:
            return torch.einsum("ngo,ngi->goi", self.slopes[:, 0].square(), self.inputs[:, 0].square()).reshape(self.shape)
        step = max(1, _CHUNK // self.shape.numel())
        parts = zip(self.slopes.split(step), self.inputs.split(step), strict=True)
        return torch.stack([_Product(slopes, inputs, self.shape).each().square().sum(0) for slopes, inputs in parts]).sum(0)


@dataclass(frozen=True)
class _Call:
    """One call of a layer: what it was given and what it gave."""

    given: Tensor
    gave: Tensor


@contextmanager
def _recorded(layers: Mapping[str, nn.Module]) -> Iterator[dict[str, list[_Call]]]:
    """Record the calls of layers while the block lasts; what a layer gives is passed on as a copy, so that nothing in place can overwrite it."""
    calls: dict[str, list[_Call]] = {path: [] for path in layers}

    def reader(path: str) -> Callable[[nn.Module, Any, Tensor], Tensor]:
        def read(_module: nn.Module, given: Any, gave: Tensor) -> Tensor:
            calls[path].append(_Call(given[0].detach(), gave))
            return gave.clone()

        return read

    handles = [layer.register_forward_hook(reader(path)) for path, layer in layers.items()]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _layers(model: nn.Module, names: Sequence[str]) -> dict[str, nn.Module] | None:
    """The layers that own the named parameters, where each is one whose rows are products of what goes in and what comes back; None otherwise."""
    owners = {(path := name.rpartition(".")[0]): model.get_submodule(path) for name in names}
    return owners if all(_simple(owner) for owner in owners.values()) else None


def _simple(layer: nn.Module) -> bool:
    if type(layer) in (nn.Conv1d, nn.Conv2d):
        return layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    return type(layer) is nn.Linear


def _inputs(layer: nn.Module, given: Tensor) -> Tensor:
    """What a layer's weight is multiplied with, `[N, T, G, I]`."""
    if isinstance(layer, nn.Linear):
        return given.reshape(len(given), -1, 1, given.shape[-1])
    assert isinstance(layer, (nn.Conv1d, nn.Conv2d)) and not isinstance(layer.padding, str)
    flat = len(layer.kernel_size) == 1  # a sequence is an image of height 1
    kernel, dilation, stride = ((1, told[0]) if flat else told for told in (layer.kernel_size, layer.dilation, layer.stride))
    padding = (0, layer.padding[0]) if flat else layer.padding
    image = given.unsqueeze(2) if flat else given
    patches = F.unfold(image, kernel, dilation, padding, stride)  # [N, G I, T]
    return patches.reshape(len(given), layer.groups, -1, patches.shape[-1]).permute(0, 3, 1, 2)


def _slopes(layer: nn.Module, slope: Tensor) -> Tensor:
    """The slope at a layer's output, `[N, T, G, O]`."""
    if isinstance(layer, nn.Linear):
        return slope.reshape(len(slope), -1, 1, slope.shape[-1])
    assert isinstance(layer, (nn.Conv1d, nn.Conv2d))
    return slope.reshape(len(slope), layer.groups, layer.out_channels // layer.groups, -1).permute(0, 3, 1, 2)


def _root(knowledge: Knowledge, batch: Batch, task: Task) -> Tensor:
    """Return S `[N, D, R]` with `S S^T` the Hessian of each example's loss by its logits (its positive part, where a loss is not convex in them)."""
    answer = knowledge.main
    z = answer.logits.detach().requires_grad_()
    width = z[0].numel()
    if width > _WIDEST:
        raise RecipeError(
            f"an example's loss reads {width} logits, and Gauss-Newton differentiates twice by each of up to {_WIDEST}: take the empirical Fisher "
            "(curvature: empirical), or Hutchinson's estimate (hessian: {kind: hutchinson})"
        )
    losses = task.loss(Knowledge({**knowledge.outputs, "main": Dense(z, answer.link)}, mask=knowledge.mask), batch)
    slope = torch.autograd.grad(losses.sum(), z, create_graph=True)[0].reshape(len(z), -1)
    hessian = z.new_zeros(len(z), width, width)
    if slope.requires_grad:
        for index in range(width):
            hessian[:, index] = torch.autograd.grad(slope[:, index].sum(), z, retain_graph=True)[0].reshape(len(z), -1)
    values, vectors = torch.linalg.eigh((hessian + hessian.mT) / 2)
    values = values.clamp(min=0)
    return (vectors * values.sqrt().unsqueeze(1))[:, :, (values > values.max() * torch.finfo(values.dtype).eps * width).any(0)]


def _directions(knowledge: Knowledge, batch: Batch, task: Task, curvature: Curvature) -> tuple[Tensor, Tensor, int]:
    """Return what is differentiated `[N, D]`, along which directions `[N, D, R]`, and of how many predictions."""
    losses = task.loss(knowledge, batch)
    if not losses.isfinite().all():
        raise DataError("the loss is not finite: the model's weights or the data hold NaN or infinity, or the loss overflows")
    count = losses.numel()
    if curvature == "empirical":
        rows = knowledge.main.predictions[0]
        target = losses.reshape(rows if count % rows == 0 else count, -1).sum(1, keepdim=True)
        return target, torch.ones_like(target).unsqueeze(2).detach(), count
    return knowledge.main.logits.flatten(1), _root(knowledge, batch, task), count


def _fast(parameters: Mapping[str, nn.Parameter], layers: Mapping[str, nn.Module], calls: Mapping[str, list[_Call]], target: Tensor, along: Tensor) -> Any:
    """Return each parameter's rows from one backward pass, or None where some layer's rows are not those of the examples."""
    flat = [(path, call) for path, many in calls.items() for call in many]
    if any(not calls[path] for path in layers) or any(len(call.given) != len(target) or len(call.gave) != len(target) for _, call in flat):
        return None
    slopes = torch.autograd.grad(target, [call.gave for _, call in flat], along, retain_graph=True, allow_unused=True)
    found: dict[str, Rows] = {}
    for name, parameter in parameters.items():
        path, _, kind = name.rpartition(".")
        layer = layers[path]
        mine = [
            (_slopes(layer, torch.zeros_like(call.gave) if slope is None else slope), call.given)
            for (where, call), slope in zip(flat, slopes, strict=True) if where == path
        ]  # fmt: skip
        back = torch.cat([slope for slope, _ in mine], 1)
        if kind == "weight":
            found[name] = _Product(back, torch.cat([_inputs(layer, given) for _, given in mine], 1), parameter.shape)
        else:
            found[name] = _Plain(back.sum(1).flatten(1))
    return found


def _slow(parameters: Mapping[str, nn.Parameter], target: Tensor, along: Tensor) -> dict[str, Rows]:
    """Return each parameter's rows, one backward pass for each example."""
    found = [gradients((row * direction).sum(), parameters, needed=(), keep=True) for row, direction in zip(target, along, strict=True)]
    rows = {name: [each.get(name, torch.zeros_like(parameter)) for each in found] for name, parameter in parameters.items()}
    return {name: _Plain(torch.stack(each).detach()) for name, each in rows.items()}


def _agree(rows: Mapping[str, Rows], parameters: Mapping[str, nn.Parameter], target: Tensor, along: Tensor) -> bool:
    """Whether the rows of half the examples sum to the gradient of that half: not where examples see each other, or a weight is used outside its layer.

    Weights of zero are not asked: where they are held at zero, a hook takes their gradient away.
    """
    half = torch.rand(len(target), generator=torch.Generator().manual_seed(0)).to(target).unsqueeze(1) < 0.5
    half[0] = True
    true = gradients((target * along * half).sum(), parameters, needed=(), keep=True)
    for name, row in rows.items():
        each = row.each()[half[:, 0]].sum(0)
        apart = (each - true.get(name, torch.zeros_like(each))) * (parameters[name].detach() != 0)
        if apart.norm() > 1e-3 * row.squares().sum().sqrt() + 1e-12:
            return False
    return True


def sweep(
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    bench: Bench,
    examples: int,
    curvature: Curvature,
    visit: Callable[[Mapping[str, Rows]], None],
) -> int:
    """Hand every parameter's rows, batch after batch, to `visit`, and return of how many predictions: the outer products over that sum to the curvature.

    `gauss_newton`: `J^T S`, whose outer products give `sum_n J_n^T (d^2 loss_n / dz_n^2) J_n`, J the logits' Jacobian: the Hessian where the model is linear in
    its weights or fits its data, and for a cross-entropy the Fisher information. `empirical`: the gradients of each example's loss.

    Layers of the kinds Linear, Conv1d and Conv2d are read in one backward pass for each direction, which is checked once against the gradient of half a
    batch; for all others, and where examples see each other (a graph), each example takes its own backward pass: the same numbers, slower.

    Raises:
        MismatchError: a model whose loss does not depend on the parameters.
        DataError: a loss that is not finite.
        RecipeError: more logits for an example than Gauss-Newton is taken by.
    """
    layers = _layers(model, list(parameters))
    count, checked = 0, False
    for batch in batches(bench, examples):
        with _recorded(layers or {}) as calls:
            knowledge = bench.task.forward(model, batch)
        target, roots, predictions = _directions(knowledge, batch, bench.task, curvature)
        if not count:
            gradients(target.sum(), parameters, keep=True)  # names the parameter that the loss does not depend on
        count += predictions
        for along in roots.unbind(2):
            rows = None if layers is None else _fast(parameters, layers, calls, target, along)
            if rows is not None and not checked:
                rows = rows if _agree(rows, parameters, target, along) else None
                checked = True
            if rows is None:
                layers, rows = None, _slow(parameters, target, along)
            visit(rows)
    return count
