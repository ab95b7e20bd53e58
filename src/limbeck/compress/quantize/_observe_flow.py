"""Which layer reads what another gives, seen by running a model once.

Nothing is compiled or traced into a graph, so that a model may branch as it likes: what counts is what it did with the example.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from limbeck.compress._method import Bench
from limbeck.core.errors import DataError
from limbeck.core.task import Batch, Task

from ._fake import Fake

__all__ = ["ELEMENTWISE", "OUTPUT", "POOLED", "Flow", "Step", "first_batch", "flow_of"]

OUTPUT = "output"
"""The name of the step that reads what the model answers."""

ELEMENTWISE = frozenset({"ReLU", "LeakyReLU", "Identity", "Dropout", "Dropout1d", "Dropout2d", "relu", "relu_", "leaky_relu", "dropout"})
"""Steps in evaluation mode that keep positions, and commute with a positive factor for each channel."""

POOLED = frozenset({
    "MaxPool1d", "MaxPool2d", "AvgPool1d", "AvgPool2d", "AdaptiveAvgPool1d", "AdaptiveAvgPool2d", "AdaptiveMaxPool2d", "Flatten",
    "max_pool1d", "max_pool2d", "avg_pool1d", "avg_pool2d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "flatten",
})  # fmt: skip
"""Steps after a convolution that keep its channels apart, and commute with a positive factor for each."""


@dataclass(frozen=True)
class Step:
    """What ran: a leaf by its path, which is a prepared layer or a module without children, or a function outside of one (path None); what it read and gave."""

    path: str | None
    name: str
    reads: tuple[int, ...]
    gives: tuple[int, ...]


@dataclass(frozen=True)
class Flow:
    """What ran, in order; `shapes`: of each value."""

    steps: tuple[Step, ...]
    shapes: Mapping[int, tuple[int, ...]]

    def runs(self, path: str) -> list[Step]:
        """Return the runs of a module."""
        return [step for step in self.steps if step.path == path]

    def maker(self, value: int) -> Step | None:
        """Return the step that gave a value; None for an input."""
        return next((step for step in self.steps if value in step.gives), None)

    def readers(self, value: int) -> list[Step]:
        """Return the steps that read a value, the model's answer among them."""
        return [step for step in self.steps if value in step.reads]

    def next(self, step: Step) -> Step | None:
        """Return the one step that reads the one value a step gives; None where there are more of either."""
        readers = self.readers(step.gives[0]) if len(step.gives) == 1 else []
        return readers[0] if len(readers) == 1 else None


class _Watch(TorchFunctionMode):
    """Note every function of torch called outside of a leaf module."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[Step] = []
        self.kept: list[Tensor] = []  # so that no id is given twice
        self.names: dict[int, int] = {}  # id of a tensor -> its value, renewed by what works in place
        self.shapes: dict[int, tuple[int, ...]] = {}
        self.inside = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.inside:
            return func(*args, **(kwargs or {}))
        read = self.reads((args, kwargs))
        given = func(*args, **(kwargs or {}))
        self.add(None, getattr(func, "__name__", str(func)), read, given)
        return given

    def reads(self, tree: Any) -> tuple[int, ...]:
        return tuple(self.names[id(one)] if id(one) in self.names else self._new(one) for one in _tensors(tree))

    def add(self, path: str | None, name: str, read: tuple[int, ...], given: Any) -> None:
        made = tuple(self._new(one) for one in _tensors(given))
        if made:
            self.steps.append(Step(path, name, read, made))

    def _new(self, tensor: Tensor) -> int:
        self.kept.append(tensor)
        self.names[id(tensor)] = value = len(self.kept)
        self.shapes[value] = tuple(tensor.size())
        return value


def _tensors(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, Mapping):
        for one in tree.values():
            yield from _tensors(one)
    elif isinstance(tree, (tuple, list)):
        for one in tree:
            yield from _tensors(one)


def first_batch(bench: Bench, examples: int = 2) -> Batch:
    """Return a small training batch to run a model on.

    Raises:
        DataError: the training data give none.
    """
    batch = next(bench.batches(examples), None)
    if batch is None:
        raise DataError("the training data gave no batch: a model is run on one to see which layer reads what")
    return batch


@torch.no_grad()
def flow_of(model: nn.Module, task: Task, batch: Batch) -> Flow:
    """Run a model, in evaluation mode, on a batch and say what read what."""
    watch, waiting, hooks = _Watch(), [], []

    def before(_module: nn.Module, args: Any, kwargs: Any) -> None:
        if not watch.inside:
            waiting.append(watch.reads((args, kwargs)))
        watch.inside += 1

    def after(path: str, module: nn.Module, given: Any) -> None:
        watch.inside -= 1
        if not watch.inside:
            watch.add(path, type(module).__name__, waiting.pop(), given)

    def answered(_module: nn.Module, _args: Any, given: Any) -> None:
        read = watch.reads(given)
        watch.steps.append(Step(None, OUTPUT, read, ()))

    for path, module in model.named_modules():
        if isinstance(module, Fake) or not any(True for _ in module.children()):
            hooks.append(module.register_forward_pre_hook(before, with_kwargs=True))
            hooks.append(module.register_forward_hook(lambda module, _args, given, path=path: after(path, module, given)))
    hooks.append(model.register_forward_hook(answered))
    try:
        with watch:
            task.forward(model, batch)
    finally:
        for hook in hooks:
            hook.remove()
    return Flow(tuple(watch.steps), watch.shapes)
