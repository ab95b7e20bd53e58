"""A frozen teacher seen through: what it says of an input, with a gradient to that input and none to its weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.core.ask import ask
from limbeck.core.errors import MismatchError
from limbeck.core.knowledge import Knowledge, Reads
from limbeck.core.lookup import find
from limbeck.core.tap import check_paths
from limbeck.core.task import Task
from limbeck.core.teacher import Teacher

from ._contest import still

__all__ = ["Window", "last_linear", "lent"]


class Window:
    """A frozen teacher seen through: it answers in eval mode, a gradient reaches what it is asked about, and none its weights.

    `who` is the scheme, for messages.

    Raises:
        MismatchError: no teacher, another one than a frozen model of torch, or one that sends no gradient back.
    """

    def __init__(self, teacher: Teacher | None, task: Task, who: str) -> None:
        told = "teacher: {kind: frozen, of: stage}"
        if teacher is None:
            raise MismatchError(f"{who} makes its inputs with the teacher's help, and there is none: give one, {told}")
        if not isinstance(teacher, find("teachers", "frozen")):
            raise MismatchError(f"{who} looks through its teacher with gradients, and {type(teacher).__name__} gives none: take {told}")
        frozen: Any = teacher
        self._model: nn.Module = frozen.model
        self._task = task
        self._who = who

    @property
    def model(self) -> nn.Module:
        return self._model

    def look(self, x: Tensor, features: frozenset[str] = frozenset()) -> Knowledge:
        """Return what the teacher says of `x [N, ...]`, and what is read of it at `features`."""
        self._model.eval()
        with still(self._model.parameters()):
            said = ask(self._model, {"input": x}, Reads(features=features), self._task, side="teacher")
        if x.requires_grad and not said.main.logits.requires_grad:
            raise MismatchError(
                f"{self._who} needs a gradient from the teacher's answer to its input, and {type(self._model).__name__} gives none: "
                "teach from a trained module, not from an exported file, and without no_grad or detach in its forward pass"
            )
        return said

    def check(self, like: Tensor, layers: frozenset[str] = frozenset()) -> None:
        """Refuse a teacher through which no gradient comes, tried on images like these, and a layer that it has not."""
        check_paths(self._model, layers, "teacher")
        with torch.enable_grad():
            self.look(like.clone().requires_grad_(), layers)


@contextmanager
def lent(model: nn.Module) -> Iterator[None]:
    """Let a model write into copies of its buffers while the block lasts: running statistics stay, and what a graph has kept of the copies holds."""
    own = [(module, name, value) for module in model.modules() for name, value in module._buffers.items() if value is not None]
    for module, name, value in own:
        module._buffers[name] = value.clone()
    try:
        yield
    finally:
        for module, name, value in own:
            module._buffers[name] = value


def last_linear(model: nn.Module, who: str) -> str:
    """Return the path of a model's last linear layer, the head of a classifier.

    Raises:
        MismatchError: there is none.
    """
    found = [path for path, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not found:
        raise MismatchError(f"{who} reads what enters the teacher's last linear layer, and {type(model).__name__} has none: name the layer, `layer: path`")
    return found[-1]
