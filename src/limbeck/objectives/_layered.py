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

    A final class passes `layers` on (and `reads` False where its options leave it no layer to read), gives `fit` what it builds from two records, and reads
    both sides in `forward` by `matched`. What it does of its own in the steps that are written here it says in hooks: `paired`, `chosen`, `reading`, `bound`.
    """

    wish: ClassVar[Wish] = "stages"
    """Which layers `auto` pairs."""

    def __init__(self, layers: Layers, *, reads: bool = True) -> None:
        super().__init__()
        if layers != "auto" and not (isinstance(layers, dict) and layers):
            told = f"cannot match the layers {layers!r}" if layers else "has no layers to match"
            raise RecipeError(f"{type(self).__name__} {told}: write layers: {{layer2: layer2}} (student: teacher), or layers: auto")
        self.layers: Layers = layers
        self.undecided = reads and layers == "auto"
        self._pairs = [] if layers == "auto" else [(str(ours), str(theirs)) for ours, theirs in layers.items()]
        self._shapes: list[tuple[tuple[int, ...], tuple[int, ...]]] | None = None

    def choose(self, student: Knowledge, teacher: Knowledge | None) -> None:
        if not self.undecided:
            return
        said, named = given(self, teacher), self._pairs
        self._pairs = self.paired(student, said)
        self.undecided = False
        self.said = tuple(
            f"{type(self).__name__} pairs the student's {_told(one, student.shapes)} with the teacher's {_told(other, said.shapes)}"
            for one, other in self._pairs
            if (one, other) not in named
        )
        self.chosen(student, said)

    def paired(self, student: Knowledge, teacher: Knowledge) -> list[tuple[str, str]]:
        """Hook: return the pairs of layers where these are left open, by `wish`."""
        return pair(self.wish, student.shapes, teacher.shapes, student.main.classes, type(self).__name__)

    def chosen(self, student: Knowledge, teacher: Knowledge) -> None:
        """Hook: decide what follows from the layers that `choose` has just paired, and add to `said`."""

    @property
    def pairs(self) -> Sequence[tuple[str, str]]:
        """The pairs of layers, student's and teacher's, once they are chosen."""
        assert not self.undecided, "layers are chosen before they are read"
        return self._pairs

    @property
    def needs(self) -> Needs:
        none = frozenset[str]()
        return self.reading(Reads(none, frozenset(ours for ours, _ in self.pairs)), Reads(none, frozenset(theirs for _, theirs in self.pairs)))

    def reading(self, student: Reads, teacher: Reads) -> Needs:
        """Hook: return what is read, the layers of both sides and whatever else a final class adds to them."""
        return Needs(student, teacher)

    def bind(self, student: Knowledge, teacher: Knowledge | None, task: Task, facts: Facts | None) -> None:
        said = given(self, teacher)
        self._check_rows(student, said)
        found = list(self.matched(student, said))
        shapes = [(tuple(ours.shape[1:]), tuple(theirs.shape[1:])) for ours, theirs in found]
        if self._shapes is None:
            self.fit(found)
            self._shapes = shapes
        elif shapes != self._shapes:
            bound, now = (" and ".join(f"{list(ours)} (student), {list(theirs)} (teacher)" for ours, theirs in them) for them in (self._shapes, shapes))
            raise MismatchError(f"{type(self).__name__} was bound to features {bound}, not to {now}: make a new one")
        self.bound(student, said, facts)

    def bound(self, student: Knowledge, teacher: Knowledge, facts: Facts | None) -> None:
        """Hook: check, and build, what depends on more than the features; called after `fit`, and at every binding."""

    def _check_rows(self, student: Knowledge, teacher: Knowledge) -> None:
        """Refuse layers whose first axis is not that of the predictions, where these are known."""
        for side, said, paths in (("student", student, [one for one, _ in self.pairs]), ("teacher", teacher, [other for _, other in self.pairs])):
            for path in paths if "main" in said.outputs else ():
                shape, examples = list(said.feature(path).shape), said.answer.predictions[0]
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
