"""gymnasium: environments with a vector of numbers to observe and a few actions to choose from.

Shapes: T steps, S numbers of an observation, A actions.
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from limbeck.core.errors import MismatchError, MissingDependency, RecipeError, did_you_mean

__all__ = ["Policy", "Spaces", "Steps", "play", "spaces"]

Policy = Callable[[Tensor, int], int]
"""What to do: from an observation `[S]` and the number of the step, counted over all episodes, to an action."""


class Spaces(NamedTuple):
    """What an environment shows and takes: the numbers of an observation, the actions, and the steps after which it ends by itself."""

    observation: int
    actions: int
    longest: int | None


class Steps(NamedTuple):
    """What was played: `before [T, S]`, `action [T]`, `after [T, S]`, `episode [T]`, and each episode's sum of rewards `returns [E]`."""

    before: Tensor
    action: Tensor
    after: Tensor
    episode: Tensor
    returns: Tensor


def _made(name: str) -> Any:
    library = _library()
    try:
        return library.make(name, disable_env_checker=True)
    except library.error.Error as error:
        told = " ".join(str(error).split())
        raise RecipeError(f"gymnasium has no environment {name!r}{did_you_mean(name, library.registry)} ({told})") from None


def spaces(name: str) -> Spaces:
    """Return what an environment shows and takes.

    Raises:
        RecipeError: gymnasium does not know it.
        MismatchError: it does not show a vector of real numbers, or its actions cannot be counted.
    """
    library, environment = _library(), _made(name)
    shown, taken = environment.observation_space, environment.action_space
    longest = environment.spec.max_episode_steps
    environment.close()
    if not isinstance(shown, library.spaces.Box) or len(shown.shape) != 1 or not isinstance(taken, library.spaces.Discrete) or taken.start != 0:
        raise MismatchError(f"{name} shows {shown} and takes {taken}; tasks.control needs a vector of numbers, and actions counted from 0")
    return Spaces(shown.shape[0], int(taken.n), longest)


def play(name: str, policy: Policy, *, seed: int, episodes: int | None = None, steps: int | None = None) -> Steps:
    """Play whole `episodes`, or as many as give `steps` steps, the last one cut; episode k begins from `seed + k`, so that the same policy plays the same.

    Raises:
        RecipeError: neither or both are given.
    """
    if (episodes is None) == (steps is None):
        raise RecipeError("say either how many episodes are played, or how many steps")
    environment = _made(name)
    before, after, actions, episode, returns = list[Any](), list[Any](), list[int](), list[int](), list[float]()
    while len(returns) < (episodes or 1 << 62) and len(actions) < (steps or 1 << 62):
        seen, _ = environment.reset(seed=seed + len(returns))
        total, over = 0.0, False
        while not over and len(actions) < (steps or 1 << 62):
            action = policy(torch.from_numpy(np.asarray(seen, dtype=np.float32)), len(actions))
            following, reward, ended, cut, _ = environment.step(action)
            before.append(seen)
            after.append(following)
            actions.append(action)
            episode.append(len(returns))
            total, over, seen = total + float(reward), bool(ended or cut), following
        returns.append(total)
    environment.close()

    def stacked(rows: list[Any]) -> Tensor:
        return torch.from_numpy(np.stack(rows).astype(np.float32))

    return Steps(stacked(before), torch.tensor(actions), stacked(after), torch.tensor(episode), torch.tensor(returns))


def _library() -> ModuleType:
    try:
        import gymnasium
    except ImportError:
        raise MissingDependency("gymnasium", "control", "a control task") from None
    return gymnasium
