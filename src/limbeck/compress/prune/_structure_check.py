"""Whether a model that lost channels computes what the model before it does without them, and if not, which layer is to blame.

The witness is the model at its old sizes whose layers read zeros of what was removed (their columns are zero, and their layer and group norms are over the
channels that stay): the smaller model must answer as it does. One that runs, and answers otherwise, is wired wrongly.
"""

import copy
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.bridges.torch_pruning import Ask, Port
from limbeck.core.errors import MismatchError

from ._shapes import tensors_of

__all__ = ["check_answers", "check_ties", "witness"]

_CLOSE = 1e-3
"""Of the largest answer: far above what another order of sums does in single precision, far below what a wrong column does."""

_FAILS = (RuntimeError, ValueError, TypeError, LookupError, AssertionError)


def check_ties(model: nn.Module, keep: Mapping[Port, Tensor]) -> None:
    """Refuse to narrow a parameter that two layers share: they would part.

    Raises:
        MismatchError: it and both layers, named.
    """
    cut = {id(tensor): name for name, tensor in model.named_parameters() if any(name.startswith(f"{port.path}.") or name == port.path for port in keep)}
    holders: dict[int, dict[int, str]] = {}
    for path, module in model.named_modules():
        for name, tensor in module._parameters.items():
            if tensor is not None:
                holders.setdefault(id(tensor), {}).setdefault(id(module), f"{path}.{name}".removeprefix("."))
    for key in cut:
        if len(holders[key]) > 1:
            names = list(holders[key].values())
            owner = names[0].rpartition(".")[0]
            raise MismatchError(
                f"{' and '.join(map(repr, names))} are one tied weight: what one layer loses the other would lose; leave {owner!r} whole with skip: [{owner}], "
                "or untie them"
            )


def check_answers(model: nn.Module, pruned: nn.Module, keep: Mapping[Port, Tensor], ask: Ask) -> None:
    """Run a pruned model beside the witness of the one before it; `keep [kept]` are the channels of each port that stayed.

    Raises:
        MismatchError: it does not run, gives another shape or other values; the message names the layer where that begins.
    """
    with torch.no_grad():
        old = _Run(witness(model, keep), ask)
        new = _Run(pruned, ask)
    if old.error is not None:
        raise MismatchError(f"{type(model).__name__} does not run on two examples of the task: {_line(old.error)}")
    if any(not answer.isfinite().all() for answer in old.answers):
        raise MismatchError(f"{type(model).__name__} answers with NaN or infinity before anything is pruned: nothing can be judged")
    if new.error is None and len(old.answers) == len(new.answers) and all(map(_same, old.answers, new.answers)):
        return
    raise MismatchError(_blame(type(model).__name__, old, new, keep))


def witness(model: nn.Module, keep: Mapping[Port, Tensor]) -> nn.Module:
    """Return a copy of the old sizes that reads nothing of the channels that are not in `keep`."""
    made = copy.deepcopy(model).eval()
    for port, index in keep.items():
        module = made if port.side == "parameter" else made.get_submodule(port.path)
        if port.side == "in":
            for name, axis in tensors_of(module, "in") or ():
                weight = module.get_parameter(name)
                stays = torch.zeros(weight.shape[axis], dtype=torch.bool, device=weight.device)
                stays[index[index < weight.shape[axis]].to(weight.device)] = True
                with torch.no_grad():
                    weight.mul_(stays.view([-1 if at == axis else 1 for at in range(weight.ndim)]).to(weight))
        elif isinstance(module, (nn.LayerNorm, nn.GroupNorm)):
            parent, _, name = port.path.rpartition(".")
            setattr(made.get_submodule(parent), name, _NormOfSome(module, index))
    return made


