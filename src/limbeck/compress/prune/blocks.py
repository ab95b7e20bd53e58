"""Blocks: whole residual blocks go, and the network is less deep.

Men et al., "ShortGPT: Layers in Large Language Models are More Redundant Than You Expect", 2024, arXiv:2403.03853; Gromov et al., "The Unreasonable
Ineffectiveness of the Deeper Layers", 2024, arXiv:2403.17887.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.compress._method import Bench, Operated, Surgery
from limbeck.core.errors import ArtifactError, DataError, MismatchError, RecipeError, did_you_mean
from limbeck.core.tap import Tap, check_paths
from limbeck.core.task import Batch

from ._budget import Target, wish
from ._structure import asking
from ._structure_blocks import aside, named_blocks, residual_blocks

__all__ = ["Blocks", "influence"]

By = Literal["loss", "cosine"]


def influence(read: Tensor, gave: Tensor) -> Tensor:
    """Return how far a block turns each vector: 1 - cos(x, y), `[N, ...]`: of tokens and vectors along the last axis, of maps `[N, C, H, W]` along C.

    The mean over all is the Block Influence of Men et al. 2024.

    >>> influence(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]]))
    tensor([1.])
    """
    return 1 - F.cosine_similarity(read, gave, dim=1 if read.ndim == 4 else -1)


class Blocks(Surgery):
    """Take out residual blocks: an `nn.Identity` stands in the place of each, so that all paths stay as they were.

    A residual block is an innermost module that reads and gives one tensor of one shape, and gives what it read once all its parameters are zero. They are
    chosen by the loss, measured: the block without which it is lowest goes, then the next, measured anew; or by cosine, once: those go that turn what they
    read least (Men et al. 2024, Block Influence).

    Args:
        target: one goal: {ratio: 0.5}, the share of blocks that goes; {macs: 0.5}, {parameters: 0.5}, {bytes: 0.5} or {latency: 0.5}, the share that stays.
        by: loss, the rise of the loss when a block is out; cosine, one minus the cosine of what a block reads and gives.
        examples: training examples that blocks are judged on.
        among: layers, by module path, that may be taken out, residual or not; all residual blocks where it is left out.
        skip: blocks, by module path, that stay.

    Raises:
        RecipeError: a target of none or several goals, a share outside (0, 1), one that cannot be reached, a layer that is not there.
        MismatchError: a model without residual blocks; a layer named that cannot be taken out, with why; a model that does not run without one.
    """

    def __init__(self, *, target: Target, by: By = "loss", examples: int = 1000, among: tuple[str, ...] = (), skip: tuple[str, ...] = ()) -> None:
        if by not in ("loss", "cosine"):
            raise RecipeError(f"no choice {by!r} for by of prune.blocks{did_you_mean(by, ('loss', 'cosine'))}")
        if examples < 1:
            raise RecipeError(f"examples of prune.blocks is {examples}; it must be one or more")
        self.target = wish(target, "prune.blocks")
        self.by: By = by
        self.examples, self.among, self.skip = examples, among, skip

    def operate(self, model: nn.Module, bench: Bench) -> Operated:
        ask = asking(bench)
        check_paths(model, self.skip, "model")
        known = named_blocks(model, self.among, ask) if self.among else residual_blocks(model, ask)
        blocks = [path for path in known if path not in self.skip]
        if not blocks:
            raise MismatchError(f"prune.blocks has nothing to take out: all {len(known)} blocks are in skip")
        whole = self._count(model, known, [], bench)
        all_out = self._count(model, known, blocks, bench) / whole
        if all_out > self.target.stays + 1e-9:
            nearest = f"{1 - all_out:.3g} goes" if self.target.goal == "ratio" else f"{all_out:.3g} of it stays"
            raise RecipeError(
                f"{self.target.goal}: {self.target.share:g} cannot be reached: with all {len(blocks)} blocks out, {nearest}, and that is the closest; "
                "ask for less, or prune channels too"
            )
        batches = list(bench.batches(self.examples))
        rises: dict[str, float] = {}
        out: list[str] = []
        share = 1.0
        for path, rise in _by_loss(model, blocks, batches, bench) if self.by == "loss" else _by_cosine(model, blocks, batches, bench):
            out.append(path)
            rises[path] = rise
            share = self._count(model, known, out, bench) / whole
            if share <= self.target.stays + 1e-9:
                break
        made = _without(model, out)
        with torch.no_grad():
            pairs = list(zip(ask(model), ask(made), strict=True))
        if any(old.shape != new.shape or not new.isfinite().all() for old, new in pairs):
            raise MismatchError(f"{type(model).__name__} no longer answers as it should without {', '.join(out)}: leave one of them in (skip)")
        unit = "loss" if self.by == "loss" else "distance"
        rows = [{"name": path, "out": path in out, **({unit: rises[path]} if path in rises else {})} for path in known]
        told = "" if self.target.goal == "ratio" else f"; {share:.3g} of its {self.target.goal} stays, {self.target.share:g} was asked for"
        said = [f"{len(known) - len(out)} of {len(known)} blocks are left{told}; out are {', '.join(out)}"]
        return Operated(made, {"identity": out}, {"blocks": len(known), "blocks_left": len(known) - len(out)}, rows, said)

    def _count(self, model: nn.Module, known: Sequence[str], out: Sequence[str], bench: Bench) -> float:
        return len(known) - len(out) if self.target.goal == "ratio" else self.target.count(_without(model, out), bench)

    @staticmethod
    def rebuild(model: nn.Module, record: Mapping[str, Any]) -> nn.Module:
        known = dict(model.named_modules())
        if missing := [path for path in record["identity"] if not path or path not in known]:
            raise ArtifactError(
                f"the record of prune.blocks takes out {missing[0]!r}, and {type(model).__name__} has no such layer: it was made of another model"
            )
        return aside(model, record["identity"])


def _without(model: nn.Module, out: Sequence[str]) -> nn.Module:
    return aside(copy.deepcopy(model), out)


def _by_loss(model: nn.Module, blocks: Sequence[str], batches: Sequence[Batch], bench: Bench) -> Iterator[tuple[str, float]]:
    """Give blocks in the order in which they go, and what the loss then is."""
    out: list[str] = []
    while left := [path for path in blocks if path not in out]:
        losses = {path: _loss(_without(model, [*out, path]), batches, bench) for path in left}
        best = min(left, key=lambda path: losses[path])
        out.append(best)
        yield best, losses[best]


def _loss(model: nn.Module, batches: Sequence[Batch], bench: Bench) -> float:
    with torch.no_grad():
        loss = float(torch.cat([bench.losses(model, batch) for batch in batches]).double().mean())
    if loss != loss:
        raise DataError("the loss is not a number: the model's weights or the data hold NaN or infinity")
    return loss


def _by_cosine(model: nn.Module, blocks: Sequence[str], batches: Sequence[Batch], bench: Bench) -> Iterator[tuple[str, float]]:
    """Give blocks by how far they turn what they read, the least first."""
    sums, counts = dict.fromkeys(blocks, 0.0), dict.fromkeys(blocks, 0)
    with torch.no_grad():
        for batch in batches:
            with Tap(model, [side for path in blocks for side in (f"{path}:in", path)], copy=True) as tap:
                bench.task.forward(model, batch)
            for path in blocks:
                turned = influence(tap.features[f"{path}:in"], tap.features[path])
                sums[path] += float(turned.double().sum())
                counts[path] += turned.numel()
    distances = {path: sums[path] / counts[path] for path in blocks}
    if any(distance != distance for distance in distances.values()):
        raise DataError("the distance of a block is not a number: the model's weights or the data hold NaN or infinity")
    yield from sorted(distances.items(), key=lambda one: one[1])
