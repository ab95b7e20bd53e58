"""What one model says about one batch, and which of it an objective reads.

Shapes: N predictions (examples, tokens or nodes), C classes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor, nn

from .errors import MismatchError

__all__ = ["Dense", "Knowledge", "Link", "Needs", "Reads", "Response"]

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


Response = Dense


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
    def main(self) -> Response:
        if "main" not in self.outputs:
            raise MismatchError(f"this knowledge has no output 'main'; it has: {', '.join(self.outputs) or 'none'}")
        return self.outputs["main"]

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
        return Reads(
            self.outputs | other.outputs,
            self.features | other.features,
            self.modules | other.modules,
            self.input_gradient or other.input_gradient,
            self.shapes or other.shapes,
        )


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
