"""Blocks of a model that can stand aside: what goes in and what comes out have one shape, and there is a way around all that is learnt.

Shapes: a block reads and gives x `[N, ...]`.
"""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from limbeck.bridges.torch_pruning import Ask
from limbeck.core.errors import MismatchError
from limbeck.core.tap import check_paths

__all__ = ["aside", "named_blocks", "residual_blocks"]


def aside(model: nn.Module, paths: Sequence[str]) -> nn.Module:
    """Put an `nn.Identity` in the place of each layer, in place."""
    for path in paths:
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, nn.Identity())
    return model


def residual_blocks(model: nn.Module, ask: Ask) -> list[str]:
    """Return the innermost modules that give what they read once all of their parameters are zero, and shapes never change: residual blocks.

    Raises:
        MismatchError: there is none.
    """
    able: list[str] = []
    for path, calls in _calls(model, ask).items():
        block = model.get_submodule(path)
        if path and _why_not(path, calls) is None and next(block.children(), None) is not None and next(block.parameters(), None) is not None:
            read, _ = calls[0]
            assert read is not None
            emptied = copy.deepcopy(block)
            with torch.no_grad():
                for parameter in emptied.parameters():
                    parameter.zero_()
                if torch.equal(emptied(read), read):
                    able.append(path)
    blocks = [path for path in able if not any(other.startswith(f"{path}.") for other in able)]
    if not blocks:
        raise MismatchError(
            f"prune.blocks finds no residual block in {type(model).__name__}: a module that gives what it reads, in one shape, once its weights are zero; "
            "name the layers that may be taken out by among, or prune its channels; of a language model leave layers by prune.layers"
        )
    return blocks


def named_blocks(model: nn.Module, among: Sequence[str], ask: Ask) -> list[str]:
    """Return the layers that were named, once each can be taken out by itself.

    Raises:
        RecipeError: a layer that the model has not.
        MismatchError: one that gives another shape than it reads, or does not run once; named, with why.
    """
    check_paths(model, among, "model")
    calls = _calls(model, ask)
    for path in among:
        if (why := _why_not(path, calls.get(path, []))) is not None:
            raise MismatchError(f"{path!r} cannot be taken out: {why}")
    return [path for path in calls if path in among]


def _why_not(path: str, calls: Sequence[tuple[Tensor | None, Tensor | None]]) -> str | None:
    if not path:
        return "it is the whole model"
    if len(calls) != 1:
        return f"it runs {len(calls)} times in a forward pass, and not once"
    read, gave = calls[0]
    if read is None or gave is None:
        return "it does not read one tensor and give one"
    if read.shape != gave.shape or read.dtype != gave.dtype:
        return f"it reads {list(read.shape[1:])} and gives {list(gave.shape[1:])}"
    return None


def _calls(model: nn.Module, ask: Ask) -> dict[str, list[tuple[Tensor | None, Tensor | None]]]:
    """What each layer read and gave, call by call, in the order in which they begin."""
    found: dict[str, list[tuple[Tensor | None, Tensor | None]]] = {}
    reading: dict[str, list[Tensor | None]] = {}

    def watch(path: str, module: nn.Module) -> list[torch.utils.hooks.RemovableHandle]:
        def enter(_module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
            found.setdefault(path, [])
            alone = args[0] if len(args) == 1 and not kwargs else None
            reading.setdefault(path, []).append(alone.clone() if isinstance(alone, Tensor) else None)

        def leave(_module: nn.Module, _args: object, output: object) -> None:
            found[path].append((reading[path].pop(), output.clone() if isinstance(output, Tensor) else None))

        return [module.register_forward_pre_hook(enter, with_kwargs=True), module.register_forward_hook(leave)]

    handles = [handle for path, module in model.named_modules() for handle in watch(path, module)]
    try:
        with torch.no_grad():
            ask(model)
    finally:
        for handle in handles:
            handle.remove()
    return found
