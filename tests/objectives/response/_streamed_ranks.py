"""A tiny language model taught by another through `Offline`, by one process or two; a module of its own, so that processes can import it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from limbeck.core.errors import MismatchError
from limbeck.core.knowledge import Hidden, Knowledge
from limbeck.core.task import Task
from limbeck.objectives.response.divergence import DivergenceKD
from limbeck.schemes.offline import Offline

V = 23


class Tiny(nn.Module):
    """Embeds tokens, mixes them, and gives states and the head; `tied`: the head is the embedding."""

    def __init__(self, width: int, *, tied: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(V, width)
        self.body = nn.Linear(width, width)
        self.head = nn.Linear(width, V, bias=not tied)
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Hidden:
        return Hidden(self.body(self.embedding(ids)).tanh() * 2, self.head.weight, self.head.bias)


class Tokens:
    """As much of a language task as `Offline` asks for: labels of -100 do not count."""

    def batch(self, raw: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return raw

    def forward(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Knowledge:
        return Knowledge({"main": model(batch["input"])}, mask=batch["label"] != -100)


def rows() -> dict[str, Tensor]:
    """Eight rows of which 6, 5, 1, 0, 3, 6, 2 and 4 tokens count."""
    draw = torch.Generator().manual_seed(0)
    label = torch.randint(0, V, (8, 6), generator=draw)
    counts = torch.tensor([6, 5, 1, 0, 3, 6, 2, 4])
    label[torch.arange(6) >= counts[:, None]] = -100
    return {"input": torch.randint(0, V, (8, 6), generator=draw), "label": label, "id": torch.arange(8)}


def scheme(*, tied: bool = False, **how: Any) -> Offline:
    torch.manual_seed(0)
    student, teacher = Tiny(4, tied=tied), Tiny(7)
    options = {"divergence": {"kind": "jsd", "beta": 0.3}, "temperature": 1.5, "hard": 0.2, "way": "tokens", "budget": 60_000, **how}
    return Offline(student, teacher, [0.7 * DivergenceKD(**options)], cast(Task, Tokens()), rows())


class Loss(nn.Module):
    """What is wrapped whole: the loss of a batch, summed."""

    def __init__(self, inner: Offline) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        return self.inner(batch).sums["student"]


def rank(number: int, folder: str) -> None:
    """Half of the rows: leave, of each way to spread a model over processes, the gradients of the student as one process would have them."""
    from torch import distributed
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor
    from torch.nn.parallel import DistributedDataParallel

    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=number, world_size=2)
    mine = {name: field[number::2] for name, field in rows().items()}
    found = {}
    for tied in (False, True):
        for name in ("ddp", "fsdp"):
            inner = scheme(tied=tied)
            loss = Loss(inner)
            wrapped = DistributedDataParallel(loss) if name == "ddp" else loss
            if name == "fsdp":
                fully_shard(loss)
            count = (mine["label"] != -100).sum().float()
            distributed.all_reduce(count)
            (wrapped(mine) * 2 / count).backward()  # both average over processes
            grads = {key: one.grad for key, one in inner.student.named_parameters()}
            found[f"{name} {tied}"] = {key: one.full_tensor() if isinstance(one, DTensor) else one for key, one in grads.items()}
    try:  # a head that is sharded by itself is no longer whole where the loss is computed
        inner = scheme()
        fully_shard(cast(nn.Module, inner.student.head))
        inner(mine)
        found["apart"] = "unrefused"
    except MismatchError as error:
        found["apart"] = f"{type(error).__name__}: {error}"
    if number == 0:
        torch.save(found, Path(folder) / "found.pt")
    distributed.barrier()
    distributed.destroy_process_group()
