"""Read any layer of a model by its module path, and leave no hook behind."""

from collections.abc import Iterable
from types import TracebackType
from typing import Any, Self

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .errors import MismatchError, RecipeError, did_you_mean

__all__ = ["Tap", "check_paths"]


def check_paths(model: nn.Module, paths: Iterable[str], side: str) -> None:
    """Refuse a module path that `model` has not, naming the nearest one."""
    known = {name for name, _ in model.named_modules(remove_duplicate=False)}  # a shared layer has each of its names
    for path in paths:
        if path not in known:
            raise RecipeError(f"the {side} ({type(model).__name__}) has no layer {path!r}{did_you_mean(path, [name for name in known if name])}")


class Tap:
    """Record what the layers at `paths` give, while the block lasts.

    A layer called more than once gives the record of its last call. Where the model has in-place layers, a record is a copy, so that what follows cannot
    overwrite it; gradients flow through it all the same. A functional in-place operation is noticed when the block ends, and refused with the way out;
    inference tensors, which count no versions, are always copied.

    >>> import torch
    >>> net = nn.Sequential(nn.Linear(3, 2), nn.ReLU(inplace=True))
    >>> with Tap(net, ["0"]) as tap:
    ...     _ = net(torch.ones(1, 3))
    >>> tap.features["0"].shape
    torch.Size([1, 2])
    """

    def __init__(self, model: nn.Module, paths: Iterable[str], *, copy: bool | None = None, side: str = "model") -> None:
        self._model, self._paths = model, tuple(paths)
        check_paths(model, self._paths, side)
        self._copy = any(getattr(module, "inplace", False) for module in model.modules()) if copy is None and self._paths else bool(copy)
        self._handles: list[RemovableHandle] = []
        self._versions: dict[str, int] = {}  # of records that are no copies
        self.features: dict[str, Tensor] = {}

    def __enter__(self) -> Self:
        self.features, self._versions = {}, {}
        for path in self._paths:
            self._handles.append(self._model.get_submodule(path).register_forward_hook(self._reader(path)))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        if kind is not None:
            return
        for path in self._paths:
            if path not in self.features:
                raise MismatchError(f"layer {path!r} of {type(self._model).__name__} was never called: name a layer that the forward pass runs")
            if path in self._versions and self.features[path]._version != self._versions[path]:
                raise MismatchError(
                    f"what layer {path!r} of {type(self._model).__name__} gave was overwritten in place by what follows it: "
                    "name the layer after it, or write the operation out of place"
                )

    def _reader(self, path: str) -> Any:
        def read(_module: nn.Module, _args: Any, output: Any) -> None:
            tensor = output
            while isinstance(tensor, (tuple, list)) and tensor:
                tensor = tensor[0]
            if not isinstance(tensor, Tensor):
                raise MismatchError(
                    f"layer {path!r} gives {type(output).__name__}, not a tensor: name a layer that gives a tensor or a tuple that begins with one"
                )
            if self._copy or tensor.is_inference():
                self.features[path] = tensor.clone()
            else:
                self.features[path], self._versions[path] = tensor, tensor._version

        return read
