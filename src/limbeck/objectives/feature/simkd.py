"""The reused classifier: the student's last map is projected to the teacher's, and the teacher's own classifier ships on top of it.

Chen et al., "Knowledge Distillation with the Reused Teacher Classifier", CVPR 2022, arXiv:2203.14001, eq. 4 and fig. 2.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.knowledge import Knowledge, Needs, Reads
from limbeck.core.tap import check_paths
from limbeck.core.task import Batch, Facts
from limbeck.objectives._held import Held
from limbeck.objectives._layered import Layered, Layers
from limbeck.objectives._precision import at_least_float32, place
from limbeck.objectives._projectors import Projector
from limbeck.objectives._shapes import check_alike
from limbeck.objectives._teacher import layers_of

from ._blocks import Norm, batch_mean, bottleneck
from ._maps import check_maps

__all__ = ["SimKD", "simkd_loss"]


def simkd_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean squared difference of two maps over their elements, for each example.

    Maps `[N, D, H, W]` of one shape give `[N]`, in float32 at least; no gradient goes into the teacher.

    Raises:
        MismatchError: maps of unequal shapes.

    >>> import torch
    >>> simkd_loss(torch.zeros(1, 2, 2, 2), torch.full((1, 2, 2, 2), 3.0))
    tensor([9.])
    """
    check_alike(student, teacher)
    return (at_least_float32(student) - teacher.detach()).square().flatten(1).mean(1)


