"""Behaviour from a teacher policy: what it did in the states that it saw, or, for those who must find its actions out, what happened next."""

from collections.abc import Callable, Iterator
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from typing import Literal, Unpack

import torch
from torch import Tensor

from limbeck.bridges.gym import Policy, Spaces, Steps, play, spaces
from limbeck.core import lookup
from limbeck.core.draw import below, bits, key
from limbeck.core.errors import DataError, MismatchError, RecipeError
from limbeck.core.files import digest
from limbeck.core.knowledge import Knowledge
from limbeck.core.task import Batch, Facts, How, Loader, Split, Task

from ._as_plain import AsPlain
from ._linear_policy import greedy, searched
from ._memory import Held, Shelf
from ._split import Splitting
from .classify import Classify

__all__ = ["Control"]

_TEST, _TRIAL, _OWN = 10_000_000, 20_000_000, 30_000_000
"""Where the seeds of the teacher's test episodes, of a student's trials and of the wanderings begin; the demonstrations' begin at `seed` itself."""

_ABSENT: dict[Split, str] = {
    "validation": "there is no validation split: set `validation` above 0",
    "test": "there is no test split: transitions of one's own are only learnt from",
}


class Control(AsPlain):
    """Behaviour from a teacher policy in one of gymnasium's environments, with a vector to observe and a few actions to choose from.

    With `show: demonstrations` the teacher policy plays whole episodes; an example is an observation `[S]`, its label the action that the teacher took, and the
    field `transition [N, 2S]` holds the observation and the one that followed it: all that is known where actions are not observed. With `show: transitions`
    one's own random actions are played; an example is a transition `[2S]`, its label the action: what an inverse dynamics model learns from. Observations are
    as the environment gives them.

    `accuracy` is the agreement with the teacher on observations of episodes that were not shown. A model that acts is also tried out: `return_mean` is the mean
    return of its likeliest actions over `trials` episodes, the same for every model, beside the teacher's own in them and that of random actions.
    Pomerleau, "ALVINN: An Autonomous Land Vehicle in a Neural Network", NeurIPS 1988: behavioural cloning.

    Args:
        env: the environment's name in gymnasium.
        teacher: searched, a linear policy found by the cross-entropy method from `seed`; or python:package.module:policy, called with an observation `[S]`.
        show: demonstrations or transitions.
        episodes: demonstrations that are shown, a tenth of whose observations are held back by default.
        steps: transitions that are shown.
        validation: the fraction of the training examples held back for validation; 0 for none.
        test_episodes: of the teacher's, for the test split.
        trials: episodes in which a model that acts is tried out.
        seed: of the search, of episodes, of random actions and of the split.

    Raises:
        RecipeError: options that cannot be meant, an environment that gymnasium does not know.
        MismatchError: an environment that shows or takes something else.
        MissingDependency: gymnasium is not installed.
    """

    def __init__(
        self,
        *,
        env: str = "CartPole-v1",
        teacher: str = "searched",
        show: Literal["demonstrations", "transitions"] = "demonstrations",
        episodes: int = 10,
        steps: int = 2000,
        validation: float = 0.1,
        test_episodes: int = 10,
        trials: int = 20,
        seed: int = 0,
    ) -> None:
        if teacher != "searched" and not teacher.startswith("python:"):
            raise RecipeError(f"teacher is {teacher!r} for tasks.control; it is 'searched', or python:package.module:policy")
        if show not in ("demonstrations", "transitions"):
            raise RecipeError(f"show is {show!r} for tasks.control; it is 'demonstrations' or 'transitions'")
        self._splitting = Splitting(validation=validation, seed=seed)
        for name, value in (("episodes", episodes), ("steps", steps), ("test_episodes", test_episodes), ("trials", trials)):
            if value < 1:
                raise RecipeError(f"{name} is {value}; it must be 1 or more")
        if seed < 0:
            raise RecipeError(f"seed is {seed}; it must be 0 or more")
        self.env, self.teacher, self.show = env, teacher, show
        self._episodes, self._steps, self._tests, self._trials, self._seed = episodes, steps, test_episodes, trials, seed
        self._plain = Classify()

    @cached_property
    def spaces(self) -> Spaces:
        """What the environment shows and takes."""
        return spaces(self.env)

    @cached_property
    def policy(self) -> Policy:
        """The teacher policy: from an observation `[S]` and the number of the step to an action."""
        if self.teacher == "searched":
            return greedy(searched(self.env, self._seed))
        act: Callable[[Tensor], object] = lookup.find("models", self.teacher)

        def policy(seen: Tensor, _step: int) -> int:
            action = act(seen)
            if not isinstance(action, int) or not 0 <= action < self.spaces.actions:
                raise MismatchError(f"{self.teacher} answers an observation with {action!r}; it must be a whole number below {self.spaces.actions}")
            return action

        return policy

    def wander(self, policy: Policy | None = None) -> Steps:
        """Play `steps` steps by a policy, or at random: a pure function of the seed."""
        hashed = bits(torch.arange(self._steps), key(self._seed, _OWN))
        actions = below(hashed, self.spaces.actions, 1)
        return play(self.env, policy or (lambda _seen, step: int(actions[step])), seed=_OWN + self._seed, steps=self._steps)

    @cached_property
    def _loaded(self) -> tuple[Shelf, Tensor]:
        """Examples and labels by split, and the transition of each row."""
        if self.show == "transitions":
            played = self.wander()
            shown, tested = played, None
            inputs = torch.cat([played.before, played.after], 1)
        else:
            shown = play(self.env, self.policy, seed=self._seed, episodes=self._episodes)
            tested = play(self.env, self.policy, seed=_TEST + self._seed, episodes=self._tests)
            inputs = torch.cat([shown.before, tested.before])
        labels = shown.action if tested is None else torch.cat([shown.action, tested.action])
        rows = self._splitting.carved(labels, torch.arange(len(shown.action)))
        if tested is not None:
            rows["test"] = torch.arange(len(shown.action), len(labels))
        if not len(rows["train"]):
            raise DataError(f"{self.env} gave {len(shown.action)} steps to learn from: take more episodes")
        pairs = [torch.cat([one.before, one.after], 1) for one in (shown, tested) if one is not None]
        return Shelf(Held(inputs, labels, torch.zeros(1), None), rows, absent=_ABSENT), torch.cat(pairs)

    def facts(self) -> Facts:
        shelf, _ = self._loaded
        names = tuple(str(action) for action in range(self.spaces.actions))
        told = {"kind": "control", "env": self.env, "show": self.show}
        return Facts(tuple(shelf.held.images.shape[1:]), len(names), names, len(shelf.rows["train"]), preprocess=told)

    def fingerprint(self) -> str:
        """A digest of every option, of a teacher policy's source, and of gymnasium's version: nothing is played for it."""
        try:
            library = version("gymnasium")
        except PackageNotFoundError:
            library = ""
        told = [self.env, self.teacher, self.show, self._episodes, self._steps, self._splitting.validation, self._tests, self._trials, self._seed, library]
        return digest({"task": "control", "options": told, "source": lookup.source_digest(self.teacher)})

    def loader(self, split: Split, **how: Unpack[How]) -> Loader:
        shelf, transitions = self._loaded
        inner = shelf.loader(split, **how)
        return inner if self.show == "transitions" else _WithTransitions(inner, transitions.to(how.get("device")))

    def plain(self) -> Task:
        return self._plain

    def splits(self) -> tuple[Split, ...]:
        return tuple(split for split in self._splitting.splits() if split != "test" or self.show == "demonstrations")

    def outcome(self, answer: Callable[[Batch], Knowledge]) -> dict[str, float]:
        """Let a model act in `trials` episodes, and its teacher in the same ones; nothing for a model that only names actions."""
        if self.show == "transitions":
            return {}
        ours = play(self.env, acting(answer), seed=_TRIAL + self._seed, episodes=self._trials).returns
        theirs = play(self.env, self.policy, seed=_TRIAL + self._seed, episodes=self._trials).returns
        drawn = below(bits(torch.arange(self._trials * (self.spaces.longest or self._steps)), key(self._seed, _TRIAL)), self.spaces.actions, 1)
        chance = play(self.env, lambda _seen, step: int(drawn[step % len(drawn)]), seed=_TRIAL + self._seed, episodes=self._trials).returns
        return {
            "return_mean": float(ours.mean()), "return_worst": float(ours.min()),
            "teacher_return": float(theirs.mean()), "random_return": float(chance.mean()),
        }  # fmt: skip


def acting(answer: Callable[[Batch], Knowledge]) -> Policy:
    """Return the policy of a model's likeliest action."""

    @torch.no_grad()
    def policy(seen: Tensor, _step: int) -> int:
        return int(answer({"input": seen.unsqueeze(0)}).main.logits[0].argmax())

    return policy


class _WithTransitions(Loader):
    """Batches with what each observation led to."""

    def __init__(self, loader: Loader, transitions: Tensor) -> None:
        self._loader, self._transitions = loader, transitions

    def __len__(self) -> int:
        return len(self._loader)

    def batches(self, epoch: int, *, skip: int = 0) -> Iterator[Batch]:
        for batch in self._loader.batches(epoch, skip=skip):
            yield {**batch, "transition": self._transitions.index_select(0, batch["id"])}
