"""What one of two processes does in `test_gather.py`: `python _gathering.py RANK STORE` prints what it found as JSON."""

import json
import sys

import torch
from torch import Tensor
from torch import distributed as dist

from limbeck.core.errors import MismatchError
from limbeck.core.gather import gathered
from limbeck.core.knowledge import Dense, Knowledge, Needs, TopK
from limbeck.core.objective import Objective, Term, _everyones


def data(rank: int) -> Tensor:
    return torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(rank))


def spread(x: Tensor) -> Tensor:
    """A property of a batch: how far its examples are apart."""
    return (x[:, None] - x[None]).square().sum(-1).add(1e-3).sqrt().mean()


class Spread(Objective):
    """The student's spread of logits times the mean label."""

    batchwise = True

    @property
    def needs(self) -> Needs:
        return Needs(teacher=None, labels=True)

    def bind(self, student, teacher, task, facts) -> None:
        """Nothing to check."""

    def forward(self, student, teacher, batch) -> Tensor:
        return spread(student.main.logits) * batch["label"].double().mean()


def main(rank: int, store: str) -> None:
    dist.init_process_group("gloo", rank=rank, world_size=2, store=dist.FileStore(store, 2))
    x = data(rank).requires_grad_()
    whole = gathered(x)
    loss = spread(whole) + 3 * spread(whole + gathered(2 * x))  # the sum sends one gradient to both
    loss.backward()
    assert x.grad is not None
    found = {"whole": whole.tolist(), "loss": loss.item(), "grad": x.grad.tolist(), "transposed": gathered(data(rank)[:2].T).tolist()}
    found |= {"ids": gathered(torch.tensor([rank, 5])).tolist(), "masks": gathered(torch.tensor([rank == 0, True])).tolist()}
    y = data(rank).requires_grad_()
    term = Term(Spread(), gather=True)
    cost = term(Knowledge({"main": Dense(y)}), None, {"label": torch.full((3,), rank), "unread": torch.zeros(rank + 1)})
    cost.backward()
    assert y.grad is not None
    found |= {"term": cost.item(), "term_grad": y.grad.tolist()}
    sparse = TopK(x.detach(), torch.full((3, 2), rank), x.detach()[:, 0], 4.0, 9)
    answer = _everyones(Knowledge({"main": sparse})).answer
    assert isinstance(answer, TopK) and (answer.temperature, answer.classes) == (4.0, 9)
    found["topk"] = [answer.log_probs.tolist(), answer.indices.tolist(), answer.log_tail.tolist()]
    for name, unequal in (("length", torch.zeros(3 + rank, 2)), ("rank", torch.zeros((3, 2) if rank else (3,)))):
        try:
            gathered(unequal)
        except MismatchError as error:
            found[name] = str(error)
    dist.destroy_process_group()
    print(json.dumps(found))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
