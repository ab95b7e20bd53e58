"""The training inputs without those of some classes, and the bias that makes up for it.

Hinton et al., "Distilling the Knowledge in a Neural Network", 2015, arXiv:1503.02531, section 3.

Shapes: N examples, C classes, M examples of the training split.
"""

from collections.abc import Sequence
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from limbeck.core.errors import DataError, MismatchError, RecipeError, did_you_mean
from limbeck.core.task import Batch, Facts, How, Loader, Split, Task, starts
from limbeck.core.transfer import Transfer

from ._loaders import Cut, needed, training_labels

__all__ = ["LeftOut", "corrected", "matching_bias", "raised"]

_HALVINGS, _ROUNDS, _NEAR = 80, 200, 1e-9


class LeftOut(Transfer):
    """The training inputs without those of some classes: what the student learns of these is what the teacher says of the others.

    Batches keep their size; what does not fill the epoch's last one is left out, as in the task's own loader. A class that the student never saw comes out too
    rarely: `corrected` raises its bias until it comes out as often as the teacher says.
    Hinton et al. 2015, arXiv:1503.02531, section 3.

    Args:
        classes: by number or by name.

    Raises:
        RecipeError: no class, one that there is not, or all of them.
        MismatchError: labels that are not one class for each example, or batches without ids.
        DataError: too few examples are left for a batch.
    """

    def __init__(self, *, classes: list[int | str]) -> None:
        if not classes:
            raise RecipeError("left_out leaves no class out: name one or more, classes: [3], or take {kind: real}")
        self.classes = classes

    def loader(self, task: Task, **how: Unpack[How]) -> Loader:
        absent = torch.tensor(_numbers(self.classes, task.facts()))
        ids, labels = training_labels(task, "left_out")
        kept = int((~torch.isin(labels, absent)).sum())
        size, rank, world = how["batch_size"], how.get("rank", 0), how.get("world", 1)

        def stays(batch: Batch) -> Tensor:
            needed(batch, "left_out", "label")
            return ~torch.isin(batch["label"], absent.to(batch["label"].device))

        alone: How = {**how, "rank": 0, "world": 1}
        if how.get("whole"):
            return Cut(task.loader("train", **alone), task, stays, size=size, count=len(starts(kept, how)), rank=rank, world=world, whole=True)
        read = _reading(len(ids), size * world)
        count = (kept - len(ids) % read) // (size * world)
        if count < 1:
            raise DataError(f"{kept} of {len(ids)} training examples are left without {self.classes}, too few for a batch of {size}: lower batch_size")
        return Cut(task.loader("train", **{**alone, "batch_size": read}), task, stays, size=size, count=count, rank=rank, world=world)


def _numbers(classes: Sequence[int | str], facts: Facts) -> list[int]:
    names = list(facts.class_names)
    for told in classes:
        if told not in names and not (isinstance(told, int) and 0 <= told < facts.classes):
            raise RecipeError(f"left_out: there is no class {told!r}{did_you_mean(str(told), names)}")
    found = sorted({names.index(told) if isinstance(told, str) else told for told in classes})
    if len(found) == facts.classes:
        raise RecipeError("left_out leaves every class out: nothing is left to teach on")
    return found


