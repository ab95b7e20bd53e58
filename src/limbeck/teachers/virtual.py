"""A teacher without a model: a hand-made distribution around the label.

Yuan et al., "Revisiting Knowledge Distillation via Label Smoothing Regularization", CVPR 2020, arXiv:1909.11723.
"""

import math

import torch
from torch import Tensor, nn

from limbeck.core.errors import DataError, MismatchError, RecipeError
from limbeck.core.knowledge import Dense, Knowledge, Reads
from limbeck.core.task import Batch, Task
from limbeck.core.teacher import Teacher

__all__ = ["Virtual", "virtual_logits"]


def virtual_logits(labels: Tensor, classes: int, *, correct: float = 0.99) -> Tensor:
    """Return log p, p = `correct` for the label and (1 - correct) / (C - 1) for each other class: labels `[N]` give `[N, C]`, float32.

    Raises:
        MismatchError: one class alone, or a `correct` that does not make the label the likeliest class.
        DataError: a label out of range.

    >>> virtual_logits(torch.tensor([1]), 3, correct=0.5).exp()
    tensor([[0.2500, 0.5000, 0.2500]])
    """
    if classes < 2 or correct * classes <= 1:
        raise MismatchError(f"correct is {correct:g} for {classes} classes: it must be above 1/{classes}, so that the label is the likeliest class")
    made = torch.full((*labels.shape, classes), math.log((1 - correct) / (classes - 1)), device=labels.device)
    try:
        return made.scatter_(-1, labels.unsqueeze(-1), math.log(correct))
    except RuntimeError:
        raise DataError(f"a label is out of range: there are {classes} classes, 0..{classes - 1}") from None


class Virtual(Teacher):
    """A teacher that is right every time: probability `correct` for the label, the rest shared evenly by the other classes.

    `p(k) = a` where k is the label, `(1 - a) / (K - 1)` elsewhere. Yuan et al. 2020, arXiv:1909.11723, sec. 5 (Tf-KD_reg), softened by a high temperature in
    the objective: `{kind: response.kd, temperature: 20}`. The temperature softens p as a softmax does, `p^(1/T)` brought to a sum of one, on both sides, as the
    paper writes it; the authors' code takes p itself for the teacher's logits, which at T = 20 is all but uniform, and leaves the student at T = 1.

    Args:
        correct: a, the probability of the label, above that of the other classes and below 1; the paper takes 0.99.

    Raises:
        RecipeError: a probability outside (0, 1).
        MismatchError: batches without labels, or with some that have none; answers that are no choice of one class; an objective that reads layers.

    Example:
        {kind: virtual, correct: 0.99}
    """

    reads_student = True

    def __init__(self, *, correct: float = 0.99) -> None:
        super().__init__()
        if not 0 < correct < 1:
            raise RecipeError(f"correct is {correct:g}; it must be a probability above 0 and below 1, such as 0.99")
        self.correct = correct

    def prepare(self, reads: Reads, task: Task) -> None:
        """Raises MismatchError where anything but the answer is asked."""
        if reads.features or reads.modules or reads.shapes or reads.input_gradient or reads.outputs - {"main"}:
            raise MismatchError("a virtual teacher has an answer and no layers: teach by response objectives, such as response.kd")

    @torch.no_grad()
    def forward(self, batch: Batch, student: Knowledge | None = None) -> Knowledge:
        assert student is not None, "a teacher that reads the student is asked after it"
        said = student.main
        if "label" not in batch or "labelled" in batch:
            raise MismatchError("a virtual teacher answers by the label, and not every example of the batch has one: use labelled data, or another teacher")
        if said.link != "softmax":
            raise MismatchError(f"a virtual teacher chooses one class of several, and the student's answers are {said.link}: use another teacher")
        return Knowledge({"main": Dense(virtual_logits(batch["label"], said.classes, correct=self.correct))}, mask=student.mask)

    def after_step(self, student: nn.Module) -> None:
        """A virtual teacher does not follow."""
