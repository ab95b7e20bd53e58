"""A module without what only its training needed."""

import copy

from torch import nn
from torch.nn.utils import parametrize

__all__ = ["plain"]


def plain(model: nn.Module) -> nn.Module:
    """Return a copy of a model in which every parametrized weight is an ordinary parameter that holds what it came to.

    >>> plain(nn.utils.parametrizations.weight_norm(nn.Linear(2, 3))).state_dict().keys()
    odict_keys(['bias', 'weight'])
    """
    made = copy.deepcopy(model)
    for module in made.modules():
        if not parametrize.is_parametrized(module):
            continue
        own = type(module)  # which torch made for the original, and a deep copy shares: a property taken from it would be gone there too
        members = {name: value for name, value in vars(own).items() if name not in ("__dict__", "__weakref__")}
        object.__setattr__(module, "__class__", type(own.__name__, own.__bases__, members))
        for name in list(module.parametrizations):  # pyright: ignore[reportArgumentType, reportCallIssue]
            parametrize.remove_parametrizations(module, name)
    return made