def _reading(examples: int, near: int) -> int:
    """How many examples to read at once, near to a given number, so that the fewest are lost at an epoch's end: it bounds how many batches there surely are."""
    sizes = range(max(1, near // 2), min(examples, 2 * near) + 1)
    return min(sizes, key=lambda size: (examples % size, abs(size - near)), default=examples)


def matching_bias(student_logits: Tensor, teacher_logits: Tensor, classes: Sequence[int]) -> Tensor:
    """Return what to add to the student's logits `[C]`, zero but for `classes`, so that each of them comes out as often as the teacher says.

    `mean_n softmax(z_n + b)_k = mean_n softmax(t_n)_k` for k in `classes`, logits z and t `[N, C]`: where the mean cross-entropy of the student with the
    teacher is least over b, which is convex in it. No label is read. Solved one class at a time by bisection, again and again until all agree.

    Raises:
        MismatchError: logits of unequal shapes, or classes that they have not.
        DataError: logits that are not finite.

    >>> z, t = torch.tensor([[0.0, -4.0], [0.0, -4.0]]), torch.tensor([[0.0, 0.0], [0.0, 0.0]])
    >>> matching_bias(z, t, [1])
    tensor([0., 4.])
    """
    if student_logits.shape != teacher_logits.shape or student_logits.dim() != 2 or not len(student_logits):
        raise MismatchError(f"the student's logits are {list(student_logits.shape)} and the teacher's {list(teacher_logits.shape)}: both must be [N, C]")
    width = student_logits.shape[1]
    if not classes or len(set(classes)) >= width or any(not 0 <= one < width for one in classes):
        raise MismatchError(f"the classes are {list(classes)} of {width}: give one or more, but not all")
    z, wanted = student_logits.double(), teacher_logits.double().softmax(1).mean(0).clamp(1e-12, 1 - 1e-12)
    if not (z.isfinite().all() and wanted.isfinite().all()):
        raise DataError("the logits of student or teacher are not finite: there is no bias to find")
    bias = torch.zeros(width, dtype=torch.float64, device=z.device)
    places = sorted(set(classes))
    for _ in range(_ROUNDS):
        for k in places:
            others = (z + bias).index_fill(1, torch.tensor(k, device=z.device), -torch.inf).logsumexp(1)
            bias[k] = _level(z[:, k] - others, wanted[k])
        if ((z + bias).softmax(1).mean(0) - wanted)[places].abs().max() < _NEAR:
            break
    return bias.to(student_logits.dtype)


def _level(lead: Tensor, wanted: Tensor) -> Tensor:
    """The b where `mean sigmoid(lead + b)` of `lead [N]` is `wanted`, by bisection."""
    low, high = wanted.logit() - lead.max(), wanted.logit() - lead.min()
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        above = (lead + middle).sigmoid().mean() > wanted
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    return (low + high) / 2


class _Raised(nn.Module):
    """A model with a constant added to its logits."""

    bias: Tensor

    def __init__(self, model: nn.Module, bias: Tensor) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("bias", bias)

    def forward(self, *inputs: Any) -> Tensor:
        return self.model(*inputs) + self.bias


def raised(model: nn.Module, bias: Tensor) -> nn.Module:
    """Return a model whose logits `[N, C]` are the given one's plus `bias [C]`; both share their weights."""
    return _Raised(model, bias)


@torch.no_grad()
def corrected(
    student: nn.Module, teacher: nn.Module, task: Task, classes: Sequence[int | str], *, split: Split = "validation", batch_size: int = 512
) -> tuple[nn.Module, Tensor]:
    """Return the student with the biases of the classes that it never saw raised, in eval mode, and what was added `[C]`.

    The split's inputs are shown to both models, its labels to nobody: `matching_bias`. A bias chosen on the test split, as in the paper, flatters the test.

    Raises:
        RecipeError: a class that there is not.
        DataError: the task has no such split.
        MismatchError: models that know other classes than one another.
    """
    if split not in task.splits():
        raise DataError(f"there is no {split} split to choose a bias on; there are: {', '.join(task.splits())}")
    numbers = _numbers(classes, task.facts())
    said: tuple[list[Tensor], list[Tensor]] = ([], [])
    student.eval()
    teacher.eval()
    for raw in task.loader(split, batch_size=batch_size).batches(0):
        batch = task.batch(raw)
        for model, logits in zip((student, teacher), said, strict=True):
            logits.append(task.forward(model, batch).main.logits)
    bias = matching_bias(torch.cat(said[0]), torch.cat(said[1]), numbers)
    return raised(student, bias).eval(), bias
