"""Text that is written while a student learns: after the prompts of a batch, by the student, or by it and its teacher together.

Shapes: N rows, T tokens, M stretches, V vocabulary.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from limbeck.bridges.vocabulary import end_of
from limbeck.bridges.writing import IGNORED, Reader, check_prompt, check_sampling, coins, drawn, put, stretches, write
from limbeck.core.draw import key
from limbeck.core.errors import MismatchError
from limbeck.core.objective import Contest, Term
from limbeck.core.task import Batch, Facts, Task
from limbeck.core.teacher import Teacher

from ._around import Around

__all__ = ["Pen", "Turns", "Writing", "check_terms", "live"]

_HALF = (1 << 63) - 1


class Pen:
    """How text is written: after the task's prompts, or `prompt` of a plain text, `tokens` at most, each drawn.

    Raises:
        RecipeError: numbers that cannot be meant.
    """

    def __init__(
        self,
        task: Task,
        facts: Facts | None,
        *,
        prompt: float,
        tokens: int | None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
    ) -> None:
        check_prompt(prompt, tokens)
        check_sampling(temperature, top_k, top_p)
        known = task.facts() if facts is None else facts
        self.classes, self._end = known.classes, end_of(known.preprocess)
        self._prompt, self._tokens = prompt, tokens
        self._temperature, self._top_k, self._top_p = temperature, top_k, top_p

    @torch.no_grad()
    def write(self, batch: Batch, reads: Callable[[Tensor], Reader], seed: int) -> dict[str, Tensor]:
        """Return the batch with what is written in the place of what it said; `reads` makes a reader of `segment [M, T]`.

        Labels are the tokens that were written, and no other counts.
        """
        some = stretches(batch, self._prompt, self._tokens)
        if not len(some):
            return {**batch, "label": torch.full_like(batch["label"], IGNORED)}
        prompts, segment = some.prompts(batch["input"])
        every = torch.cat([segment, segment.new_ones(len(some), int(some.room.max()))], 1)
        toss = coins(batch, some, seed)

        def choose(logits: Tensor, step: int, of: Tensor) -> Tensor:
            return drawn(logits, toss(step)[of], temperature=self._temperature, top_k=self._top_k, top_p=self._top_p)

        return put(batch, some, *write(reads(every), prompts, some.room, choose, self._end))


class Turns:
    """Which step it is, and what is drawn in it: the seed is what torch's generator was last seeded with when the scheme was made."""

    def __init__(self) -> None:
        self.seed, self.step = torch.initial_seed() & _HALF, 0

    def share(self, purpose: int) -> float:
        """A number in [0, 1) of this step."""
        return key(self.seed, self.step, purpose) / 2**64

    def draws(self, purpose: int) -> int:
        """A seed of this step's own."""
        return key(self.seed, self.step, purpose) & _HALF

    def state(self) -> Tensor:
        return torch.tensor([self.seed, self.step])

    def restore(self, state: Tensor) -> None:
        self.seed, self.step = (int(one) for one in state.tolist())


class Writing(Around):
    """A scheme in which text is written step by step, `turns` telling which step it is: what an interrupted training goes on from."""

    turns: Turns

    def shipped(self) -> dict[str, nn.Module]:
        return self.base.shipped()

    def after_step(self) -> None:
        self.turns.step += 1
        self.base.after_step()

    def get_extra_state(self) -> Tensor:
        return self.turns.state()

    def set_extra_state(self, state: Tensor) -> None:
        self.turns.restore(state)


def check_terms(who: str, terms: list[Term]) -> None:
    """Refuse an objective with an opponent of its own."""
    for term in terms:
        if isinstance(term.objective, Contest):
            raise MismatchError(f"the objective {term.name} is a contest with an opponent, which {who} has no phase for: take scheme: {{kind: offline}}")


def live(who: str, teacher: Teacher | None) -> Teacher:
    """Return a teacher that can be asked about any text, or refuse it."""
    if teacher is None:
        raise MismatchError(f"in {who} a teacher scores what the student writes, and there is none: give one, teacher: {{kind: frozen, of: stage}}")
    if teacher.views is not None:
        raise MismatchError(
            f"{type(teacher).__name__} knows what was recorded of the data, and {who} asks about what the student writes: take teacher: {{kind: frozen}}"
        )
    return teacher
