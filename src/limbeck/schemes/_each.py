"""One objective for each of several teachers, and which of them teach in a step."""

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn

from limbeck.core.draw import bits, key, uniform
from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.knowledge import Knowledge, Needs, Reads
from limbeck.core.objective import Contest, Objective

if TYPE_CHECKING:
    from limbeck.core.task import Batch, Facts, Task

__all__ = ["Each", "Roll", "members_of"]

Value = TypeVar("Value")


def members_of(said: Knowledge) -> int:
    """How many members a teacher has that says what each of them says, as the outputs 0, 1, ...; refuse one of a single voice."""
    count = sum(name.isdecimal() for name in said.outputs)
    if count < 2:
        raise MismatchError(
            f"several teachers are to teach, each by itself, and this one speaks with a single voice ({', '.join(said.outputs)}): "
            "take {kind: ensemble, of: [one, other]}"
        )
    return count


class Roll(nn.Module):
    """Which of the teachers teach in a step: each stays away with probability `drop`, by itself; at least one always teaches.

    A function of a key, drawn once from torch's generator, and of the step: the same in every process and micro-batch. Both are in its state.
    """

    def __init__(self, members: int, drop: float) -> None:
        super().__init__()
        self.members, self.drop = members, drop
        self._key, self._step = int(torch.randint(1 << 62, ())), 0

    def get_extra_state(self) -> Tensor:
        return torch.tensor([self._key, self._step])

    def set_extra_state(self, state: Tensor) -> None:
        self._key, self._step = (int(one) for one in state)

    def present(self) -> list[int]:
        """Return the numbers of those that teach now: all of them in eval mode."""
        if not self.training or self.drop == 0:
            return [*range(self.members)]
        drawn = uniform(bits(torch.arange(self.members), key(self._key, self._step)), 1)
        return [member for member, draw in enumerate(drawn.tolist()) if draw >= self.drop] or [int(drawn.argmax())]

    def advance(self) -> None:
        """Go on to the next step."""
        self._step += 1


class Each(Objective):
    """The mean over M teachers of one objective, a copy of it for each: (1/M) sum_m b_m L_m, b_m one where teacher m teaches in this step and zero where not.

    What the teacher says is told apart as `Ensemble` says it: outputs by a member's number, features and modules by the number and a dot before the path.

    Raises:
        RecipeError: an objective that is a contest, grafts, or pairs its layers by itself.
    """

    perfect = "no"

    def __init__(self, objective: Objective, name: str, roll: Roll) -> None:
        super().__init__()
        if isinstance(objective, Contest) or type(objective).graft is not Objective.graft:
            what = "plays against one opponent" if isinstance(objective, Contest) else "puts a part of one teacher into the student"
            raise RecipeError(f"the objective {name} {what}, and there are {roll.members} teachers: leave it out, or take {{kind: offline}}")
        if objective.undecided:
            raise RecipeError(f"the objective {name} is to pair its layers with {roll.members} teachers': name them, layers: {{layer3: layer3}}")
        self._copies = [objective, *(copy.deepcopy(objective) for _ in range(roll.members - 1))]
        self.copies = nn.ModuleList(self._copies)
        self.batchwise = objective.batchwise
        self._roll = (roll,)  # the scheme's, and in its state

    @property
    def needs(self) -> Needs:
        one = self._copies[0].needs
        assert one.teacher is not None, "an objective that asks no teacher is one for all"
        teacher = Reads(frozenset())
        for member in range(len(self._copies)):
            features, modules = (frozenset(f"{member}.{path}" for path in paths) for paths in (one.teacher.features, one.teacher.modules))
            teacher |= Reads(frozenset({str(member)}), features, modules, one.teacher.input_gradient)
        return Needs(one.student, teacher, one.labels, one.ids, one.fields)

    def bind(self, student: Knowledge, teacher: Knowledge | None, task: "Task", facts: "Facts | None") -> None:
        for member, objective in enumerate(self._copies):
            objective.bind(student, _one_of(teacher, member), task, facts)
        self.said = tuple(dict.fromkeys(line for objective in self._copies for line in objective.said))

    def forward(self, student: Knowledge, teacher: Knowledge | None, batch: "Batch") -> Tensor:
        present = self._roll[0].present()
        return torch.stack([self._copies[member](student, _one_of(teacher, member), batch) for member in present]).sum(0) / len(self._copies)

    def after_step(self) -> None:
        for objective in self._copies:
            objective.after_step()


def _one_of(said: Knowledge | None, member: int) -> Knowledge:
    """What one member said, by the names that it has for it."""
    assert said is not None
    own = {"main": said.outputs[str(member)]}
    return Knowledge(own, _own(said.features, member), said.mask, _own(said.modules, member))


def _own(named: Mapping[str, Value], member: int) -> dict[str, Value]:
    start = f"{member}."
    return {path.removeprefix(start): value for path, value in named.items() if path.startswith(start)}
