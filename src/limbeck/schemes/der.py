"""Dark experience replay: what was said of an example when it was met is what should be said of it later.

Buzzega et al., "Dark Experience for General Continual Learning: a Strong, Simple Baseline", NeurIPS 2020, arXiv:2004.07211.
"""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from limbeck.core import lookup
from limbeck.core.artifact import Artifact
from limbeck.core.draw import key, permutation
from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.knowledge import Knowledge
from limbeck.core.objective import Objective, Term
from limbeck.core.schedule import check_number
from limbeck.core.scheme import Losses
from limbeck.core.task import Batch, Facts, Task
from limbeck.core.teacher import Teacher

from ._around import Around
from ._checks import evaluating
from .offline import Offline

__all__ = ["DER", "dark_loss"]


def dark_loss(logits: Tensor, kept: Tensor) -> Tensor:
    """Return `mean_c (z_c - h_c)^2` of each example `[N]` over the classes of which an answer was kept: `logits` z and `kept` h `[N, C]`, NaN where none was.

    >>> dark_loss(torch.tensor([[1.0, 5.0]]), torch.tensor([[3.0, float("nan")]]))
    tensor([4.])
    """
    known = ~kept.isnan()
    gap = logits.float() - torch.where(known, kept, 0.0)
    return torch.where(known, gap, 0.0).square().sum(-1) / known.sum(-1).clamp(min=1)


