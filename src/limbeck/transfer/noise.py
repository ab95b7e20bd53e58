"""The training inputs with noise on them.

Shapes: N examples of a batch, D values of an input.
"""

import math
from typing import Unpack

import torch
from torch import Tensor

from limbeck.core.draw import bits, gaussian, key, uniform
from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.task import Batch, How, Loader, Task
from limbeck.core.transfer import Transfer

from ._loaders import Changed, needed

__all__ = ["Noise", "noisy"]

_VALUES, _INPUTS = 0x6E6F697365, 0x6A6974746572


def noisy(inputs: Tensor, ids: Tensor, *, deviation: float, jitter: float, seed: int, view: int) -> Tensor:
    """Return `(1 + jitter a) x + jitter b + deviation n` of `inputs [N, ...]` with `ids [N]`: n standard normal for each value, a and b uniform in -1..1.

    Draws are the hash of (seed, view, id), and of the value's place: neither order nor rank nor who else is in the batch matters.
    """
    flat = inputs.flatten(1)
    if jitter:
        hashed = bits(ids, key(seed, view, _INPUTS))
        scale, offset = (jitter * (2 * uniform(hashed, half) - 1).to(inputs.dtype).unsqueeze(1) for half in (1, 0))
        flat = (1 + scale) * flat + offset
    if deviation:
        places = torch.arange(flat.shape[1], device=ids.device)
        noise = gaussian(bits(ids.unsqueeze(1) * flat.shape[1] + places, key(seed, view, _VALUES)))
        flat = flat + deviation * noise.to(inputs.dtype)
    return flat.view_as(inputs)


class Noise(Transfer):
    """The training inputs with noise on them; the teacher is asked about the noisy input, and labels stay.

    `x' = (1 + jitter a) x + jitter b + deviation n`, n standard normal for each value, a and b uniform in -1..1 for each example. Values are those of the input
    as the model sees it: where a task brings its inputs to deviation 1, a `deviation` of 0.1 is a tenth of that.
    Bishop 1995, "Training with noise is equivalent to Tikhonov regularization"; Sau & Balasubramanian 2016, arXiv:1610.09650, for a noisy teacher.

    Args:
        deviation: of the normal noise on each value.
        jitter: how far each example's contrast and brightness may move.

    Raises:
        RecipeError: noise of no size.
        MismatchError: inputs that are no real numbers, or batches without ids.
    """

    def __init__(self, *, deviation: float = 0.1, jitter: float = 0.0) -> None:
        if not all(math.isfinite(size) and size >= 0 for size in (deviation, jitter)) or deviation == jitter == 0:
            raise RecipeError(f"deviation is {deviation:g} and jitter is {jitter:g}: neither may be negative, and one must be above zero")
        self.deviation, self.jitter = deviation, jitter

    def loader(self, task: Task, **how: Unpack[How]) -> Loader:
        seed = how.get("seed", 0)

        def change(batch: Batch, view: int) -> Batch:
            needed(batch, "noise", "id")
            if not batch["input"].is_floating_point():
                raise MismatchError(f"noise needs inputs of real numbers, and the batch's are {batch['input'].dtype}: take {{kind: real}}")
            return {**batch, "input": noisy(batch["input"], batch["id"], deviation=self.deviation, jitter=self.jitter, seed=seed, view=view)}

        return Changed(task.loader("train", **how), task, change, how.get("views"))
