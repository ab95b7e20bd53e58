"""Read any layer of a model by its module path, and leave no hook behind."""

from collections.abc import Iterable, Mapping
from dataclasses import is_dataclass
from types import TracebackType
from typing import Any, Self

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .errors import MismatchError, RecipeError, did_you_mean

__all__ = ["Survey", "Tap", "check_paths"]


def check_paths(model: nn.Module, paths: Iterable[str], side: str) -> None:
    """Refuse a module path that `model` has not, naming the nearest one; what follows a colon says which part of it is read."""
    known = {name for name, _ in model.named_modules(remove_duplicate=False)}  # a shared layer has each of its names
    for path in (one.partition(":")[0] for one in paths):
        if path not in known:
            raise RecipeError(f"the {side} ({type(model).__name__}) has no layer {path!r}{did_you_mean(path, [name for name in known if name])}")


class Tap:
    """Record what the layers at `paths` give, while the block lasts.

    A path may be followed by a colon and what is read there: `relu:in` is the first input of `relu` (the activation before it), `attention:1` the second
    item of a tuple, `encoder:last_hidden_state` a field of a dataclass or mapping. A path alone is the tensor that the layer gives, or the first one of it.
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
        self._model, self._paths, self._side = model, tuple(paths), side
        check_paths(model, self._paths, side)
        self._copy = any(getattr(module, "inplace", False) for module in model.modules()) if copy is None and self._paths else bool(copy)
        self._handles: list[RemovableHandle] = []
        self._versions: dict[str, int] = {}  # of records that are no copies
        self.features: dict[str, Tensor] = {}

    def __enter__(self) -> Self:
        self.features, self._versions = {}, {}
        for path in self._paths:
            name, _, item = path.partition(":")
            module = self._model.get_submodule(name)
            hook = self._input_reader(path) if item == "in" else self._reader(path, item)
            self._handles.append(module.register_forward_pre_hook(hook) if item == "in" else module.register_forward_hook(hook))
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

    def _reader(self, path: str, item: str) -> Any:
        def read(_module: nn.Module, _args: Any, output: Any) -> None:
            self._keep(path, _first(_item(output, item, path)) if item else _first(output), output)

        return read

    def _input_reader(self, path: str) -> Any:
        def read(_module: nn.Module, args: Any) -> None:
            self._keep(path, _first(args), args)

        return read

    def _keep(self, path: str, tensor: Any, whole: Any) -> None:
        if not isinstance(tensor, Tensor):
            raise MismatchError(f"layer {path!r} gives {type(whole).__name__}, not a tensor: name a layer that gives a tensor or a tuple that begins with one")
        if self._copy or tensor.is_inference():
            self.features[path] = tensor.clone()
        else:
            self.features[path], self._versions[path] = tensor, tensor._version


def _first(given: Any) -> Any:
    """The first tensor of a tuple, list, mapping or dataclass; anything else as it is."""
    while not isinstance(given, Tensor):
        if isinstance(given, (tuple, list)) and given:
            given = given[0]
        elif isinstance(given, Mapping) and given:
            given = next(iter(given.values()))
        elif is_dataclass(given) and not isinstance(given, type):
            given = next((value for value in vars(given).values() if value is not None), None)
        else:
            return given
    return given


def _item(given: Any, item: str, path: str) -> Any:
    """One item of what a layer gave."""
    if item.isdecimal() and isinstance(given, (tuple, list)) and int(item) < len(given):
        found = given[int(item)]
    elif isinstance(given, Mapping) and item in given:
        found = given[item]
    elif is_dataclass(given) and item in vars(given):
        found = getattr(given, item)
    else:
        has = f"{len(given)} items" if isinstance(given, (tuple, list)) else ", ".join(given) if isinstance(given, Mapping) else type(given).__name__
        raise MismatchError(f"layer {path!r}: there is no {item!r} in what the layer gives ({has}); after the colon stands in, an index or a field")
    if found is None:
        raise MismatchError(
            f"layer {path!r} gives None there: the model was not told to return it; for attention that is need_weights=True (torch), "
            "attn_implementation='eager' with output_attentions=True (transformers)"
        )
    return found


class Survey:
    """Record the shape of what every layer gives, in the order in which they ran, while the block lasts; nothing at all without a model."""

    def __init__(self, model: nn.Module | None) -> None:
        self._model = model
        self._handles: list[RemovableHandle] = []
        self.shapes: dict[str, tuple[int, ...]] = {}

    def __enter__(self) -> Self:
        for path, module in [] if self._model is None else self._model.named_modules():
            self._handles.append(module.register_forward_hook(self._reader(path)))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _reader(self, path: str) -> Any:
        def read(_module: nn.Module, _args: Any, output: Any) -> None:
            found = _first(output)
            if path and isinstance(found, Tensor):
                self.shapes.pop(path, None)  # a layer called twice stands where it ran last
                self.shapes[path] = tuple(found.shape)

        return read
