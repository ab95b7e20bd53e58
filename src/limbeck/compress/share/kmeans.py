"""Weight sharing: a layer's weights are all from one small codebook.

Han, Mao and Dally, "Deep Compression: Compressing Deep Neural Networks with Pruning, Trained Quantization and Huffman Coding", ICLR 2016, arXiv:1510.00149,
section 3; weighed by curvature: Choi, El-Khamy and Lee, "Towards the Limit of Network Quantization", ICLR 2017, arXiv:1612.01543.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from limbeck.compress._method import Bench, Operated, Saliency, Surgery
from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.lookup import build, full_name

from ._cluster import INITS, MOST_EXACT, Init, assign, kmeans, optimum
from ._shared import Codebook, index_type, layers_of, owner, register, unshared

__all__ = ["KMeans"]

_CURVED = ("prune.saliency.obd", "prune.saliency.fisher")
_FLOOR = 1e-3
"""Of the mean curvature: the least that a weight's distance is weighed by."""


@dataclass(frozen=True)
class _Shared:
    """A parameter, the index of its numbers `[...]` and the codebook `[U]` they are from; `error`: how far they moved, of how long they are."""

    name: str
    index: Tensor
    codebook: Tensor
    zeros: bool
    error: float


class KMeans(Surgery):
    """Cluster each layer's weights, make every weight its cluster's centroid, and let training move the centroids alone.

    Weights that are zero stay zero and are no cluster's: 2^bits centroids are for the others. A layer reads W = c[index], a torch parametrization, so that the
    gradient of a centroid is the sum of its members' (section 3.3 of the paper); the clusters never change. `share.lbk` writes what comes of it.

    Args:
        bits: of an index, 1 to 14, for every linear, convolutional and embedding layer; or by path, {layer1: 8, head: 5}, for what is there alone.
        biases: bits for the same layers' biases, which else stay as they are.
        init: where k-means begins: linear (evenly over a layer's range), density (evenly over its distribution), random; or exact, which is no k-means but the
            least squared error there is, for layers of a few hundred thousand weights.
        curvature: obd or fisher, or one with options, {kind: obd, examples: 1000}: each weight's squared distance counts as often as the loss is curved there.

    Raises:
        RecipeError: bits out of range, another init or curvature, too many weights for exact.
        MismatchError: a layer that is not there or is tied to another, numbers that are not finite, a model prepared for another training.
    """

    lasts = False

    def __init__(
        self,
        *,
        bits: int | dict[str, int] = 5,
        biases: int | None = None,
        init: Literal["linear", "density", "random", "exact"] = "linear",
        curvature: str | dict[str, Any] | None = None,
    ) -> None:
        if bits == {}:
            raise RecipeError("bits names no layer: give a number for all, or one by path")
        for where, value in (*(bits.items() if isinstance(bits, dict) else (("bits", bits),)), *(() if biases is None else (("biases", biases),))):
            if not 1 <= value <= 14:
                raise RecipeError(f"{where} is {value}; an index has 1 to 14 bits")
        if init not in (*INITS, "exact"):
            raise RecipeError(f"init is {init!r}; it is {', '.join(INITS)} or exact")
        self.bits, self.biases, self.curvature = bits, biases, _saliency(curvature)
        self.init: Init | Literal["exact"] = init

    def operate(self, model: nn.Module, bench: Bench) -> Operated:
        made = unshared(model)
        layers, said = layers_of(made, self.bits if isinstance(self.bits, dict) else None)
        wanted = dict(self._wanted(layers))
        weighed = self._curvature(made, [name for name in wanted if name.endswith("weight")], bench)
        shared, rows = [], []
        for number, (name, bits) in enumerate(wanted.items()):
            value = made.get_parameter(name).detach()
            found = self._share(name, value, bits, weighed.get(name), bench.seed + number)
            if found is None:
                said.append(f"{name} is left as it is: its {int(value.unique().numel())} distinct numbers are no more than 2^{bits}")
            else:
                shared.append(found)
                nonzero = int(value.count_nonzero())
                rows.append({"name": name, "weights": value.numel(), "nonzero": nonzero, "centroids": found.codebook.numel(), "relative_error": found.error})
        if not shared:
            raise MismatchError(f"nothing is to be shared: {said[-1]}; take fewer bits")
        for one in shared:
            _attach(made, one)
        numbers, weights = sum(row["centroids"] for row in rows), sum(row["weights"] for row in rows)
        told = [f"{weights:,} weights share {numbers:,} numbers; training moves these alone", *said, *_others(made, shared)]
        record = {"shared": {one.name: {"numbers": one.codebook.numel(), "zeros": one.zeros} for one in shared}}
        return Operated(made, record, {"shared_weights": weights, "centroids": numbers}, rows, told)

    def _wanted(self, layers: Mapping[str, nn.Module]) -> Iterator[tuple[str, int]]:
        """Give each parameter to share, with its bits: those of the longest path that it is in."""
        for path, module in layers.items():
            dot = f"{path}." if path else ""
            if isinstance(self.bits, dict):
                yield f"{dot}weight", self.bits[max((one for one in self.bits if f"{path}.".startswith(f"{one}.") or not one), key=len)]
            else:
                yield f"{dot}weight", self.bits
            if self.biases is not None and isinstance(getattr(module, "bias", None), nn.Parameter):
                yield f"{dot}bias", self.biases

    def _curvature(self, model: nn.Module, names: list[str], bench: Bench) -> dict[str, Tensor]:
        """The curvature of the loss at each weight, out of what a second-order saliency says, which is 1/2 h w^2."""
        if self.curvature is None:
            return {}
        found: dict[str, Tensor] = {}
        for name, told in self.curvature.contributions(model, names, bench).items():
            value = model.get_parameter(name).detach()
            found[name] = torch.where(value == 0, 0.0, 2 * told.double().clamp(min=0) / value.double().square())
            if not found[name].any():
                raise MismatchError(f"the loss is not curved at any weight of {name}: leave curvature out")
        return found

    def _share(self, name: str, value: Tensor, bits: int, curvature: Tensor | None, seed: int) -> _Shared | None:
        """Cluster a parameter's numbers; None where it has no more distinct ones than clusters."""
        if not value.isfinite().all():
            raise MismatchError(f"{name} holds numbers that are not finite: share the weights of a model that trained well")
        flat = value.flatten().cpu().double().numpy()
        live = np.flatnonzero(flat)
        numbers, k, zeros = flat[live], 1 << bits, len(live) < len(flat)
        distinct = len(np.unique(numbers))
        if distinct <= k:
            return None
        weights = None if curvature is None else curvature.flatten().cpu().numpy()[live]
        weights = None if weights is None else weights + _FLOOR * weights.mean()
        if self.init == "exact":
            if distinct * k > MOST_EXACT:
                raise RecipeError(f"{name} has {distinct:,} distinct numbers for {k} centroids; exact does {MOST_EXACT:,} of their product: take linear")
            centroids = optimum(numbers, k, weights=weights)
        else:
            centroids = kmeans(numbers, k, init=self.init, weights=weights, seed=seed)
        index, place = np.zeros(len(flat), np.int64), assign(numbers, centroids)
        index[live] = place + zeros
        error = float(np.linalg.norm(numbers - centroids[place]) / np.linalg.norm(numbers))
        typed = torch.from_numpy(index).to(index_type(len(centroids) + zeros)).view(value.shape)
        return _Shared(name, typed, torch.from_numpy(centroids).to(value.dtype), zeros, error)

    @staticmethod
    def rebuild(model: nn.Module, record: Mapping[str, Any]) -> nn.Module:
        made = unshared(model)
        for name, told in record["shared"].items():
            shape, size = made.get_parameter(name).shape, told["numbers"] + told["zeros"]
            register(made, name, Codebook(torch.zeros(shape, dtype=index_type(size)), told["numbers"], zeros=told["zeros"]))
        return made