class _NormOfSome(nn.Module):
    """A layer or group norm over some of its channels; zero elsewhere."""

    def __init__(self, norm: nn.LayerNorm | nn.GroupNorm, index: Tensor) -> None:
        super().__init__()
        self.norm, self.index = norm, index
        self.axis = -1 if isinstance(norm, nn.LayerNorm) else 1

    def forward(self, x: Tensor) -> Tensor:
        index = self.index.to(x.device)
        norm, some = self.norm, x.index_select(self.axis, index)
        weight, bias = (None if one is None else one[index] for one in (norm.weight, norm.bias))
        if isinstance(norm, nn.LayerNorm):
            normed = F.layer_norm(some, (len(index),), weight, bias, norm.eps)
        else:
            normed = F.group_norm(some, norm.num_groups, weight, bias, norm.eps)
        return torch.zeros_like(x).index_copy(self.axis, index, normed)


class _Run:
    """A model asked once: its answers, or the error, where it was, and what every layer gave, in order."""

    def __init__(self, model: nn.Module, ask: Ask) -> None:
        self.gave: dict[str, Tensor] = {}
        self.answers: Sequence[Tensor] = ()
        self.error: BaseException | None = None
        self._inside: list[str] = []
        handles = [
            hook for path, module in model.named_modules() for hook in (module.register_forward_pre_hook(self._enter(path)), self._leaving(module, path))
        ]
        try:
            self.answers = ask(model)
        except _FAILS as error:
            self.error = error
        finally:
            for handle in handles:
                handle.remove()
        self.where = self._inside[-1] if self._inside else ""

    def _enter(self, path: str) -> Callable[..., None]:
        return lambda *_: self._inside.append(path)

    def _leaving(self, module: nn.Module, path: str) -> torch.utils.hooks.RemovableHandle:
        def left(_module: nn.Module, _args: object, output: object) -> None:
            self._inside.pop()
            if isinstance(output, Tensor):
                self.gave.pop(path, None)
                self.gave[path] = output

        return module.register_forward_hook(left)


def _blame(model: str, old: _Run, new: _Run, keep: Mapping[Port, Tensor]) -> str:
    """Say where a pruned model goes wrong: the first layer that differs from the witness, and the last one before it that does not."""
    before, culprit = "the input", ""
    for path in old.gave:
        if path and path not in new.gave:
            break
        if path and (same := _agrees(path, old.gave[path], new.gave[path], keep)) is not None:
            if not same:
                culprit = path
                break
            before = repr(path)
    gone = [port.path for port in keep if port.side == "out" and port.path in old.gave]
    last = next((path for path in reversed(list(old.gave)) if path in gone and (not culprit or path != culprit) and path in new.gave), None)
    way = f"leave the layer before it whole (skip: [{last}])" if last else "leave layers whole (skip)"
    if new.error is not None:
        where = repr(new.where) if new.where else f"{model} itself"
        return (
            f"{model} does not run with fewer channels: {where} fails after {before} ({_line(new.error)}); a size is written down there, in a view or reshape, "
            f"or channels are put in another order: write it for any size, such as flatten(1), or {way}"
        )
    where = repr(culprit) if culprit else "its answer"
    return (
        f"{model} runs with fewer channels, but wrongly: {where}, after {before}, is no longer what it was; channels change places there (a shuffle, a view, "
        f"a split) or are mixed by something else than a layer with weights: {way}"
    )


def _agrees(path: str, old: Tensor, new: Tensor, keep: Mapping[Port, Tensor]) -> bool | None:
    """Whether a layer gives what the witness gives at the channels that stay; None where that cannot be said."""
    index = next((keep[port] for port in keep if port.path == path and port.side in ("out", "through")), None)
    if index is None:
        return _same(old, new) if old.shape == new.shape else None
    axes = [axis for axis in range(1, old.ndim) if new.ndim == old.ndim and new.shape[axis] == len(index) != old.shape[axis]]
    return any(_same(old.index_select(axis, index.to(old.device)), new) for axis in axes)


def _same(old: Tensor, new: Tensor) -> bool:
    if old.shape != new.shape or not new.isfinite().all():
        return False
    scale = float(old.abs().max()) if old.numel() else 0.0
    return bool((old - new).abs().max() <= _CLOSE * scale + 1e-6) if old.numel() else True


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:160]
