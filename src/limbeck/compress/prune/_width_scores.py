"""How much each unit of a transformer's width does on the data.

Muralidharan et al., "Compact Language Models via Pruning and Knowledge Distillation", NeurIPS 2024 (Minitron), arXiv:2407.14679, sec. 2.2: of a neuron its
activation, of a head the norm of what it gives, of a channel of the tokens' width what the norms give it; the mean over a row's tokens, L2 over rows.

Shapes: N rows, T tokens, U units.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.compress._method import Bench
from limbeck.core.errors import DataError
from limbeck.core.task import Batch

from ._width_roles import Transformer

__all__ = ["activity", "real"]


def real(batch: Batch) -> Tensor | None:
    """Return which tokens of a batch are no padding, `[N, T]`; None where all are."""
    if "attention" in batch:
        return batch["attention"].bool()
    return batch["segment"] != 0 if "segment" in batch else None


class _Sums:
    """Sums over rows of the squared mean, over a row's real tokens, of how large each unit is."""

    def __init__(self) -> None:
        self.seen: Tensor | None = None
        self.total: dict[str, Tensor] = {}

    def add(self, path: str, size: Tensor) -> None:
        """Take sizes `[N, T, U]`."""
        weight = torch.ones(size.shape[:2], device=size.device) if self.seen is None else self.seen.to(size)
        mean = (size.double() * weight[..., None]).sum(1) / weight.sum(1).clamp(min=1)[:, None]
        self.total[path] = self.total.get(path, torch.zeros(size.shape[2], dtype=torch.float64)) + mean.square().sum(0).cpu()


def activity(model: nn.Module, known: Transformer, batches: Sequence[Batch], bench: Bench) -> Mapping[str, Tensor]:
    """Return, by layer: `PATH` of each end of attention `[h]` and of each perceptron `[M]`, and `hidden [D]`, the sum over all norms.

    Raises:
        DataError: activity that is not finite.
    """
    sums, sizes = _Sums(), known.sizes

    def heads(x: Tensor) -> Tensor:
        return x.unflatten(-1, (sizes.heads, sizes.head)).norm(dim=-1)

    def reads(path: str, how: Callable[[Tensor], Tensor]) -> Any:
        return lambda _module, args: sums.add(path, how(_rows(args[0], rows)))

    def gives(path: str) -> Any:
        return lambda _module, _args, output: sums.add(path, _rows(output, rows).abs())

    rows = [1, 1]
    of = known.body.get_submodule
    hooks = [of(path).register_forward_pre_hook(reads(path, heads)) for path in known.readers("query")]
    hooks += [of(path).register_forward_pre_hook(reads(path, Tensor.abs)) for path in known.readers("mlp")]
    hooks += [of(path).register_forward_hook(gives(path)) for path in known.norms]
    try:
        with torch.no_grad():
            for batch in batches:
                rows[:], sums.seen = batch["input"].shape, real(batch)
                bench.task.forward(model, batch)
    finally:
        for hook in hooks:
            hook.remove()
    found = {path: total.sqrt() for path, total in sums.total.items()}
    if any(not one.isfinite().all() for one in found.values()):
        raise DataError("what the units of the model do is not finite: its weights or the data hold NaN or infinity")
    return {**found, "hidden": torch.stack([found[path] for path in known.norms if path in found]).sum(0)}


def _rows(x: Tensor, rows: Sequence[int]) -> Tensor:
    """Give tokens that stand in one line, `[N T, U]`, their rows back."""
    return x.view(rows[0], rows[1], -1) if x.ndim == 2 and x.shape[0] == rows[0] * rows[1] else x if x.ndim == 3 else x[:, None]