def _saliency(told: str | dict[str, Any] | None) -> Saliency | None:
    if told is None:
        return None
    options = {"kind": told} if isinstance(told, str) else dict(told)
    if not isinstance(kind := options.pop("kind", None), str) or full_name("compress", kind) not in _CURVED:
        raise RecipeError(f"curvature is {kind!r}; it is obd or fisher, which know the curvature of the loss")
    return build("compress", kind, options)


def _attach(model: nn.Module, shared: _Shared) -> None:
    """Give a parameter its centroids' values, and read it through its index from then on."""
    module, last = owner(model, shared.name)
    parameter, values = module.get_parameter(last), torch.cat([shared.codebook.new_zeros(1), shared.codebook]) if shared.zeros else shared.codebook
    with torch.no_grad():
        parameter.copy_(values[shared.index.long()])
    register(model, shared.name, Codebook(shared.index, shared.codebook.numel(), zeros=shared.zeros))


def _others(model: nn.Module, shared: list[_Shared]) -> list[str]:
    """A line about the matrices that no layer we know holds."""
    known = {one.name.removesuffix("weight") + "parametrizations.weight.original" for one in shared}
    other = [(name, value.numel()) for name, value in model.named_parameters() if value.ndim > 1 and name not in known]
    return [f"{sum(size for _, size in other):,} weights are not shared: {', '.join(name for name, _ in other)}"] if other else []
