"""What layers read: mean and second moments of their inputs.

Shapes: I inputs of a layer, M rows that it read (positions of all examples).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from limbeck.compress._method import Bench
from limbeck.core.errors import DataError, MismatchError

from ._form import Target
from ._layers import heard

__all__ = ["Moments", "moments"]


@dataclass(frozen=True)
class Moments:
    """E x `[I]` and E x x^T `[I, I]`, float64, over `rows` rows."""

    mean: Tensor
    second: Tensor
    rows: int

    @property
    def covariance(self) -> Tensor:
        """E (x - E x)(x - E x)^T `[I, I]`."""
        return self.second - self.mean[:, None] * self.mean


def _rows(layer: nn.Module, x: Tensor) -> Tensor:
    """What a linear layer or a convolution of 1x1 multiplies by its weight, `[M, I]` float64."""
    if isinstance(layer, nn.Conv2d):
        down, right = layer.stride
        x = x[..., ::down, ::right].movedim(-3, -1)
    return x.detach().double().cpu().flatten(0, -2)


@torch.no_grad()
def moments(model: nn.Module, found: Sequence[Target], bench: Bench, examples: int) -> dict[str, Moments]:
    """Return path -> moments of what each layer reads on training examples.

    Raises:
        DataError: inputs that are not finite, or all alike.
        MismatchError: a layer that is never called.
    """
    layers = {one.path: one.layer for one in found}
    held: dict[str, tuple[Tensor, Tensor, int]] = {}

    def hear(path: str, enters: Tensor, _leaves: Tensor) -> None:
        x = _rows(layers[path], enters)
        total, squares, rows = held.get(path, (0.0, 0.0, 0))
        held[path] = total + x.sum(0), squares + x.T @ x, rows + len(x)

    with heard(layers, hear):
        for batch in bench.batches(examples):
            bench.task.forward(model, batch)
    found_all: dict[str, Moments] = {}
    for path in layers:
        if path not in held:
            raise MismatchError(f"layer {path!r} is never called, so that nothing can be known of what it reads: add it to skip")
        total, squares, rows = held[path]
        one = Moments(total / rows, squares / rows, rows)
        if not bool(torch.isfinite(one.second).all()):
            raise DataError(f"layer {path!r} reads numbers that are not finite: look at the training data")
        spread = one.covariance if layers[path].bias is not None else one.second
        if float(spread.diagonal().sum()) <= 1e-12 * float(one.second.diagonal().sum()):
            raise DataError(f"all {rows} inputs of layer {path!r} are alike: errors cannot be weighted by them; give other data, or leave weighted out")
        found_all[path] = one
    return found_all
