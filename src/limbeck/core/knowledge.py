"""What one model says about one batch, and which of it an objective reads.

Shapes: N predictions (examples, tokens or nodes), C classes, k of them kept.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Literal

from torch import Size, Tensor, nn
from torch.nn.functional import linear

from .errors import MismatchError

__all__ = ["Dense", "Hidden", "Knowledge", "Link", "Needs", "Reads", "Response", "TopK"]

Link = Literal["softmax", "bernoulli", "identity"]


@dataclass(frozen=True)
class Dense:
    """A response as whole logits.

    `logits [..., C]`; `link` says what turns them into a prediction: `softmax` (one class of C), `bernoulli` (C yes-or-no answers),
    `identity` (C real numbers).
    """

    logits: Tensor
    link: Link = "softmax"

    @property
    def classes(self) -> int:
        return self.logits.shape[-1]

    @property
    def predictions(self) -> Size:
        return self.logits.shape[:-1]


@dataclass(frozen=True)
class TopK:
    """A response as its k likeliest classes of C, and what is left for all others together: softmax at one temperature, and meaningless at another.

    `log_probs [..., k]`: log softmax(logits / temperature) of the classes `indices [..., k]`, int64, no two alike; `log_tail [...]`: the logarithm of the
    other classes' probabilities, summed. Together they sum to one.
    """

    log_probs: Tensor
    indices: Tensor
    log_tail: Tensor
    temperature: float
    classes: int
    link: Link = "softmax"

    @property
    def predictions(self) -> Size:
        return self.log_tail.shape

    def __str__(self) -> str:
        return f"the {self.indices.shape[-1]} likeliest of {self.classes} classes at temperature {self.temperature:g}"


@dataclass(frozen=True)
class Hidden:
    """A response as the states `[..., D]` before a linear head, which nobody need multiply out: logits are cap(scale (states weight^T + bias)) `[..., C]`.

    `weight [C, D]`, `bias [C]`; cap(y) = c tanh(y / c) for a `softcap` c.
    """

    states: Tensor
    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None
    link: Link = "softmax"

    @property
    def classes(self) -> int:
        return len(self.weight)

    @property
    def predictions(self) -> Size:
        return self.states.shape[:-1]

    @property
    def logits(self) -> Tensor:
        """All logits, multiplied out."""
        scores = linear(self.states, self.weight, self.bias) * self.scale
        return scores if self.softcap is None else (scores / self.softcap).tanh() * self.softcap


Response = Dense | Hidden | TopK


@dataclass(frozen=True)
class Knowledge:
    """What one model says about one batch.

    `outputs`: name -> response, `main` always among them; `features`: what was read of its layers, by `Tap`'s names, `[N, ...]` each;
    `modules`: layers themselves, for an objective that builds on them; `input_gradient`: of the task's own loss by the input, in the input's shape;
    `shapes`: every layer's path and the shape that it gives, in the order in which they ran; `mask [N]`: which predictions count, all where it is None.
    What was not asked for is empty.
    """

    outputs: Mapping[str, Response]
    features: Mapping[str, Tensor] = field(default_factory=dict)
    mask: Tensor | None = None
    modules: Mapping[str, nn.Module] = field(default_factory=dict)
    input_gradient: Tensor | None = None
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def main(self) -> Dense:
        """The answer, which must be there as whole logits."""
        return self.whole("main")

    @property
    def answer(self) -> Response:
        """The answer, in whatever form it is there."""
        return self._output("main")

    def whole(self, name: str) -> Dense:
        """Return an output as whole logits, or say in what form it is there."""
        found = self._output(name)
        if isinstance(found, TopK):
            raise MismatchError(
                f"whole logits are needed, and the teacher's answer is {found}: match that by response.kd or response.soft_cross_entropy alone, or record "
                "whole logits (keep: {kind: dense})"
            )
        return Dense(found.logits, found.link) if isinstance(found, Hidden) else found

    def _output(self, name: str) -> Response:
        if name not in self.outputs:
            raise MismatchError(f"this knowledge has no output {name!r}; it has: {', '.join(self.outputs) or 'none'}")
        return self.outputs[name]

    def feature(self, path: str) -> Tensor:
        """Return the activation read at `path`, or say which were read."""
        if path not in self.features:
            raise MismatchError(f"no feature was read at {path!r}; read were: {', '.join(self.features) or 'none'}")
        return self.features[path]


@dataclass(frozen=True)
class Reads:
    """What is read of one model: names of its outputs, features by `Tap`'s names, layers themselves, its input's gradient, every layer's shape."""

    outputs: frozenset[str] = frozenset({"main"})
    features: frozenset[str] = frozenset()
    modules: frozenset[str] = frozenset()
    input_gradient: bool = False
    shapes: bool = False

    def __or__(self, other: "Reads") -> "Reads":
        return Reads(*(getattr(self, one.name) | getattr(other, one.name) for one in fields(self)))


@dataclass(frozen=True)
class Needs:
    """What an objective reads of the student, of the teacher, and whether it reads the batch's labels and ids, or other `fields` of it.

    `teacher` is None for an objective that asks no teacher.
    """

    student: Reads = Reads()
    teacher: Reads | None = Reads()
    labels: bool = False
    ids: bool = False
    fields: frozenset[str] = frozenset()
