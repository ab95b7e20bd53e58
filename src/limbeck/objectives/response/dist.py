"""Relations instead of values: correlate the two sides' probabilities across classes, and across the examples of the batch.

Huang et al., "Knowledge Distillation from A Stronger Teacher", NeurIPS 2022, arXiv:2205.10536, L_inter and L_intra.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from limbeck.core.knowledge import Knowledge
from limbeck.core.schedule import Number, check_number
from limbeck.core.task import Batch
from limbeck.objectives._teacher import given

from ._centred import centred
from ._logits import prepared, rows
from ._response import Responding

__all__ = ["DIST", "dist_loss"]


def dist_loss(student_logits: Tensor, teacher_logits: Tensor, *, beta: float = 1.0, gamma: float = 1.0, temperature: float = 1.0, eps: float = 0.0) -> Tensor:
    """Return T^2 (beta mean_n d(q_n., p_n.) + gamma mean_c d(q_.c, p_.c)), d(u, v) = 1 - Pearson's correlation of u and v.

    q, p `[N, C]`: softmax of student's and teacher's logits / T; logits `[N, C]` give a scalar. A correlation with a constant has no value: where one side is
    constant d is 1, where both are 0, without a gradient; so one example costs nothing across examples, and one class nothing at all. With `eps` the
    correlation is cov / (norms' product + eps).

    Raises:
        RecipeError: a temperature of zero or less, a weight or eps below zero.
        MismatchError: logits of unequal shapes.

    >>> import torch
    >>> dist_loss(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 1.0]]))  # two classes ranked the other way: correlation -1
    tensor(2.)
    """
    check_number("temperature", temperature, positive=True)
    for name, number in (("beta", beta), ("gamma", gamma), ("eps", eps)):
        check_number(name, number, positive=False)
    student_logits, teacher_logits = prepared(student_logits, teacher_logits)
    if not len(student_logits):
        return student_logits.sum()  # zero, with a graph
    q, p = F.softmax(student_logits / temperature, -1), F.softmax(teacher_logits / temperature, -1)
    return temperature**2 * (beta * _distance(q, p, eps) + gamma * _distance(q.mT, p.mT, eps))


def _distance(x: Tensor, y: Tensor, eps: float) -> Tensor:
    """The mean over rows `[R, K]` of 1 - correlation."""
    (one, one_size, one_varies), (other, other_size, other_varies) = centred(x), centred(y)
    distance = (one - other).square().sum(-1, keepdim=True) / 2  # of unit vectors: 1 - their product, exact near zero
    if eps:
        product = one_size * other_size
        distance = 1 - (1 - distance) * product / (product + eps)
    distance = torch.where(one_varies & other_varies, distance, (one_varies ^ other_varies).to(distance.dtype))
    return distance.mean()


class DIST(Responding):
    """Match relations: T^2 (beta (1 - correlation over classes) + gamma (1 - correlation over the batch)), means over examples and classes.

    Huang et al. 2022, arXiv:2205.10536. The paper's beta = gamma = 2 is the weight 2 here; T = 1 on ImageNet and 4 on CIFAR-100, with T^2 as in torchdistill
    1.1.5. The authors' code adds 1e-8 to the norms' product, which takes classes that hardly anybody is given (probabilities under 1e-5 throughout the batch)
    out of the second part; `eps: 1.0e-8` repeats it.

    Args:
        beta: the weight of the part over classes, an example at a time. May follow a schedule.
        gamma: the weight of the part over the batch, a class at a time. May follow a schedule.
        temperature: T, above zero. May follow a schedule.
        eps: what is added to the product of the norms; 0 is Pearson's correlation, 1e-8 the authors' code.

    Raises:
        RecipeError: a temperature of zero or less, a weight or eps below zero.
        MismatchError: no teacher, other classes than the student's, or answers that are no choice of one class.

    Example:
        {kind: response.dist, temperature: 4.0, weight: 2.0}
    """

    batchwise = True
    usual = 2.0

    def __init__(self, *, beta: Number = 1.0, gamma: Number = 1.0, temperature: Number = 1.0, eps: float = 0.0) -> None:
        super().__init__()
        check_number("temperature", temperature, positive=True)
        for name, number in (("beta", beta), ("gamma", gamma), ("eps", eps)):
            check_number(name, number, positive=False)
        self.beta, self.gamma, self.temperature, self.eps = beta, gamma, temperature, eps

    def forward(self, student: Knowledge, teacher: Knowledge | None, batch: Batch) -> Tensor:
        ours, theirs = rows(student, given(self, teacher))
        return dist_loss(ours, theirs, beta=self.now(self.beta), gamma=self.now(self.gamma), temperature=self.now(self.temperature), eps=self.eps)
