"""Layers: some layers of a transformer are left, and it is less deep: the students of DistilBERT, of ShortGPT, and of Minitron's depth.

Sanh et al., "DistilBERT, a distilled version of BERT", 2019, arXiv:1910.01108, sec. 3 (one layer out of two); Men et al., "ShortGPT: Layers in Large Language
Models are More Redundant Than You Expect", 2024, arXiv:2403.03853, eq. 1.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from limbeck.bridges import transformers
from limbeck.compress._method import Bench, Operated, Surgery
from limbeck.core.errors import DataError, MismatchError, RecipeError, did_you_mean
from limbeck.core.task import Batch

from ._stack import left, stack_of
from ._structure import asking
from ._width_scores import real
from .blocks import influence

__all__ = ["Layers", "kept"]

By = Literal["cosine", "loss"]


def kept(depth: int, *, keep: Sequence[int] | None = None, every: int | None = None) -> list[int]:
    """Return which of `depth` layers stay: those named (negative ones from the end), or of every `every` the first.

    >>> kept(6, every=2), kept(6, keep=[0, 2, -1])
    ([0, 2, 4], [0, 2, 5])

    Raises:
        RecipeError: a layer that is not there or twice, all of them, or none.
    """
    if every is not None:
        if not 2 <= every <= depth:
            raise RecipeError(f"every of prune.layers is {every}; of each so many layers one stays, 2 to {depth}, the depth of the model")
        return list(range(0, depth, every))
    assert keep is not None
    places = [at + depth if at < 0 else at for at in keep]
    if strange := [given for given, at in zip(keep, places, strict=True) if not 0 <= at < depth]:
        raise RecipeError(f"keep of prune.layers names layer {strange[0]}, and the model has {depth}, from 0 to {depth - 1}")
    if not places or len(set(places)) != len(places) or len(places) == depth or places != sorted(places):
        raise RecipeError(f"keep of prune.layers is {list(keep)}; it names some of the {depth} layers, each once and in order")
    return places


class Layers(Surgery):
    """Leave some layers of a transformer: of models.gpt, models.encoder and any model of transformers, whose configuration then says so.

    They are named (`keep: [0, 2, 4]`), taken evenly (`every: 2`, DistilBERT's way), or as many as are `left` after those went that matter least on the data:
    by how far they turn what they read, 1 - cos(x, y), measured once (cosine: ShortGPT's Block Influence), or by the loss without them, measured anew after
    each (loss). What stays keeps its weights. A student begins with it by `init`.

    Args:
        keep: the layers that stay, from 0; negative numbers count from the end.
        every: of each so many layers the first stays.
        left: how many stay, chosen by `by`.
        by: cosine or loss, of the training examples.
        examples: training examples that layers are judged on, where they are.
        stack: the path of the list of layers, where it is not the one with most weights.

    Raises:
        RecipeError: none or several of keep, every and left, or layers that are not there.
        MismatchError: a model without a stack of layers, or one whose layers cannot be told by its configuration.
    """

    def __init__(
        self,
        *,
        keep: tuple[int, ...] | None = None,
        every: int | None = None,
        left: int | None = None,
        by: By = "cosine",
        examples: int = 256,
        stack: str | None = None,
    ) -> None:
        given = [name for name, value in (("keep", keep), ("every", every), ("left", left)) if value is not None]
        if len(given) != 1:
            raise RecipeError(f"prune.layers takes one of keep: [0, 2, ...], every: 2 and left: 6; given is {' and '.join(given) or 'none'}")
        if by not in ("cosine", "loss"):
            raise RecipeError(f"no choice {by!r} for by of prune.layers{did_you_mean(by, ('cosine', 'loss'))}")
        if examples < 1 or (left is not None and left < 1):
            raise RecipeError(f"examples of prune.layers is {examples} and left {left}; they are one or more")
        self.keep, self.every, self.left = keep, every, left
        self.by: By = by
        self.examples, self.stack = examples, stack

    def operate(self, model: nn.Module, bench: Bench) -> Operated:
        ask = asking(bench)
        path = stack_of(model) if self.stack is None else self.stack
        layers = dict(model.named_modules()).get(path)
        if not isinstance(layers, nn.ModuleList):
            raise RecipeError(f"stack of prune.layers is {path!r}, which is no list of layers of {type(model).__name__}")
        depth, scores = len(layers), dict[int, float]()
        if self.left is None:
            keep = kept(depth, keep=self.keep, every=self.every)
        elif self.left >= depth:
            raise RecipeError(f"left of prune.layers is {self.left}, and the model has {depth} layers: ask for fewer")
        else:
            batches = list(bench.batches(self.examples, batch_size=32))
            scores = _turned(model, path, batches, bench) if self.by == "cosine" else {}
            out = sorted(scores, key=lambda at: scores[at])[: depth - self.left] if scores else _least(model, path, self.left, batches, bench, scores)
            keep = [at for at in range(depth) if at not in out]
        made = left(copy.deepcopy(model), path, keep)
        with torch.no_grad():
            found = ask(made)
            if any(not one.isfinite().all() for one in found):
                raise MismatchError(f"{type(model).__name__} gives no numbers with layers {keep} alone: leave others")
            _check_told(made, found, ask)
        unit = "turned" if self.by == "cosine" else "loss"
        rows = [{"name": f"{path}.{at}", "out": at not in keep, **({unit: scores[at]} if at in scores else {})} for at in range(depth)]
        said = [f"{len(keep)} of {depth} layers are left: {', '.join(map(str, keep))}"]
        return Operated(made, {"stack": path, "keep": keep}, {"layers": depth, "layers_left": len(keep)}, rows, said)

    @staticmethod
    def rebuild(model: nn.Module, record: Mapping[str, Any]) -> nn.Module:
        return left(model, record["stack"], record["keep"])


def _check_told(made: nn.Module, found: Sequence[Tensor], ask: Any) -> None:
    """Make sure that a model of transformers is what its configuration says, so that it opens again.

    Raises:
        MismatchError: it is not.
    """
    held = transformers.inner(made)
    if held is None:
        return
    again = transformers.resized(held, {})
    name = next(name for name, child in [("", made), *made.named_children()] if child is held)
    try:
        again.load_state_dict(held.state_dict())
        other = again
        if name:
            other = copy.copy(made)
            other._modules = {**made._modules, name: again}
        same = all(torch.allclose(one, two, atol=1e-5) for one, two in zip(ask(other.eval()), found, strict=True))
    except RuntimeError:
        same = False
    if not same:
        raise MismatchError(f"the layers of {type(held).__name__} differ by their number, and its configuration cannot say which ones are left: take others")


def _turned(model: nn.Module, path: str, batches: Sequence[Batch], bench: Bench) -> dict[int, float]:
    """How far each layer turns what it reads: the mean over all real tokens of 1 - cos."""
    layers = model.get_submodule(path)
    assert isinstance(layers, nn.ModuleList)
    sums, counts, seen = [0.0] * len(layers), [0] * len(layers), list[Tensor]()

    def watch(at: int) -> Any:
        def see(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            read = args[0] if args else kwargs["hidden_states"]
            turned = influence(read, output if isinstance(output, Tensor) else output[0]).double()
            if seen and turned.shape == seen[0].shape:
                turned = turned[seen[0]]
            sums[at] += float(turned.sum())
            counts[at] += turned.numel()

        return see

    hooks = [layer.register_forward_hook(watch(at), with_kwargs=True) for at, layer in enumerate(layers)]
    try:
        with torch.no_grad():
            for batch in batches:
                seen[:] = [one for one in (real(batch),) if one is not None]
                bench.task.forward(model, batch)
    finally:
        for hook in hooks:
            hook.remove()
    found = {at: sums[at] / counts[at] for at in range(len(layers))}
    if any(one != one for one in found.values()):
        raise DataError("how far a layer turns what it reads is not a number: the model's weights or the data hold NaN or infinity")
    return found


def _least(model: nn.Module, path: str, wanted: int, batches: Sequence[Batch], bench: Bench, scores: dict[int, float]) -> list[int]:
    """The layers that go, one after the other: each time that without which the loss is lowest; `scores` are filled with what it then is."""
    layers = model.get_submodule(path)
    assert isinstance(layers, nn.ModuleList)
    out: list[int] = []
    while len(layers) - len(out) > wanted:
        for at in (at for at in range(len(layers)) if at not in out):
            keep = [one for one in range(len(layers)) if one not in (*out, at)]
            with torch.no_grad():
                scores[at] = float(torch.cat([bench.losses(left(copy.deepcopy(model), path, keep), batch).flatten() for batch in batches]).double().mean())
        if any(one != one for one in scores.values()):
            raise DataError("the loss without a layer is not a number: the model's weights or the data hold NaN or infinity")
        out.append(min((at for at in scores if at not in out), key=lambda at: scores[at]))
    return out
