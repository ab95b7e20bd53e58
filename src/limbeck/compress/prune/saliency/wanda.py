"""Wanda: a weight's magnitude times the norm of what it is multiplied with.

Sun et al., "A Simple and Effective Pruning Approach for Large Language Models", ICLR 2024, arXiv:2306.11695, eq. 1.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from limbeck.compress._method import Bench, Saliency
from limbeck.core.errors import MismatchError

from ._asking import batches, check_count, finite, parameters_of, undisturbed

__all__ = ["Wanda"]

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Wanda(Saliency):
    """`|w_ij| ||x_j||_2`, x_j being all that input j of the layer was over the examples; no gradient is needed.

    The paper compares weights of one output alone, `scope: row`, since the numbers of two layers do not mean the same. In a convolution the weight of each
    place of the kernel has its own norm: over what lies under it at every position. Several cost their sum. It reads weights of linear and convolutional
    layers, and says nothing about biases.

    Args:
        examples: training examples that are read.

    Raises:
        RecipeError: fewer than one example.
    """

    def __init__(self, *, examples: int = 1000) -> None:
        self.examples = check_count("examples", examples)

    def contributions(self, model: nn.Module, names: Sequence[str], bench: Bench) -> dict[str, Tensor]:
        layers: dict[str, nn.Module] = {}
        for name in parameters_of(model, names):
            path, _, kind = name.rpartition(".")
            layer = layers[name] = model.get_submodule(path)
            if kind != "weight" or not isinstance(layer, _LAYERS):
                raise MismatchError(f"wanda says nothing about {name!r} of a {type(layer).__name__}: it reads weights of linear and convolutional layers alone")
        with undisturbed(model, names) as parameters:
            norms = _squares(model, layers, bench, self.examples)
            found = {name: parameters[name].detach().abs() * norms[name].sqrt() for name in names}
        return finite(found, "the Wanda score")

    def total(self, contributions: Tensor) -> Tensor:
        return contributions.sum(1)


def _squares(model: nn.Module, layers: dict[str, nn.Module], bench: Bench, examples: int) -> dict[str, Tensor]:
    """The sum of squares of what each weight is multiplied with: the slope, by the weight, of the sum of what the layer gives for squared inputs."""
    sums: dict[str, Tensor] = {}
    asking = False  # the layer is called within its own hook

    def reader(name: str) -> Any:
        def read(layer: nn.Module, given: tuple[Tensor, ...]) -> None:
            nonlocal asking
            if asking:
                return
            asking = True
            weight = torch.ones_like(layer.get_parameter("weight")).requires_grad_()
            with torch.enable_grad():
                gave = functional_call(layer, {"weight": weight}, (given[0].detach().square(),))
                slope = torch.autograd.grad(gave.sum(), weight)[0]
            asking = False
            sums[name] = sums.get(name, torch.zeros_like(slope)) + slope

        return read

    handles = [layer.register_forward_pre_hook(reader(name)) for name, layer in layers.items()]
    try:
        with torch.no_grad():
            for batch in batches(bench, examples):
                bench.task.forward(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    if missing := [name for name in layers if name not in sums]:
        raise MismatchError(f"the layer of {missing[0]!r} was never called, so that its inputs are not known: leave it out of what is pruned (spare)")
    return sums
