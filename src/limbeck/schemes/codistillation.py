"""Processes that train copies of a model apart and teach one another by the weights that they leave in a folder."""

import copy
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn

from limbeck.core.ask import ask
from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.knowledge import Knowledge, Reads
from limbeck.core.lookup import build
from limbeck.core.objective import Objective, Term
from limbeck.core.scheme import Losses, Scheme
from limbeck.core.task import Batch, Facts, Task
from limbeck.core.teacher import Teacher

from ._exchange import Left, found, leave, place, take, writer
from ._players import check_lessons, like, made
from .offline import Offline

_POLL = 0.05
"""Seconds between two looks for a peer that is waited for."""


class Codistillation(Scheme):
    """Processes that train a model each and teach one another: every one leaves its weights in a shared folder now and then, and copies what the others left.

    `L = L_C + weight * D(mean_j p_j, p)`, the p_j answers of the copies, up to `every` steps old and more (algorithm 1); until the burn-in is over, and while
    no peer has left anything, what asks a teacher is left out: `objectives: [{kind: response.kd, temperature: 1.0}, {kind: supervised}]`.
    Anil et al., "Large scale distributed neural network training through online distillation", ICLR 2018, arXiv:1804.03235.

    Each process is a run of its own, with a `seed` of its own for another order of the data and other first weights, a `name` of its own, and the others as its
    `peers`. Nobody waits unless `wait` says so. A peer that lags teaches by its last copy; one that has left nothing new for `patience` exchanges is taken for
    dead and teaches no more, until it is heard again; one that has finished teaches on. All of it is said in notes. The copies in use are in the checkpoint, so
    that a resumed run goes on from the same lesson. Files are written whole or not at all. One process per run: `devices: 1`.

    Args:
        folder: where weights are exchanged, NAME.safetensors each; relative to the current folder. Take a fresh one for each training.
        name: of this process among its peers: letters, digits, - and _.
        peers: names of the others, all of this student's kind; or a mapping of name to model as a recipe writes it, such as {b: {kind: cnn, width: 16}}.
        every: steps of the optimizer between two exchanges.
        burn_in: steps before the peers are listened to.
        wait: seconds to wait, at an exchange, for peers that are more than `every` steps behind; one that did not come is waited for no more until it does.
        patience: exchanges without news after which a peer is taken for dead.

    Raises:
        RecipeError: no peers, a name that cannot be one, no objective that asks a teacher, or none that asks no teacher.
        MismatchError: a finished teacher beside the peers, several devices, or a peer that is another model.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: "nn.Module | Teacher | None",
        objectives: Iterable[Objective | Term],
        task: Task | None = None,
        example: object | None = None,
        facts: Facts | None = None,
        *,
        folder: str,
        name: str,
        peers: list[str] | dict[str, dict[str, Any]],
        every: int = 50,
        burn_in: int = 0,
        wait: float = 0.0,
        patience: int = 10,
    ) -> None:
        super().__init__()
        terms = [one if isinstance(one, Term) else Term(one) for one in objectives]
        check_lessons("codistillation", teacher, terms)
        if all(term.objective.undecided or term.objective.needs.teacher is not None for term in terms):
            raise RecipeError(
                "until a peer is heard only objectives that ask no teacher are learnt from, and there is none: add one, such as {kind: supervised}"
            )
        if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
            raise MismatchError("codistillation is between runs of one process each: take devices: 1, and start a run for each peer")
        _check(name, list(peers), every, burn_in, wait, patience)
        self.folder, self.name = Path(folder).expanduser(), name
        self.every, self.burn_in, self.wait, self.patience = every, burn_in, wait, patience
        models = dict.fromkeys(peers) if isinstance(peers, list) else peers
        copies = {peer: copy.deepcopy(student) if told is None else like(student, made(told, facts, f"peers.{peer}")) for peer, told in models.items()}
        self._steps = 0
        self._peers = {peer: _Peer() for peer in copies}
        self._news: list[str] = []
        self._mine: str | None = None
        for peer in copies:
            left = found(place(self.folder, peer))
            if isinstance(left, Left):
                take(copy.deepcopy(copies[peer]), left, self._file(peer))
        self.lesson = Offline(student, _Company(copies), terms, task, example, facts)

    @property
    def company(self) -> "_Company":
        """The copies of the peers."""
        assert isinstance(self.lesson.teacher, _Company)
        return self.lesson.teacher

    def _file(self, peer: str) -> str:
        return f"what peer {peer} left in {place(self.folder, peer)}"

    def players(self) -> dict[str, list[nn.Parameter]]:
        return {"student": self.lesson.players()["student"]}

    def optimizers(self) -> Mapping[str, Mapping[str, Any]]:
        return {}

    def forward(self, batch: object, phase: str = "student") -> Losses:
        if phase != "student":
            raise RecipeError(f"the scheme has no phase {phase!r}; it has one, student")
        read = self.lesson.ready(batch)
        said = ask(self.lesson.student, read, self.lesson.reads, self.lesson.task, side="student")
        losses = self.lesson.cost(read, said, self.company(read, said) if self.company.teaching else None)
        lags = [self._steps - self._peers[peer].step for peer in self.company.teaching]
        losses.parts["peers"] = losses.count * len(lags)
        if lags:
            losses.parts["lag"] = losses.count * (sum(lags) / len(lags))
        return losses

    def shipped(self) -> dict[str, nn.Module]:
        return self.lesson.shipped()

    def after_step(self) -> None:
        self.lesson.after_step()
        self._steps += 1
        if self._steps % self.every == 0:
            self._leave(finished=False)
            if self._steps >= self.burn_in:
                self._listen()

    def leave(self, folder: Path) -> None:
        """Leave the finished student to the peers."""
        self._leave(finished=True)

    def news(self) -> Sequence[str]:
        told, self._news = self._news, []
        return told

    def _leave(self, *, finished: bool) -> None:
        path = place(self.folder, self.name)
        before = found(path)
        if isinstance(before, Left) and self._mine is None and self._steps == self.every:
            self._news.append(f"{path} holds what an earlier training left at its step {before.step}: it is overwritten; what it left of peers would teach")
        if isinstance(before, Left) and self._mine is not None and before.writer != self._mine:
            raise MismatchError(f"another process, {before.writer}, leaves weights as {self.name} in {self.folder} too: give each a name of its own")
        leave(path, self.lesson.student, self._steps, finished=finished)
        self._mine = writer()

    def _listen(self) -> None:
        """Take what each peer has left since the last time."""
        until = time.monotonic() + self.wait
        for peer, state in self._peers.items():
            left = found(place(self.folder, peer))
            while not state.late and self._behind(left) and time.monotonic() < until:
                time.sleep(_POLL)
                left = found(place(self.folder, peer))
            state.late = self._behind(left)
            if isinstance(left, str) and not state.missed:
                self._news.append(f"{self._file(peer)} {left}: its last copy stands, if there is one")
            if isinstance(left, Left) and (left.step != state.step or left.finished != state.finished):
                self._take(peer, state, left)
            elif not state.finished:
                self._miss(peer, state)
        self.company.teach([peer for peer, state in self._peers.items() if state.teaches])

    def _behind(self, left: Left | str | None) -> bool:
        return not isinstance(left, Left) or (not left.finished and left.step < self._steps - self.every)

    def _take(self, peer: str, state: "_Peer", left: Left) -> None:
        take(self.company.copies[peer], left, self._file(peer))
        if not state.teaches:
            again = "again " if state.step >= 0 else ""
            self._news.append(f"peer {peer} is heard {again}at step {self._steps}: it {'has finished' if left.finished else f'is at step {left.step}'}")
        state.step, state.missed, state.finished, state.teaches = left.step, 0, left.finished, True

    def _miss(self, peer: str, state: "_Peer") -> None:
        state.missed += 1
        if state.step < 0 and state.missed == 1:
            self._news.append(f"peer {peer} has left nothing in {self.folder} by step {self._steps}: training goes on without it")
        if state.teaches and state.missed >= self.patience:
            state.teaches = False
            self._news.append(
                f"peer {peer} has left nothing new since its step {state.step}, {state.missed} exchanges ago: it is taken for dead, and teaches no more"
            )

    def get_extra_state(self) -> Tensor:
        return torch.tensor([[self._steps, 0, 0, 0, 0], *([*map(int, vars(state).values())] for state in self._peers.values())])

    def set_extra_state(self, state: Tensor) -> None:
        (self._steps, *_), *rows = state.tolist()
        for peer, (step, missed, finished, teaches, late) in zip(self._peers, rows, strict=True):
            self._peers[peer] = _Peer(step, missed, bool(finished), bool(teaches), bool(late))
        self.company.teach([peer for peer, one in self._peers.items() if one.teaches])


class _Peer:
    """What is known of a peer: its step when it was copied, exchanges without news of it, whether it trains no more, teaches, and was waited for in vain."""

    def __init__(self, step: int = -1, missed: int = 0, finished: bool = False, teaches: bool = False, late: bool = False) -> None:
        self.step, self.missed, self.finished, self.teaches, self.late = step, missed, finished, teaches, late


class _Company(Teacher):
    """Copies of the peers, which stand still between two exchanges: those that teach, by the mean of their probabilities."""

    def __init__(self, copies: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.copies = nn.ModuleDict({peer: one.requires_grad_(False) for peer, one in copies.items()})
        self._told: tuple[Reads, Task] | None = None
        self.teaching: Sequence[str] = ()
        self._voice: tuple[Teacher, ...] = ()

    def prepare(self, reads: Reads, task: Task) -> None:
        self._told = reads, task
        self._voice = (self._of(list(self.copies)),)

    def teach(self, peers: Sequence[str]) -> None:
        """Let these speak from now on."""
        if list(peers) != list(self.teaching):
            self.teaching = list(peers)
            self._voice = (self._of(list(peers) or list(self.copies)),)

    def _of(self, peers: Sequence[str]) -> Teacher:
        members = [build("teachers", "frozen", {}, self.copies[peer]) for peer in peers]
        voice: Teacher = members[0] if len(members) == 1 else build("teachers", "ensemble", {}, members)
        if self._told is not None:
            voice.prepare(*self._told)
        return voice

    @torch.no_grad()
    def forward(self, batch: Batch, student: Knowledge | None = None) -> Knowledge:
        return self._voice[0](batch, student)

    def after_step(self, student: nn.Module) -> None:
        """Copies move at an exchange alone."""


def _check(name: str, peers: list[str], every: int, burn_in: int, wait: float, patience: int) -> None:
    for one in (name, *peers):
        if not re.fullmatch(r"[A-Za-z0-9_-]+", one):
            raise RecipeError(f"a peer cannot be called {one!r}: letters, digits, - and _ only, since it names a file")
    if not peers or name in peers or len(set(peers)) < len(peers):
        raise RecipeError(f"peers of {name} are {', '.join(peers) or 'nobody'}: name each of the others once, and not this one")
    if every < 1 or patience < 1 or burn_in < 0 or not 0 <= wait < float("inf"):
        raise RecipeError(f"every {every} and patience {patience} must be 1 or more, burn_in {burn_in} and wait {wait:g} zero or more")
