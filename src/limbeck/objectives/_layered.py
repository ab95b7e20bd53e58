"""Objectives that match layers: which ones, by name or by themselves, and what both sides gave there."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, Literal

from torch import Tensor

from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.knowledge import Knowledge, Needs, Reads
from limbeck.core.objective import Objective
from limbeck.core.task import Facts, Task

from ._pairing import Wish, pair
from ._teacher import given

__all__ = ["Layered", "Layers"]

Layers = Literal["auto"] | dict[str, str]
"""`auto`, or student's layer -> teacher's layer, each as `Tap` reads them."""


class Layered(Objective):
    """An objective that matches layers of the student with layers of the teacher.

    A final class passes `layers` on, gives `fit` what it builds from two records, and reads both sides in `forward` by `matched`.
    """

    wish: ClassVar[Wish] = "stages"
    """Which layers `auto` pairs."""

    def __init__(self, layers: Layers) -> None:
        super().__init__()
        if layers != "auto" and not (isinstance(layers, dict) and layers):
            told = f"cannot match the layers {layers!r}" if layers else "has no layers to match"
            raise RecipeError(f"{type(self).__name__} {told}: write layers: {{layer2: layer2}} (student: teacher), or layers: auto")
        self.layers: Layers = layers
        self._pairs: list[tuple[str, str]] = [] if layers == "auto" else [(str(ours), str(theirs)) for ours, theirs in layers.items()]
        self._shapes: list[tuple[tuple[int, ...], tuple[int, ...]]] | None = None

    @property
    def undecided(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return not self._pairs

    def choose(self, student: Knowledge, teacher: Knowledge | None) -> None:
        if self._pairs:
            return
        ours, theirs = student.shapes, given(self, teacher).shapes
        self._pairs = pair(self.wish, ours, theirs, student.main.classes, type(self).__name__)
        self.said = tuple(
            f"{type(self).__name__} pairs the student's {_told(one, ours)} with the teacher's {_told(other, theirs)}" for one, other in self._pairs
        )

    @property
    def pairs(self) -> Sequence[tuple[str, str]]:
        """The pairs of layers, student's and teacher's, once they are chosen."""
        assert self._pairs, "layers are chosen before they are read"
        return self._pairs

    @property
    def needs(self) -> Needs:
        none = frozenset[str]()
        return Needs(student=Reads(none, frozenset(ours for ours, _ in self.pairs)), teacher=Reads(none, frozenset(theirs for _, theirs in self.pairs)))

    def bind(self, student: Knowledge, teacher: Knowledge | None, task: Task, facts: Facts | None) -> None:
        self._check_rows(student, given(self, teacher))
        found = list(self.matched(student, teacher))
        shapes = [(tuple(ours.shape[1:]), tuple(theirs.shape[1:])) for ours, theirs in found]
        if self._shapes is None:
            self.fit(found)
            self._shapes = shapes
        elif shapes != self._shapes:
            bound, now = (" and ".join(f"{list(ours)} (student), {list(theirs)} (teacher)" for ours, theirs in them) for them in (self._shapes, shapes))
            raise MismatchError(f"{type(self).__name__} was bound to features {bound}, not to {now}: make a new one")

    def _check_rows(self, student: Knowledge, teacher: Knowledge) -> None:
        """Refuse layers whose first axis is not that of the predictions, where these are known."""
        for side, said, paths in (("student", student, [one for one, _ in self.pairs]), ("teacher", teacher, [other for _, other in self.pairs])):
            for path in paths if "main" in said.outputs else ():
                shape, examples = list(said.feature(path).shape), len(said.main.logits)
                if not shape or shape[0] != examples:
                    raise MismatchError(
                        f"{type(self).__name__}: the {side}'s {path!r} gives {shape} for {examples} examples, which must come first: "
                        "name another layer, or build the model with batch_first=True"
                    )

    @abstractmethod
    def fit(self, features: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Check each pair of features, student's and teacher's, and build what is learnt; called once, in the order of `pairs`."""

    def matched(self, student: Knowledge, teacher: Knowledge | None) -> Iterator[tuple[Tensor, Tensor]]:
        """Give the features of each pair, student's and teacher's, the teacher's cut off from its graph, valid examples alone."""
        said = given(self, teacher)
        for ours, theirs in self.pairs:
            one, other = student.feature(ours), said.feature(theirs).detach()
            if len(one) != len(other):
                raise MismatchError(f"{type(self).__name__}: the student's {ours!r} has {len(one)} examples and the teacher's {theirs!r} {len(other)}")
            yield (one, other) if student.mask is None or not self.batchwise else (one[student.mask], other[student.mask])


def _told(path: str, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """A layer and the shape that it gives, without the batch."""
    return f"{path} {list(shapes[path][1:])}" if path in shapes else path