class DER(Around):
    """Dark experience replay, DER++: a reservoir of examples met so far, with what the model said of each when it was met.

    `loss = L(batch) + alpha mean_m ||f(x') - h'||^2 / C + beta mean_m L(x'', y'')`, L the objectives' loss (of the second the task's own), x' and x'' two draws
    of m examples from the reservoir, h' the logits kept of x'; alpha = 0 is experience replay, beta = 0 is DER.
    Buzzega et al. 2020, arXiv:2004.07211, eq. 6 and algorithm 2. Every pass over an example counts as a meeting, as there.

    Two things differ from the paper: a head that grows has no logits for classes to come, so h' is compared on the classes that were known then;
    and h is said in eval mode, of the example as it is, without augmentation.

    The reservoir is in the checkpoint, and in the artifact as `memory/`, from which the next task's stage goes on, `of: stage`.

    Args:
        size: how many examples the reservoir holds.
        alpha: the weight of what was said of them.
        beta: the weight of their labels.
        batch: m, how many examples a draw has; as many as a batch where it is left out.
        keep: ids, or examples: checkpoint and memory then hold the examples themselves, and so does whoever has them.

    Raises:
        RecipeError: a size or a batch below one, a weight below zero.
        MismatchError: several processes, whose reservoirs would differ; no example to begin with.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: "nn.Module | Teacher | None",
        objectives: Iterable[Objective | Term],
        task: Task | None = None,
        example: object | None = None,
        facts: Facts | None = None,
        source: Artifact | None = None,
        *,
        size: int = 500,
        alpha: float = 0.5,
        beta: float = 0.5,
        batch: int | None = None,
        keep: Literal["ids", "examples"] = "ids",
    ) -> None:
        super().__init__()
        check_number("alpha", alpha, positive=False)
        check_number("beta", beta, positive=False)
        if batch is not None and batch < 1:
            raise RecipeError(f"batch is {batch}; a draw has one example at least")
        if example is None:
            raise MismatchError("der makes room for examples before the first step: give the scheme `example=` a batch")
        if torch.distributed.is_available() and torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
            raise MismatchError("der keeps one reservoir, and several processes would keep one each: train on one device")
        self.base = Offline(student, teacher, objectives, task, example, facts)
        self.phases, self.task = self.base.phases, self.base.task
        self._alpha, self._beta, self._batch = alpha, beta, batch
        self._replay: Any = lookup.build("transfer", "replay", {"size": size, "keep": keep}, source)
        own = "train" in self.task.splits()
        if keep == "ids" and not own:
            raise MismatchError("the task has no data in which examples are found again by id: give keep='examples'")
        read = self.task.batch(example)
        with torch.no_grad(), evaluating(student):
            classes = self.task.forward(student, read).main.classes
        self._key = int(torch.randint(1 << 62, ()))
        self._seen = self._step = 0
        inputs, place = read["input"], read["input"].device
        self.register_buffer("ids", torch.full((size,), -1, device=place))
        self.register_buffer("labels", torch.zeros(size, dtype=torch.int64, device=place))
        self.register_buffer("logits", torch.full((size, classes), float("nan"), device=place))
        self.register_buffer("inputs", torch.zeros(size, *inputs.shape[1:], dtype=inputs.dtype, device=place), persistent=keep == "examples")
        self._plain: Any = self._replay.fresh(self.task) if own else None
        if source is not None:
            self._go_on(size, classes)
        if keep == "ids":
            self.register_load_state_dict_post_hook(_find_again)

    def _go_on(self, size: int, classes: int) -> None:
        """Begin with what an earlier stage remembers."""
        memory = self._replay.recall(self.task)
        held = min(memory.seen, size)
        if len(memory) < held:
            raise RecipeError(f"a reservoir of {len(memory)} of {memory.seen} examples cannot become one of {size}: size is {len(memory)} at most")
        memory = memory.take(permutation(len(memory), self._key)[:held]) if len(memory) > held else memory
        self._seen = memory.seen
        self._put(torch.arange(held), memory.ids, memory.labels, memory.inputs, memory.widened(classes))

    def _put(self, slots: Tensor, ids: Tensor, labels: Tensor, inputs: Tensor, logits: Tensor) -> None:
        for name, values in (("ids", ids), ("labels", labels), ("inputs", inputs), ("logits", logits)):
            held = self.get_buffer(name)
            held[slots.to(held.device)] = values.to(held)

    @property
    def _held(self) -> int:
        return min(self._seen, len(self.get_buffer("ids")))

    def forward(self, batch: object, phase: str = "student") -> Losses:
        losses = self.base(batch, phase)
        if phase != "student":
            return losses
        read = self.task.batch(batch)
        if self._held:
            first, second = (self._drawn(which, len(read["input"])) for which in (0, 1))
            dark = dark_loss(self._ask(first).main.logits, self.get_buffer("logits")[first]).mean()
            again = self.task.loss(self._ask(second), self._examples(second)).mean()
            summed = losses.sums["student"] + losses.count * (self._alpha * dark + self._beta * again)
            parts = {**losses.parts, "dark": (dark * losses.count).detach(), "replayed": (again * losses.count).detach()}
            losses = Losses({**losses.sums, "student": summed}, losses.count, parts)
        if self.training and torch.is_grad_enabled():
            self._meet(read)
        return losses

    def _drawn(self, which: int, usual: int) -> Tensor:
        """The slots of one draw, no two alike."""
        rows = permutation(self._held, key(self._key, self._step, which))[: self._batch or usual]
        return rows.to(self.get_buffer("ids").device)

    def _examples(self, rows: Tensor) -> Batch:
        return {"input": self.get_buffer("inputs")[rows], "label": self.get_buffer("labels")[rows], "id": self.get_buffer("ids")[rows]}

    def _ask(self, rows: Tensor) -> Knowledge:
        return self.task.forward(self.base.student, self._examples(rows))

    @torch.no_grad()
    def _meet(self, batch: Batch) -> None:
        """Let the reservoir take what it takes of a batch."""
        slots = self._replay.slots(self._seen, len(batch["input"]), key(self._key)).tolist()
        self._seen, self._step = self._seen + len(slots), self._step + 1
        last = {slot: row for row, slot in enumerate(slots) if slot >= 0}  # of two that take one slot, the later one
        if not last:
            return
        rows = torch.tensor(list(last.values()), device=batch["input"].device)
        ids = batch["id"][rows] if "id" in batch else torch.full_like(rows, -1)
        inputs = batch["input"][rows] if self._plain is None else self._as_it_is(ids).to(batch["input"])
        with evaluating(self.base.student):
            said = self.task.forward(self.base.student, {"input": inputs}).main.logits
        self._put(torch.tensor(list(last)), ids, batch["label"][rows], inputs, said.float())

    def _as_it_is(self, ids: Tensor) -> Tensor:
        """The examples of these ids without augmentation."""
        own = self._plain.ids
        places = torch.searchsorted(own, ids.cpu()).clamp(max=len(own) - 1)
        if not own[places].equal(ids.cpu()):
            raise MismatchError("der meets examples that are not the task's own training examples: it replays by itself, transfer: {kind: real}")
        return self._plain.inputs[places]

    def get_extra_state(self) -> Tensor:
        return torch.tensor([self._seen, self._step, self._key])

    def set_extra_state(self, state: Tensor) -> None:
        self._seen, self._step, self._key = (int(one) for one in state)

    def find_again(self) -> None:
        """Fill the reservoir with the examples whose ids it holds."""
        ids = self.get_buffer("ids")[: self._held]
        self.get_buffer("inputs")[: self._held] = self._replay.find(self.task, ids.cpu()).to(self.get_buffer("inputs"))

    def shipped(self) -> dict[str, nn.Module]:
        return self.base.shipped()

    def after_step(self) -> None:
        self.base.after_step()

    def leave(self, folder: Path) -> None:
        held = {name: self.get_buffer(name)[: self._held].cpu() for name in ("ids", "labels", "inputs", "logits")}
        self._replay.save(folder, replace(self._replay.recall(self.task), **held, seen=self._seen))


def _find_again(module: nn.Module, _keys: object) -> None:
    assert isinstance(module, DER)
    module.find_again()
