"""Mixtures of two training inputs, labelled by the teacher.

Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018, arXiv:1710.09412, eq. 1.
Yun et al., "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features", ICCV 2019, arXiv:1905.04899, eq. 1 and 2.

Shapes: N examples of a batch, C channels, H rows, W columns.
"""

import math
from typing import Literal, Unpack

import torch
from torch import Tensor

from limbeck.core.draw import below, bits, key, uniform
from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.task import Batch, How, Loader, Task
from limbeck.core.transfer import Transfer

from ._loaders import Changed, needed

__all__ = ["Mixed", "beta_table", "cut", "mixed", "partners"]

_PAIRS, _SHARES, _BOXES, _LABELS = 0x7061697273, 0x736861726573, 0x626F786573, 0x6C6162656C73
_STEPS = 4096


def beta_table(alpha: float) -> Tensor:
    """Return 4,096 equally likely values of Beta(alpha, alpha), the midpoints of its quantiles, float32."""
    from scipy.special import betaincinv

    return torch.from_numpy(betaincinv(alpha, alpha, (torch.arange(_STEPS, dtype=torch.float64).numpy() + 0.5) / _STEPS)).float()


def partners(ids: Tensor, with_key: int) -> Tensor:
    """Return for each of `ids [N]` the place of another one of them `[N]`: the next in a round whose order is the hash of the ids."""
    order = bits(ids, with_key).argsort(stable=True)
    return torch.empty_like(order).index_put_((order,), order.roll(-1))


def mixed(inputs: Tensor, others: Tensor, share: Tensor) -> Tensor:
    """Return `share x + (1 - share) x'` of `inputs [N, ...]`, x' that of place `others [N]`, `share [N]` (Zhang et al. 2018, eq. 1)."""
    weight = share.to(inputs.dtype).view(-1, *[1] * (inputs.dim() - 1))
    return weight * inputs + (1 - weight) * inputs[others]


def cut(inputs: Tensor, others: Tensor, share: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Return `inputs [N, C, H, W]` with a box of those of place `others [N]` in each, and the share of pixels that are its own `[N]`.

    The box has sides `H sqrt(1 - share)` and `W sqrt(1 - share)`, rounded down to an even number, and its middle at `rows [N]` and `columns [N]`; what lies
    outside is cut off, and the share is counted again (Yun et al. 2019, eq. 2).
    """
    height, width = inputs.shape[2:]
    size = (1 - share).clamp(min=0).sqrt()
    inside: list[Tensor] = []
    for length, middle in ((height, rows), (width, columns)):
        half = (length * size).long().div(2, rounding_mode="floor")
        places = torch.arange(length, device=inputs.device)
        inside.append((places >= (middle - half).unsqueeze(1)) & (places < (middle + half).unsqueeze(1)))
    box = inside[0].unsqueeze(2) & inside[1].unsqueeze(1)  # [N, H, W]
    return torch.where(box.unsqueeze(1), inputs[others], inputs), 1 - box.flatten(1).float().mean(1)


class Mixed(Transfer):
    """Mixtures of two training inputs of a batch, about which the teacher is asked: mixup and cutmix.

    `x~ = lambda x + (1 - lambda) x'`, or x with a box of x' whose area is 1 - lambda; `lambda ~ Beta(alpha, alpha)` for each example. The partner x' is another
    example of the batch of that device, so that the mixture depends on the batch's size, and neither a recorded teacher (`views`) nor a pass in order can be
    had. The batch says what was mixed: `partner [N]`, the other's id, and `share [N]`, lambda.

    A mixture has no label of its own. `labels: drawn` gives it x's with probability lambda and else its partner's, the mean of whose cross-entropy is the
    papers' `lambda L(y) + (1 - lambda) L(y')`; `dominant` the label of the larger part; `none` no label at all, for objectives that ask the teacher alone.
    Zhang et al. 2018, arXiv:1710.09412, eq. 1; Yun et al. 2019, arXiv:1905.04899, eq. 1; Beyer et al. 2022, arXiv:2106.05237, for distilling on mixtures.

    Args:
        method: mixup or cutmix (images alone).
        alpha: of the Beta distribution: 1 is uniform, less keeps mixtures near one of the two.
        labels: drawn, dominant or none.
        portion: of the examples that are mixed; the others stay.

    Raises:
        RecipeError: numbers that cannot be meant.
        MismatchError: inputs that cannot be mixed, batches without ids, or a teacher that knows some draws alone.
    """

    def __init__(
        self,
        *,
        method: Literal["mixup", "cutmix"] = "mixup",
        alpha: float = 1.0,
        labels: Literal["drawn", "dominant", "none"] = "drawn",
        portion: float = 1.0,
    ) -> None:
        if not (math.isfinite(alpha) and alpha > 0) or not 0 < portion <= 1:
            raise RecipeError(f"alpha is {alpha:g} and portion is {portion:g}: above zero, and portion at most 1")
        self.method, self.alpha, self.labels, self.portion = method, alpha, labels, portion

    def loader(self, task: Task, **how: Unpack[How]) -> Loader:
        if how.get("views") is not None or how.get("whole"):
            raise MismatchError(
                "a mixture depends on who else is in the batch, so that what a teacher says of it cannot be recorded: ask the teacher itself "
                "({kind: frozen}), or take another transfer set"
            )
        seed, table = how.get("seed", 0), beta_table(self.alpha)

        def change(batch: Batch, view: int) -> Batch:
            return self._mix(batch, seed, view, table)

        return Changed(task.loader("train", **how), task, change, None)

    def _mix(self, batch: Batch, seed: int, epoch: int, table: Tensor) -> Batch:
        needed(batch, f"{self.method}", "id", *(() if self.labels == "none" else ("label",)))
        x, ids = batch["input"], batch["id"]
        if not x.is_floating_point() or (self.method == "cutmix" and x.dim() != 4):
            wants = "images [N, C, H, W]" if self.method == "cutmix" else "real numbers"
            raise MismatchError(f"{self.method} needs inputs of {wants}, and the batch's are {x.dtype} {list(x.shape)}: take {{kind: real}}")
        others = partners(ids, key(seed, epoch, _PAIRS))
        drawn = bits(ids, key(seed, epoch, _SHARES))
        share = table.to(x.device)[below(drawn, _STEPS, 1)]
        share = torch.where(uniform(drawn, 0) < self.portion, share, 1.0)
        if self.method == "mixup":
            made = mixed(x, others, share)
        else:
            place = bits(ids, key(seed, epoch, _BOXES))
            made, share = cut(x, others, share, below(place, x.shape[2], 1), below(place, x.shape[3], 0))
        found = {**batch, "input": made, "partner": ids[others], "share": share}
        label = found.pop("label", None)
        if self.labels == "none" or label is None:
            return found
        own = uniform(bits(ids, key(seed, epoch, _LABELS)), 1) < share if self.labels == "drawn" else share >= 0.5
        return {**found, "label": label[torch.where(own, torch.arange(len(ids), device=ids.device), others)]}
