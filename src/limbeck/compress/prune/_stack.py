"""The stack of layers that a transformer is: where it is, and how some of it is left."""

from collections.abc import Sequence

from torch import nn

from limbeck.bridges import transformers
from limbeck.core.errors import ArtifactError, MismatchError

__all__ = ["left", "stack_of"]


def stack_of(model: nn.Module) -> str:
    """Return the path of the list of layers: of all lists of two modules or more of one type, the one that holds most weights.

    Raises:
        MismatchError: there is none.
    """
    found = {
        path: sum(one.numel() for one in module.parameters())
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) > 1 and len({type(one) for one in module}) == 1
    }
    if not any(found.values()):
        raise MismatchError(
            f"{type(model).__name__} has no stack of layers (a ModuleList of two or more of one kind), of which some could be left: take prune.blocks"
        )
    return max(found, key=lambda path: found[path])


def left(model: nn.Module, path: str, keep: Sequence[int]) -> nn.Module:
    """Leave the layers `keep` of a stack, in their order, in place; the configuration of a model of transformers says so too.

    Raises:
        ArtifactError: there is no such stack, or no such layer.
    """
    stack = dict(model.named_modules()).get(path)
    if not isinstance(stack, nn.ModuleList) or not keep or not 0 <= min(keep) <= max(keep) < len(stack):
        raise ArtifactError(f"the record of prune.layers leaves {list(keep)} of {path!r}, and {type(model).__name__} has no such layers: of another model")
    held = transformers.inner(model)
    changes = None if held is None else transformers.by_layer(held, keep)
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, nn.ModuleList(stack[at] for at in keep))
    for number, at in enumerate(keep):
        for module in stack[at].modules():
            for index in {"layer_idx", "layer_id"} & vars(module).keys():  # by which a cache of keys and values is found
                setattr(module, index, number)
    if held is not None and changes is not None:
        for option, value in changes.items():
            setattr(held.config, option, value)
    return model
