"""How a saliency asks a model: in evaluation mode, by gradients of the named parameters alone, and without a trace."""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from limbeck.compress._method import Bench
from limbeck.core.errors import DataError, MismatchError, RecipeError
from limbeck.core.task import Batch

__all__ = ["batches", "check_count", "finite", "gradients", "parameters_of", "undisturbed"]

_BATCH = 256


def parameters_of(model: nn.Module, names: Iterable[str]) -> dict[str, nn.Parameter]:
    """Return the named parameters.

    Raises:
        MismatchError: one that the model has not.
    """
    known = dict(model.named_parameters(remove_duplicate=False))
    chosen = list(names)
    if missing := [name for name in chosen if name not in known]:
        raise MismatchError(f"{type(model).__name__} has no parameter {missing[0]!r}; it has {', '.join(known) or 'none'}")
    return {name: known[name] for name in chosen}


@contextmanager
def undisturbed(model: nn.Module, names: Iterable[str]) -> Iterator[dict[str, nn.Parameter]]:
    """Give the named parameters, which alone require gradients while the block lasts; the model is in evaluation mode, and afterwards as it was."""
    chosen = parameters_of(model, names)
    modes = [(module, module.training) for module in model.modules()]
    required = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        model.eval()
        model.requires_grad_(False)
        for parameter in chosen.values():
            parameter.requires_grad_(True)
        with torch.inference_mode(False), torch.enable_grad():
            yield chosen
    finally:
        for parameter, flag in required:
            parameter.requires_grad_(flag)
        for module, mode in modes:
            module.training = mode


def batches(bench: Bench, examples: int, *, batch_size: int = _BATCH) -> Iterator[Batch]:
    """Give batches of about `examples` training examples, all of them where there are fewer, of one size so that few are left out.

    Raises:
        DataError: there is none.
    """
    count = min(examples, bench.task.facts().examples)
    rounds = max(1, math.ceil(count / batch_size))
    given = 0
    for batch in bench.batches(count, batch_size=max(1, count // rounds)):
        given += 1
        yield batch
    if not given:
        raise DataError("the training split gave no batch to measure saliency on")


def check_count(option: str, value: int) -> int:
    """Return a count of one or more, or refuse it."""
    if value < 1:
        raise RecipeError(f"{option} must be 1 or more, not {value}")
    return value


def gradients(target: Tensor, parameters: Mapping[str, nn.Parameter], *, needed: Iterable[str] | None = None, keep: bool = False) -> dict[str, Tensor]:
    """Return the gradient of a scalar by each parameter; those that it does not depend on are left out, unless they are `needed` (all, by default).

    With `keep` the graph can be gone through again.

    Raises:
        MismatchError: a parameter that the loss does not depend on, named: nothing can be said of it.
    """
    if not target.requires_grad:
        raise MismatchError("the loss depends on none of the weights to prune: the forward pass detaches them, or runs under no_grad")
    found = dict(zip(parameters, torch.autograd.grad(target, list(parameters.values()), retain_graph=keep, allow_unused=True), strict=True))
    for name in parameters if needed is None else needed:
        if found[name] is None:
            raise MismatchError(f"no gradient reaches {name!r}: the loss does not depend on it; leave it out of what is pruned (spare)")
    return {name: gradient for name, gradient in found.items() if gradient is not None}


def finite(found: Mapping[str, Tensor], what: str) -> dict[str, Tensor]:
    """Return what was found, or name the parameter at which it is not finite."""
    for name, value in found.items():
        if not value.isfinite().all():
            raise DataError(f"{what} of {name!r} is not finite: the model's weights, its loss or the data hold NaN or infinity, or the loss overflows")
    return dict(found)
