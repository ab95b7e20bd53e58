"""Which layers there are to factorize, where they work, and others put in their place."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from limbeck.compress._method import Bench
from limbeck.core.errors import DataError, LimbeckError, MismatchError, RecipeError, did_you_mean
from limbeck.core.task import Batch

from ._form import Seen, Target

__all__ = ["heard", "install", "replaced", "survey", "swapped", "targets"]

Why = Callable[[nn.Module], str]


def targets(model: nn.Module, kinds: tuple[type[nn.Module], ...], why: Why, *, only: Sequence[str] | None, skip: Sequence[str] | None) -> list[Target]:
    """Return the layers of these kinds, those below a name of `only` where it is given and none below one of `skip`.

    `why(layer)` says why a layer cannot be factorized, nothing where it can.

    Raises:
        RecipeError: a name that means no such layer, or one of `only` that cannot be factorized.
        MismatchError: no layer that can be.
        DataError: a weight that is not finite.
    """
    uses = Counter(id(held) for _, held in model.named_parameters(remove_duplicate=False))
    parents = dict(model.named_modules())
    there = {path: layer for path, layer in parents.items() if isinstance(layer, kinds)}
    for name in (*(only or ()), *(skip or ())):
        if not any(_below(path, name) for path in there):
            kind = " or ".join(one.__name__ for one in kinds)
            raise RecipeError(f"the model has no {kind} at {name!r}{did_you_mean(name, there)}")
    found: list[Target] = []
    for path, layer in there.items():
        if any(_below(path, name) for name in skip or ()) or (only is not None and not any(_below(path, name) for name in only)):
            continue
        refusal = _unsound(layer, kinds, uses, parents.get(path.rpartition(".")[0]) if path else None) or why(layer)
        if refusal and path in (only or ()):
            raise RecipeError(f"layer {path!r} cannot be factorized: {refusal}")
        if not refusal and not bool(torch.isfinite(layer.get_parameter("weight")).all()):
            raise DataError(f"the weight of layer {path!r} holds numbers that are not finite: mend the model before it is factorized")
        found.append(Target(path, layer, refusal))
    if all(one.refusal for one in found):
        said = "; ".join(f"{one.path or 'it'}: {one.refusal}" for one in found[:5]) or f"no {' and no '.join(one.__name__ for one in kinds)}"
        raise MismatchError(f"{type(model).__name__} has no layer to factorize ({said}): choose another method, or name other layers")
    return found


def _below(path: str, name: str) -> bool:
    return path == name or path.startswith(f"{name}.")


def _unsound(layer: nn.Module, kinds: tuple[type[nn.Module], ...], uses: Counter[int], parent: nn.Module | None) -> str:
    """Why a layer cannot be replaced at all, whatever its sizes."""
    if type(layer) not in kinds:
        return f"it is a {type(layer).__name__}, whose weight others may read"
    if parametrize.is_parametrized(layer):
        return "its weight is parametrized: make the model plain first"
    if isinstance(parent, nn.TransformerEncoderLayer):
        return "nn.TransformerEncoderLayer reads its weight past it"
    if any(uses[id(held)] > 1 for held in layer.parameters()):
        return "its weight is shared with another layer"
    return ""


def examples_of(batch: Batch) -> int:
    return next(iter(batch.values())).shape[0]


@contextmanager
def heard(layers: Mapping[str, nn.Module], hear: Callable[[str, Tensor, Tensor], None]) -> Iterator[None]:
    """Call `hear(path, what enters, what leaves)` at every call of a layer while the block lasts."""

    def reader(path: str) -> Any:
        def read(_layer: nn.Module, args: tuple[Any, ...], more: dict[str, Any], output: Tensor) -> None:
            hear(path, args[0] if args else next(iter(more.values())), output)

        return read

    handles = [layer.register_forward_hook(reader(path), with_kwargs=True) for path, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def survey(model: nn.Module, found: Sequence[Target], bench: Bench) -> list[Target]:
    """Return the targets with the positions at which each works for one input."""
    totals = {one.path: Seen() for one in found}

    def hear(path: str, enters: Tensor, leaves: Tensor) -> None:
        old = totals[path]
        if enters.ndim > 2 and isinstance(model.get_submodule(path), nn.Conv2d):
            (rows, columns), (high, wide) = enters.shape[-2:], leaves.shape[-2:]
            images = enters.shape[0] if enters.ndim == 4 else 1
            new = (images * rows * columns, images * high * columns, images * high * wide)
        else:
            new = (enters.numel() // enters.shape[-1],) * 3
        totals[path] = Seen(*(before + more for before, more in zip((old.entering, old.between, old.leaving), new, strict=True)))

    batch = next(bench.batches(1))
    with heard({one.path: one.layer for one in found}, hear):
        bench.task.forward(model, batch)
    size = examples_of(batch)
    seen = {path: Seen(total.entering / size, total.between / size, total.leaving / size) for path, total in totals.items()}
    return [replace(one, seen=seen[one.path]) for one in found]


def install(model: nn.Module, path: str, new: nn.Module) -> nn.Module:
    """Put a module at a path, in place; return the model, which is the new one where the path is the model itself."""
    if not path:
        return new
    above, _, name = path.rpartition(".")
    setattr(model.get_submodule(above), name, new)
    return model


@contextmanager
def swapped(model: nn.Module, path: str, new: nn.Module) -> Iterator[nn.Module]:
    """Give the model with another module at a path while the block lasts."""
    old = model.get_submodule(path)
    try:
        yield install(model, path, new)
    finally:
        install(model, path, old)


@contextmanager
def replaced(model: nn.Module, made: Mapping[str, nn.Module], bench: Bench) -> Iterator[nn.Module]:
    """Give the model with all modules in their places, once it has run with each of them; it is put back as it was where the block or a run fails.

    Raises:
        MismatchError: the model does not run, with the layer that it cannot do without.
    """
    batch = next(bench.batches(1))
    for path, new in made.items():
        with swapped(model, path, new) as changed:
            _try(changed, path, batch, bench)
    old = {path: model.get_submodule(path) for path in made}
    changed = model
    try:
        for path, new in made.items():
            changed = install(changed, path, new)
        yield changed
    except BaseException:
        for path, layer in old.items():
            install(model, path, layer)
        raise


@torch.no_grad()
def _try(model: nn.Module, path: str, batch: Batch, bench: Bench) -> None:
    try:
        bench.task.forward(model, batch)
    except LimbeckError:
        raise
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        told = " ".join(str(error).split())
        raise MismatchError(f"the model does not run without its layer {path!r} ({told}), and is left as it was: add it to skip") from error
