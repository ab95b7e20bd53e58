"""Weights that are read from a few numbers: torch parametrizations, whose original is what training moves.

What is ours of a model is undone by `unshared`, as `plain` does for all. U numbers or rows.
"""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize

from limbeck.compress._plain import plain
from limbeck.core.errors import MismatchError

__all__ = ["Codebook", "Rows", "index_type", "layers_of", "owner", "register", "unshared"]

SHAREABLE = (nn.Linear, _ConvNd, nn.Embedding, nn.EmbeddingBag)


class Codebook(nn.Module):
    """A weight whose numbers are all from a codebook `[U]`: W = c[index], so that dL/dc_k is the sum of dL/dW over the members of k.

    Han, Mao and Dally, "Deep Compression", ICLR 2016, arXiv:1510.00149, section 3.3. With `zeros`, index 0 means a zero, which is not in the codebook and
    learns nothing, and index k means c[k - 1].
    """

    index: Tensor

    def __init__(self, index: Tensor, numbers: int, *, zeros: bool) -> None:
        super().__init__()
        self.register_buffer("index", index)
        self.numbers, self.zeros = numbers, zeros

    def forward(self, codebook: Tensor) -> Tensor:
        values = torch.cat([codebook.new_zeros(1), codebook]) if self.zeros else codebook
        return values.index_select(0, self.index.flatten().int()).view(self.index.shape)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Return the codebook nearest to a weight under this index: the means of the members."""
        flat, size = self.index.flatten().long(), self.numbers + self.zeros
        sums = torch.zeros(size, dtype=torch.float64, device=weight.device).index_add_(0, flat, weight.detach().flatten().double())
        return (sums / flat.bincount(minlength=size).clamp(min=1))[int(self.zeros) :].to(weight.dtype)


class Rows(nn.Module):
    """A weight whose rows (filters) are all from a few `[U, ...]`: W_i = r[index_i]. Where `zeros [U, ...]` is True a row has a zero, which learns nothing."""

    index: Tensor
    zeros: Tensor

    def __init__(self, index: Tensor, zeros: Tensor) -> None:
        super().__init__()
        self.register_buffer("index", index)
        self.register_buffer("zeros", zeros)

    def forward(self, rows: Tensor) -> Tensor:
        return rows.masked_fill(self.zeros, 0.0).index_select(0, self.index)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Return the rows nearest to a weight under this index: the means of the members."""
        sums = torch.zeros(self.zeros.shape, dtype=torch.float64, device=weight.device).index_add_(0, self.index, weight.detach().double())
        counts = self.index.bincount(minlength=len(self.zeros)).clamp(min=1)
        return (sums / counts.view(-1, *[1] * (weight.ndim - 1))).to(weight.dtype)


def index_type(values: int) -> torch.dtype:
    """Return the narrowest type that counts so many values."""
    return torch.uint8 if values <= 256 else torch.int16


def owner(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """Return the module that holds a parameter, and its name there."""
    path, _, last = name.rpartition(".")
    return model.get_submodule(path), last


def register(model: nn.Module, name: str, part: Codebook | Rows) -> None:
    """Make a parameter be read through a parametrization, from the numbers nearest to it."""
    module, last = owner(model, name)
    parametrize.register_parametrization(module, last, part.to(module.get_parameter(last).device))


def unshared(model: nn.Module) -> nn.Module:
    """Return a model without parametrizations: itself, or a plain copy where it has some of ours.

    Raises:
        MismatchError: it has others, which its training still needs.
    """
    found = list(_parametrizations(model))
    for name, part in found:
        if not isinstance(part, (Codebook, Rows)):
            raise MismatchError(f"{name} is computed by {type(part).__name__}, for training: finish that first (prune.finish, or a plain model)")
    return plain(model) if found else model


def _parametrizations(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for path, module in model.named_modules():
        if isinstance(module, parametrize.ParametrizationList):
            yield from ((path.replace("parametrizations.", ""), part) for part in module)


def layers_of(model: nn.Module, paths: Iterable[str] | None) -> tuple[dict[str, nn.Module], list[str]]:
    """Return the layers at or inside the paths (all, where None) whose weights can be shared, by path; and a line for each that is left out.

    Raises:
        MismatchError: a path that is not there, holds no such layer, or one whose weight is tied to another's; no such layer at all.
    """
    named = {path: module for path, module in model.named_modules() if isinstance(module, SHAREABLE)}
    names: dict[int, list[str]] = {}
    for name, value in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(value), []).append(name)
    found, left_out = {}, []
    for wanted in [""] if paths is None else paths:
        inside = {path: module for path, module in named.items() if path == wanted or path.startswith(f"{wanted}.") or not wanted}
        if not inside:
            raise MismatchError(f"{wanted or type(model).__name__} has no linear, convolutional or embedding layer to share the weights of{_choices(named)}")
        for path, module in inside.items():
            name = f"{path}.weight" if path else "weight"
            tied = [other for other in names[id(module.weight)] if other != name]
            if tied and paths is not None:
                raise MismatchError(f"{name} is the same weight as {tied[0]}, and sharing within it would part them: leave {path} out")
            if tied:
                left_out.append(f"{name} is left as it is: it is the same weight as {tied[0]}")
            else:
                found[path] = module
    if not found:
        raise MismatchError(f"{type(model).__name__} has no weight to share: {left_out[0]}")
    return found, left_out


def _choices(named: Iterable[str]) -> str:
    return f": it has {', '.join(named)}" if named else ""
