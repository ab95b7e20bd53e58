"""Networks that learn together, each from the others' present answers."""

import copy
import functools
import operator
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import nn

from limbeck.core.ask import ask
from limbeck.core.errors import MismatchError, RecipeError, did_you_mean
from limbeck.core.lookup import build
from limbeck.core.objective import Objective, Term
from limbeck.core.scheme import Losses, Scheme
from limbeck.core.task import Facts, Task
from limbeck.core.teacher import Teacher

from ._players import begun_anew, check_lessons, like, made
from .offline import Offline


class Mutual(Scheme):
    """Networks that learn together from the first step, each from the labels and from the others' present answers; none is a teacher, and each ships.

    `L_k = L_C(k) + 1 / (K - 1) sum_{l != k} D_KL(p_l || p_k)`, for K networks (eq. 7): `objectives: [{kind: response.kd, temperature: 1}, {kind: supervised}]`,
    or another objective that asks a teacher in the place of the divergence. In each step every network steps once, in turn, each with an optimizer of its own
    and each asked anew after those before it have stepped (algorithm 1). What the others say carries no gradient.
    Zhang et al., "Deep Mutual Learning", CVPR 2018, arXiv:1706.00384.

    The student is the player `student`, the others are `peer1`, `peer2`, ...; `optimizers: {peer1: ...}` gives one of them another optimizer, and its model is
    the artifact `stage.peer1`. In a loop of one's own: `for phase in scheme.phases: scheme(batch, phase).loss.backward()`, and that player's optimizer steps.

    Args:
        peers: how many networks of the student's own kind learn beside it, begun with the student's weights in random order; or a list of models as a recipe
            writes them, such as [{kind: cnn, width: 8}], or of modules.
        teach: each, the mean of what an objective costs against each of the others (eq. 7); mean, what it costs against the mean of their probabilities
            (the paper's DML_e). With two networks, or with response.kd at temperature 1, the gradient is the same.

    Raises:
        RecipeError: no peer, a model that cannot be built, or no objective that asks a teacher.
        MismatchError: a finished teacher beside the peers, or players and objectives that do not fit.
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
        peers: int | list[dict[str, Any] | nn.Module] = 1,
        teach: Literal["each", "mean"] = "each",
    ) -> None:
        super().__init__()
        terms = [one if isinstance(one, Term) else Term(one) for one in objectives]
        check_lessons("mutual learning", teacher, terms)
        self._specs = {} if isinstance(peers, int) else {f"peer{at}": one for at, one in enumerate(peers, 1) if isinstance(one, Mapping)}
        nets = _players(student, peers, facts)
        self.phases = tuple(nets)
        lessons: dict[str, list[Offline]] = {}
        fresh = copy.deepcopy(terms)
        for name, net in nets.items():
            others: list[Teacher] = [build("teachers", "peer", {}, other) for player, other in nets.items() if player != name]
            teachers = others if teach == "each" or len(others) == 1 else [build("teachers", "ensemble", {}, others)]
            for one in teachers:
                own = copy.deepcopy(fresh) if lessons else terms  # the stage's own come first, as it names them
                lessons.setdefault(name, []).append(Offline(net, one, own, task, None, facts))
        self._lessons = lessons
        self.lessons = nn.ModuleDict({name: nn.ModuleList(several) for name, several in lessons.items()})
        if example is not None:
            for lesson in self._every():
                lesson.bind(lesson.task.batch(example))

    def _every(self) -> list[Offline]:
        return [lesson for several in self._lessons.values() for lesson in several]

    def players(self) -> dict[str, list[nn.Parameter]]:
        found: dict[str, list[nn.Parameter]] = {}
        for name, several in self._lessons.items():
            found[name] = list({id(one): one for lesson in several for one in lesson.players()["student"]}.values())
        return found

    def optimizers(self) -> Mapping[str, Mapping[str, Any]]:
        return {}

    def specs(self) -> Mapping[str, Mapping[str, Any]]:
        return self._specs

    def forward(self, batch: object, phase: str = "student") -> Losses:
        if phase not in self._lessons:
            raise RecipeError(f"the scheme has no phase {phase!r}{did_you_mean(phase, self.phases)}")
        several = self._lessons[phase]
        found = several[0](batch) if len(several) == 1 else self._mean(several, batch, phase)
        whole = found.sums["student"]
        parts = found.parts if phase == "student" else {f"{phase}_{name}": part for name, part in (found.parts | {"loss": whole.detach()}).items()}
        return Losses({phase: whole}, found.count, parts)

    def _mean(self, lessons: list[Offline], batch: object, phase: str) -> Losses:
        """The mean of a player's lessons, which it is asked for once."""
        read, *_ = (lesson.ready(batch) for lesson in lessons)
        reads = functools.reduce(operator.or_, (lesson.reads for lesson in lessons))
        said = ask(lessons[0].student, read, reads, lessons[0].task, side=phase)
        costs: list[Losses] = []
        for lesson in lessons:
            assert lesson.teacher is not None
            costs.append(lesson.cost(read, said, lesson.teacher(read)))
        whole = torch.stack([cost.sums["student"] for cost in costs]).mean()
        parts = {name: torch.stack([cost.parts[name] for cost in costs]).mean() for name in costs[0].parts}
        return Losses({"student": whole}, costs[0].count, parts)

    def shipped(self) -> dict[str, nn.Module]:
        return {name: several[0].student for name, several in self._lessons.items()}

    def after_step(self) -> None:
        for lesson in self._every():
            lesson.after_step()


def _players(student: nn.Module, peers: int | list[dict[str, Any] | nn.Module], facts: Facts | None) -> dict[str, nn.Module]:
    """Every network that learns, the student first."""
    if peers == [] or (isinstance(peers, int) and peers < 1):
        raise RecipeError(f"peers is {peers}: nobody to learn with; give how many, or their models, such as [{{kind: cnn, width: 8}}]")
    told: list[Any] = [None] * peers if isinstance(peers, int) else list(peers)
    nets = {"student": student}
    for at, one in enumerate(told, 1):
        other = begun_anew(student) if one is None else made(one, facts, f"peers[{at - 1}]") if isinstance(one, Mapping) else one
        nets[f"peer{at}"] = like(student, other)
    owner: dict[int, str] = {}
    for name, net in nets.items():
        for parameter in net.parameters():
            if owner.setdefault(id(parameter), name) != name:
                raise MismatchError(
                    f"{name} and {owner[id(parameter)]} share a parameter, so that each would step the other: give it copy.deepcopy of the model"
                )
    return nets
