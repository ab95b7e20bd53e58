"""Read any layer of a model by its module path, and leave no hook behind."""

import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields, is_dataclass
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.utils.hooks import RemovableHandle

from .errors import MismatchError, RecipeError, did_you_mean

__all__ = ["Survey", "Tap", "check_paths", "eagerly", "layer"]

_WRAPPED = frozenset({"_orig_mod", "_forward_module", "_original_module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""Where torch.compile, Fabric, FSDP and checkpoint wrappers keep the module that they wrap."""


def layer(model: nn.Module, path: str, *, side: str = "model") -> nn.Module:
    """Return the layer at a module path; what wraps it (`_orig_mod` of torch.compile, `module` of DDP) may stand in the path or not.

    Raises:
        RecipeError: there is none, with the nearest path.
    """
    try:
        return model.get_submodule(path)
    except AttributeError:
        known = dict(_named(model))
    plain = ".".join(name for name in path.split(".") if name not in _WRAPPED)
    plain = plain if "module" in known else plain.removeprefix("module.")
    if plain not in known:
        raise RecipeError(f"the {side} ({type(model).__name__}) has no layer {path!r}{did_you_mean(plain, [name for name in known if name])}")
    return known[plain]


def check_paths(model: nn.Module, paths: Iterable[str], side: str) -> None:
    """Refuse a module path that `model` has not, naming the nearest one; what follows a colon says which part of it is read."""
    for path in paths:
        layer(model, path.partition(":")[0], side=side)


def eagerly() -> AbstractContextManager[Any]:
    """Run compiled modules as they are written while the block lasts: for a dry run, which is not worth a compilation."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules and not torch.compiler.is_compiling() else nullcontext()


def _named(module: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Every path and its layer, wrappers left out of the paths; a shared layer has each of its names."""
    yield path, module
    for name, child in module._modules.items():
        wraps = name in _WRAPPED or (name == "module" and isinstance(module, (DataParallel, DistributedDataParallel)))
        if child is not None:
            yield from _named(child, path if wraps else f"{path}.{name}" if path else name)


class Tap:
    """Record what the layers at `paths` give, while the block lasts.

    A path may be followed by a colon and what is read there: `relu:in` is the first input of `relu` (the activation before it), `attention:1` the second
    item of a tuple, `encoder:last_hidden_state` a field of a dataclass or mapping. A path alone is the tensor that the layer gives, or the first one of it.
    A layer called more than once gives the record of its last call. Where the model has in-place layers, a record is a copy, so that what follows cannot
    overwrite it; gradients flow through it all the same. A functional in-place operation is noticed when the block ends, and refused with the way out;
    inference tensors, which count no versions, are always copied.

    A compiled model is read within its graph: the first tap sets `torch._dynamo.config.skip_nnmodule_hook_guards` to False, so that what is compiled from
    then on is compiled again when it is tapped. With gradient checkpointing, what the backward pass runs again is not recorded; within the reentrant kind a
    layer's output has no gradient, and is refused where the block began with gradients on.

    Raises:
        RecipeError: a path that the model has not.
        MismatchError: when the block ends, a layer that never ran, or gave nothing that can be read.

    >>> import torch
    >>> net = nn.Sequential(nn.Linear(3, 2), nn.ReLU(inplace=True))
    >>> with Tap(net, ["0"]) as tap:
    ...     _ = net(torch.ones(1, 3))
    >>> tap.features["0"].shape
    torch.Size([1, 2])
    """

    def __init__(self, model: nn.Module, paths: Iterable[str], *, copy: bool | None = None, side: str = "model") -> None:
        self._model, self._paths, self._side = model, tuple(paths), side
        self._layers = [layer(model, path.partition(":")[0], side=side) for path in self._paths]
        self._copy = any(getattr(module, "inplace", False) for module in model.modules()) if copy is None and self._paths else bool(copy)
        self._handles: list[RemovableHandle] = []
        self._versions: dict[str, int] = {}  # of records that are no copies
        self._learns = False
        self.features: dict[str, Tensor] = {}

    def __enter__(self) -> Self:
        self.features, self._versions, self._learns = {}, {}, torch.is_grad_enabled()
        if self._paths and (dynamo := sys.modules.get("torch._dynamo")) is not None:
            dynamo.config.skip_nnmodule_hook_guards = False  # pyright: ignore[reportAttributeAccessIssue]
        for path, module in zip(self._paths, self._layers, strict=True):
            item = path.partition(":")[2]
            if item == "in":
                self._handles.append(module.register_forward_pre_hook(self._input_reader(path), with_kwargs=True))
            else:
                self._handles.append(module.register_forward_hook(self._reader(path, item)))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        if kind is not None:
            return
        for path in self._paths:
            if path not in self.features:
                raise MismatchError(f"layer {path!r} of {type(self._model).__name__} was never called: {self._never()}")
            if path in self._versions and self.features[path]._version != self._versions[path]:
                raise MismatchError(
                    f"what layer {path!r} of {type(self._model).__name__} gave was overwritten in place by what follows it: "
                    "name the layer after it, or write the operation out of place"
                )

    def _never(self) -> str:
        ran = "name a layer that the forward pass runs"
        compiled = "torch._dynamo" in sys.modules and any(name.endswith("_orig_mod") for name, _ in self._model.named_modules())
        return f"{ran}; or, where the compiled model ran before it was tapped, call torch.compiler.reset() first" if compiled else ran

    def _reader(self, path: str, item: str) -> Any:
        def read(_module: nn.Module, _args: Any, output: Any) -> None:
            self._keep(path, _first(_item(output, item, path)) if item else _first(output), output)

        return read

    def _input_reader(self, path: str) -> Any:
        def read(_module: nn.Module, args: Any, kwargs: Any) -> None:
            self._keep(path, _first(args or kwargs), args or kwargs)

        return read

    def _keep(self, path: str, tensor: Any, whole: Any) -> None:
        if not isinstance(tensor, Tensor):
            raise MismatchError(f"layer {path!r} gives {type(whole).__name__}, not a tensor: name a layer that gives a tensor or a tuple that begins with one")
        if torch.compiler.is_compiling():
            self.features[path] = tensor.clone()  # versions are not counted in a graph
            return
        if torch._C._current_graph_task_id() >= 0:
            return  # within a backward pass: a checkpointed part runs again
        if self._learns and not torch.is_grad_enabled():
            raise MismatchError(
                f"layer {path!r} of the {self._side} ran without gradients, so that nothing can be learnt from it: checkpoint with use_reentrant=False, "
                "take the layer out of no_grad, or name a layer outside"
            )
        if self._copy or tensor.is_inference():
            self.features[path] = tensor.clone()
        else:
            self.features[path], self._versions[path] = tensor, tensor._version


def _fields(given: Any) -> dict[str, Any] | None:
    """What a mapping or a dataclass holds, by name; None for anything else."""
    if isinstance(given, Mapping):
        return dict(given)
    if is_dataclass(given) and not isinstance(given, type):
        return {field.name: getattr(given, field.name) for field in fields(given)}
    return None


def _first(given: Any) -> Any:
    """The first tensor of a tuple, list, mapping or dataclass; anything else as it is."""
    while not isinstance(given, Tensor):
        inner = list(given) if isinstance(given, (tuple, list)) else list((_fields(given) or {}).values())
        if not inner:
            return given
        given = next((value for value in inner if value is not None), None)
    return given


def _item(given: Any, item: str, path: str) -> Any:
    """One item of what a layer gave."""
    held = _fields(given)
    if isinstance(given, (tuple, list)):
        held = {str(index): value for index, value in enumerate(given)} | dict(zip(getattr(given, "_fields", ()), given, strict=False))
    if held is None or item not in held:
        has = f"{len(given)} items, from 0" if isinstance(given, (tuple, list)) else ", ".join(map(str, held)) if held else type(given).__name__
        near = did_you_mean(item, map(str, held)) if held and not item.isdecimal() else ""
        raise MismatchError(f"layer {path!r}: there is no {item!r} in what the layer gives ({has}); after the colon stands in, an index or a field{near}")
    if held[item] is None:
        raise MismatchError(
            f"layer {path!r} gives None there: the model was not told to return it; for attention that is need_weights=True (torch), "
            "attn_implementation='eager' with output_attentions=True (transformers)"
        )
    return held[item]


class Survey:
    """Record the shape of what every layer gives, in the order in which they ran, while the block lasts; nothing at all without a model.

    What runs before the first layer with weights only gives the input another form, and is left out.
    """

    def __init__(self, model: nn.Module | None) -> None:
        self._model = model
        self._handles: list[RemovableHandle] = []
        self._eager: AbstractContextManager[Any] = nullcontext()
        self.shapes: dict[str, tuple[int, ...]] = {}

    def __enter__(self) -> Self:
        if self._model is None:
            return self
        self._eager = eagerly()
        self._eager.__enter__()
        for path, module in {id(module): (path, module) for path, module in reversed(list(_named(self._model)))}.values():  # by its first name
            self._handles.append(module.register_forward_hook(self._reader(path)))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._eager.__exit__(kind, error, trace)

    def _reader(self, path: str) -> Any:
        def read(module: nn.Module, _args: Any, output: Any) -> None:
            found = _first(output)
            begun = self.shapes or next(module.parameters(), None) is not None
            if path and begun and isinstance(found, Tensor):
                self.shapes.pop(path, None)  # a layer called twice stands where it ran last
                self.shapes[path] = tuple(found.shape)

        return read
