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
        for name in list(module.parametrizations) if parametrize.is_parametrized(module) else []:  # pyright: ignore[reportArgumentType, reportCallIssue]
            parametrize.remove_parametrizations(module, name)
    return made
