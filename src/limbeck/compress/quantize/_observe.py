"""What passes through layers, and the grid that rounds it with the least squared error.

Shapes: M values, R rows, K values of each.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from limbeck.compress._method import Bench
from limbeck.core.errors import DataError, RecipeError, did_you_mean

__all__ = ["Sample", "best_range", "best_steps", "chosen", "observe", "watched"]

_KEPT = 65536
"""Values that are kept of each tensor; the least and the greatest are of all."""


@dataclass
class Sample:
    """Values of one tensor, spread evenly over all that passed, and the least and the greatest of all."""

    low: float = 0.0
    high: float = 0.0
    values: list[Tensor] = field(default_factory=list)

    def add(self, x: Tensor, share: float) -> None:
        """Take `share` of what may be kept from x."""
        flat = x.detach().flatten()
        least, greatest = flat.aminmax()
        self.low, self.high = min(self.low, least.item()), max(self.high, greatest.item())
        self.values.append(flat[:: max(1, int(flat.numel() / (_KEPT * share)))].clone())

    def all(self) -> Tensor:
        """Return what was kept, `[M]`."""
        return torch.cat(self.values)


@torch.no_grad()
def watched(model: nn.Module, bench: Bench, examples: int, hear: Callable[[nn.Module, Tensor, Tensor, float], None], layers: Collection[nn.Module]) -> None:
    """Run a model, in evaluation mode, on training batches; `hear(layer, its input, its output, the batch's share of the examples)` at every run of a layer.

    Raises:
        DataError: the training data give no batch.
    """
    share = 1.0
    ran = False

    def after(layer: nn.Module, args: tuple[Tensor, ...], named: dict[str, Tensor], output: Tensor) -> None:
        hear(layer, next(iter((*args, *named.values()))), output, share)

    handles = [layer.register_forward_hook(after, with_kwargs=True) for layer in layers]
    try:
        for batch in bench.batches(examples):
            share, ran = next(iter(batch.values())).shape[0] / examples, True
            bench.task.forward(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    if not ran:
        raise DataError("the training data gave no batch to measure ranges on")


def observe(model: nn.Module, layers: dict[str, nn.Module], bench: Bench, examples: int) -> dict[str, tuple[Sample, Sample]]:
    """Return a sample of what each layer reads, and of what it gives.

    Raises:
        DataError: a layer that reads numbers that are not finite, or one number alone.
    """
    found = {id(layer): (Sample(), Sample()) for layer in layers.values()}

    def hear(layer: nn.Module, given: Tensor, output: Tensor, share: float) -> None:
        for sample, values in zip(found[id(layer)], (given, output), strict=True):
            sample.add(values, share)

    watched(model, bench, examples, hear, layers.values())
    told = {path: found[id(layer)] for path, layer in layers.items()}
    for path, pair in told.items():
        for sample, what in zip(pair, ("reads", "gives"), strict=True):
            if not sample.all().isfinite().all() or not -torch.inf < sample.low <= sample.high < torch.inf:
                raise DataError(f"{path} {what} numbers that are not finite on the calibration inputs: mend the data or the model before it is quantized")
        values = pair[0].all()
        if (values == values[0]).all():
            raise DataError(
                f"all that {path} reads on the {examples} calibration inputs is {values[0].item():g}: no range can be measured; "
                f"give real training inputs, or leave the layer out (keep_float: [{path}])"
            )
    return told


def best_range(sample: Tensor, low: float, high: float, codes: int) -> tuple[Tensor, Tensor]:
    """Return the range within [low, high], which is widened to hold zero, whose `codes + 1` codes round the sample `[M]` with the least squared error."""
    ends = sample.new_tensor([min(low, 0.0), max(high, 0.0)])
    best, error = ends, torch.inf
    for share in torch.linspace(1.0, 0.1, 91):
        low_end, high_end = ends * share
        step = (high_end - low_end) / codes
        zero = (-low_end / step).round()
        found = (((sample / step).round().clamp(-zero, codes - zero) * step - sample) ** 2).sum().item()
        if found < error:
            best, error = torch.stack([low_end, high_end]), found
    return best[0], best[1]


def best_steps(rows: Tensor, high: int) -> Tensor:
    """Return the step `[R]` whose codes -high to high round each row `[R, K]` with the least squared error.

    A row of zeros has the median of the others' steps, any would do.
    """
    greatest = rows.abs().amax(1)
    best, error = greatest / high, torch.full_like(greatest, torch.inf)
    for share in torch.linspace(1.0, 0.1, 91, device=rows.device):
        step = (greatest * share / high).clamp_min(torch.finfo(rows.dtype).tiny)
        found = (((rows / step[:, None]).round().clamp(-high, high) * step[:, None] - rows) ** 2).sum(1)
        best, error = torch.where(found < error, step, best), torch.minimum(found, error)
    alive = greatest > 0
    other = best[alive].median() if alive.any() else best.new_tensor(1.0 / high)
    return torch.where(alive, best, other)


def chosen(layers: Collection[str], only: Collection[str] | None, keep_float: Collection[str]) -> list[str]:
    """Return the layers under the paths `only`, or all, without those under the paths `keep_float`.

    Raises:
        RecipeError: a path under which there is no layer.
    """

    def under(option: str, paths: Collection[str]) -> set[str]:
        found: set[str] = set()
        for path in paths:
            meant = {layer for layer in layers if layer == path or layer.startswith(f"{path}.")}
            if not meant:
                raise RecipeError(f"{option}: there is no layer {path!r} to quantize{did_you_mean(path, layers)}")
            found |= meant
        return found

    wanted = set(layers) if only is None else under("only", only)
    return [layer for layer in layers if layer in wanted - under("keep_float", keep_float)]