class _Projection(nn.Module):
    """A student's map resized to the teacher's where they differ, then through a bottleneck that ends in batch norm and ReLU."""

    def __init__(self, student: Tensor, teacher: Tensor, factor: int) -> None:
        super().__init__()
        where, channels = place(student), teacher.shape[1]
        self.resize = nn.Identity() if student.shape[2:] == teacher.shape[2:] else Projector(teacher.shape[2:], None)
        self.layers = bottleneck(student.shape[1], max(channels // factor, 1), channels, **where)
        self.norm = Norm(channels, **where)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, D, H, W]` of the student to the teacher's shape."""
        if x.ndim != 4:
            raise MismatchError(
                f"SimKD's projection takes the student's map [N, D, H, W] and got {list(x.shape)}: the first of `replaces` must be the module that reads the "
                "map; a student that pools by a function has none, so give it a module that does"
            )
        return self.norm(self.layers(self.resize(x.to(self.norm.weight.dtype)))).relu()


class SimKD(Layered):
    """Match the teacher's last map by a projected one of the student, ||P(s) - t||^2 / DHW, and ship the student with P and the teacher's classifier.

    Chen et al. 2022, arXiv:2203.14001, eq. 4, alone and without a cross-entropy: the student's own classifier is not taught by it and does not ship. P is the
    paper's: 1x1, 3x3 and 1x1 convolutions over D/factor channels, batch norm and ReLU after each (r = 2), so that the teacher's map must be one after a
    ReLU. The norms make it a loss of the whole batch. A student's map of another size is resized to the teacher's before P, where the authors shrink the
    teacher's if the student's is the smaller. What ships (`graft`) shares every weight with the student, P and the teacher.

    Args:
        layers: the student's last map -> the teacher's, such as {layer3: layer3}; auto takes the end of the last stage.
        replaces: the student's modules that follow its map, in order; P and the teacher's stand in the place of the first, nothing in that of the others.
        head: the teacher's modules that follow its map, in order, to the answer. Left at auto, all three are found by what ran after the map.
        factor: how many times fewer channels P has inside than the teacher's map.

    Raises:
        RecipeError: some of layers, replaces and head named and some not; several pairs of layers; a factor below one.
        MismatchError: no teacher or one whose layers cannot be called, features that are no maps, a head that does not lead from the map to an answer.

    Example:
        {kind: feature.simkd, layers: {layer3: layer3}, replaces: [pool, head], head: [pool, head], weight: 1.0}
    """

    wish = "last"
    batchwise = True
    perfect = "no"

    def __init__(
        self, *, layers: Layers = "auto", replaces: Literal["auto"] | list[str] = "auto", head: Literal["auto"] | list[str] = "auto", factor: int = 2
    ) -> None:
        super().__init__(layers)
        if len({layers == "auto", replaces == "auto", head == "auto"}) > 1 or not replaces or not head:
            raise RecipeError(
                "layers, replaces and head of SimKD go together: name all three, such as {layer3: layer3}, [pool, head] and [pool, head], or none"
            )
        if len(self._pairs) > 1:
            raise RecipeError(f"SimKD matches the one map that the teacher's classifier reads, not {len(self._pairs)}: name one pair of layers")
        if factor < 1:
            raise RecipeError(f"factor is {factor}; it must be one or more")
        self.factor = factor
        self._replaces: list[str] = [] if replaces == "auto" else list(replaces)
        self._head: list[str] = [] if head == "auto" else list(head)
        self.projection: nn.Module = nn.Identity()
        self._held: Held[tuple[nn.Module, ...]] | None = None
        self._flatten: list[bool] = []

    def chosen(self, student: Knowledge, teacher: Knowledge) -> None:
        ((ours, theirs),) = self.pairs
        self._replaces, self._head = _after(ours, student.shapes, "student"), _after(theirs, teacher.shapes, "teacher")
        self.said = (*self.said, f"SimKD ships the teacher's {', '.join(self._head)} in the place of the student's {', '.join(self._replaces)}")

    def reading(self, student: Reads, teacher: Reads) -> Needs:
        return Needs(replace(student, modules=frozenset(self._replaces)), replace(teacher, outputs=frozenset({"main"}), modules=frozenset(self._head)))

    def fit(self, features: Sequence[tuple[Tensor, Tensor]]) -> None:
        ((ours, theirs),) = features
        check_maps(ours, theirs, self.pairs[0])
        self.projection = _Projection(ours, theirs, self.factor)

    def bound(self, student: Knowledge, teacher: Knowledge, facts: Facts | None) -> None:
        self._held = layers_of(self, teacher, self._head)
        ((_, theirs),) = self.matched(student, teacher)
        through, answer = f"the teacher's {', '.join(self._head)}", teacher.main.logits.detach()
        try:
            found, self._flatten = _through(self._held.value, theirs)
        except RuntimeError as error:
            raise MismatchError(
                f"{through} cannot be called one after the other on its {self.pairs[0][1]!r}, {list(theirs.shape)} ({str(error).splitlines()[0]}): "
                "`head` must name every module between the map and the answer, in order"
            ) from None
        if found.shape != answer.shape:
            raise MismatchError(f"{through} give {list(found.shape)} and the teacher answers {list(answer.shape)}: `head` must lead to the answer")
        if not torch.allclose(found.float(), answer.float(), rtol=1e-2, atol=1e-2 * answer.abs().max().item()):
            warned = f"SimKD: {through} do not give from {self.pairs[0][1]!r} what the teacher answers: something between them is no module, and will not ship"
            self.said = (*(line for line in self.said if line != warned), warned)

    def forward(self, student: Knowledge, teacher: Knowledge | None, batch: Batch) -> Tensor:
        ((ours, theirs),) = self.matched(student, teacher)
        return batch_mean(simkd_loss(self.projection(ours), theirs))

    def graft(self, student: nn.Module) -> nn.Module:
        """Return the student with the projection and the teacher's classifier in it: a shell around the same weights, cheap to make anew."""
        if self._held is None:
            raise MismatchError("SimKD was not bound, so that there is nothing to graft: let a scheme bind it, or call bind first")
        check_paths(student, self._replaces, "student")
        reused = (part for flat, module in zip(self._flatten, self._held.value, strict=True) for part in ((nn.Flatten(), module) if flat else (module,)))
        first, *others = self._replaces
        grafted = _replaced(student, first, nn.Sequential(self.projection, *reused))
        for path in others:
            grafted = _replaced(grafted, path, nn.Identity())
        return grafted


def _after(path: str, shapes: Mapping[str, tuple[int, ...]], side: str) -> list[str]:
    """The outermost modules that ran after the one at `path` and do not hold it, in order."""
    ran = list(shapes)
    later = [one for one in ran[ran.index(path) + 1 :] if not path.startswith(f"{one}.")]
    found = [one for one in later if not any(one.startswith(f"{other}.") for other in later)]
    if not found:
        raise MismatchError(f"SimKD finds no module of the {side} that runs after {path!r}: name layers, replaces and head")
    return found


@torch.no_grad()
def _through(modules: Sequence[nn.Module], x: Tensor) -> tuple[Tensor, list[bool]]:
    """What modules make of a map, one after the other, and before which of them it is flattened: a linear layer, as models do by a function."""
    flat = []
    x = x.to(next((weight.dtype for module in modules for weight in module.parameters()), x.dtype))  # autocast gives maps in half precision
    for module in modules:
        flat.append(isinstance(module, nn.Linear) and x.ndim == 4)
        x = module(x.flatten(1) if flat[-1] else x)
    return x, flat


def _replaced(module: nn.Module, path: str, by: nn.Module) -> nn.Module:
    """A copy of a module with another at `path`; what is not on the way there is the original's own."""
    name, _, rest = path.partition(".")
    shell = copy.copy(module)
    shell._modules = {**module._modules, name: _replaced(module.get_submodule(name), rest, by) if rest else by}
    return shell
