"""The curvature of the task's loss by a model's weights: its diagonal in three ways, and blocks of it that can be solved.

The loss is the mean over predictions; P weights are looked at, M of them in one block.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from limbeck.compress._method import Bench
from limbeck.core.draw import bits, key
from limbeck.core.errors import DataError, RecipeError

from ._curvature_rows import Curvature, Rows, sweep
from .saliency._asking import batches, gradients, undisturbed

__all__ = ["Block", "Curvature", "blocks", "diagonal", "exact_diagonal", "hutchinson_diagonal"]

_EXACT = 20_000
"""The most weights whose Hessian is differentiated one by one."""
_DOUBLE = 1 << 23
"""Numbers of all blocks together up to which they are summed in float64 whatever the model's precision."""


def diagonal(model: nn.Module, names: Sequence[str], bench: Bench, *, examples: int, curvature: Curvature) -> dict[str, Tensor]:
    """Return the exact diagonal of the Gauss-Newton matrix, or of the empirical Fisher matrix, in each parameter's shape.

    `h_kk = 1/N sum_n (J_n^T (d^2 loss_n / dz_n^2) J_n)_kk`, or `1/N sum_n (d loss_n / dw_k)^2`, as `sweep` says.
    """
    with undisturbed(model, names) as parameters:
        sums = {name: torch.zeros_like(parameter, requires_grad=False) for name, parameter in parameters.items()}

        def add(rows: Mapping[str, Rows]) -> None:
            for name, row in rows.items():
                sums[name] += row.squares()

        count = sweep(model, parameters, bench, examples, curvature, add)
    return {name: total / count for name, total in sums.items()}


def exact_diagonal(model: nn.Module, names: Sequence[str], bench: Bench, *, examples: int) -> dict[str, Tensor]:
    """Return the diagonal of the Hessian itself, by differentiating twice: one backward pass through the backward pass for each weight.

    Raises:
        RecipeError: more weights than that can be done for.
    """
    with undisturbed(model, names) as parameters:
        weights = sum(parameter.numel() for parameter in parameters.values())
        if weights > _EXACT:
            raise RecipeError(f"the exact Hessian takes a backward pass for each of {weights} weights, {_EXACT} at most: take hessian: gauss_newton")
        sums, count = {name: torch.zeros_like(parameter, requires_grad=False) for name, parameter in parameters.items()}, 0
        for batch in batches(bench, examples):
            losses = bench.losses(model, batch)
            count += losses.numel()
            slopes = _slopes(losses, parameters)
            for name, slope in slopes.items():
                if slope.requires_grad:
                    second = [torch.autograd.grad(each, parameters[name], retain_graph=True, allow_unused=True)[0] for each in slope.flatten()]
                    found = [torch.zeros(()) if row is None else row.flatten()[place] for place, row in enumerate(second)]
                    sums[name] += torch.stack([value.to(sums[name]) for value in found]).reshape(slope.shape)
    return {name: total / count for name, total in sums.items()}


def hutchinson_diagonal(model: nn.Module, names: Sequence[str], bench: Bench, *, examples: int, draws: int) -> dict[str, Tensor]:
    """Return an estimate of the Hessian's diagonal: the mean of `v * (H v)` over `draws` vectors v of signs for each batch.

    Bekas, Kokiopoulou and Saad, "An estimator for the diagonal of a matrix", Applied Numerical Mathematics 57, 2007; unbiased, its variance for one draw
    being `sum_{l != k} h_kl^2`.
    """
    with undisturbed(model, names) as parameters:
        sums, count = {name: torch.zeros_like(parameter, requires_grad=False) for name, parameter in parameters.items()}, 0
        for index, batch in enumerate(batches(bench, examples)):
            losses = bench.losses(model, batch)
            count += losses.numel()
            slopes = {name: slope for name, slope in _slopes(losses, parameters).items() if slope.requires_grad}
            for draw in range(draws if slopes else 0):
                signs = _signs(slopes, key(bench.seed, index, draw))
                product = gradients(torch.stack([(slope * signs[name]).sum() for name, slope in slopes.items()]).sum(), parameters, needed=(), keep=True)
                for name, value in product.items():
                    if name in signs:
                        sums[name] += signs[name] * value / draws
    return {name: total / count for name, total in sums.items()}


def _slopes(losses: Tensor, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """The gradient of the summed loss by each parameter, itself differentiable."""
    gradients(losses.sum(), parameters, keep=True)  # names the parameter that the loss does not depend on
    return dict(zip(parameters, torch.autograd.grad(losses.sum(), list(parameters.values()), create_graph=True), strict=True))


def _signs(like: Mapping[str, Tensor], with_key: int) -> dict[str, Tensor]:
    """One sign for each number, a pure function of the key."""
    found: dict[str, Tensor] = {}
    for index, (name, tensor) in enumerate(like.items()):
        hashed = bits(torch.arange(tensor.numel(), device=tensor.device), key(with_key, index))
        found[name] = torch.where(hashed > 0, 1.0, -1.0).to(tensor.dtype).reshape(tensor.shape)
    return found


@dataclass
class Block:
    """Some of the weights and the curvature among them; what lies between two blocks is taken for zero.

    `places`: parameter -> flat places in it, the block's weights being these in turn; `matrix [M, M]`: the curvature, damped once it is `ready`.
    """

    places: Mapping[str, Tensor]
    matrix: Tensor

    def take(self, values: Mapping[str, Tensor]) -> Tensor:
        """Return the block's numbers of tensors in the parameters' shapes, `[M]` in float64."""
        return torch.cat([values[name].detach().flatten()[places] for name, places in self.places.items()]).double()

    def put(self, numbers: Tensor, into: Mapping[str, Tensor]) -> None:
        """Write the block's numbers `[M]` to their places, in place."""
        for (name, places), part in zip(self.places.items(), numbers.split([len(places) for places in self.places.values()]), strict=True):
            into[name].detach().put_(places, part.to(into[name].dtype))

    def alone(self, weights: Tensor) -> Tensor:
        """Return `w_q^2 / (2 [H^-1]_qq)` for each of the weights `[M]`: what it costs when it goes, and goes alone."""
        return weights.square() / (2 * self._inverse().diagonal())

    def in_turn(self, weights: Tensor) -> Tensor:
        """Return what each of the weights `[M]` costs when its turn comes: the cheapest goes, the others make up for it, and the next cheapest is found.

        Costs rise in the order in which they go, so that the k lowest are the first k: one that is cheaper than the one before it is told as dear as that.
        """
        inverse, now = self._inverse(), weights.clone()
        costs, gone = torch.zeros_like(weights), torch.zeros(len(weights), dtype=torch.bool, device=weights.device)
        last = 0.0
        for _ in range(len(weights)):
            each = (now.square() / (2 * inverse.diagonal())).masked_fill(gone, math.inf)
            q = int(each.argmin())
            last = max(float(each[q]), math.nextafter(last, math.inf))
            column, own = inverse[:, q].clone(), inverse[q, q].clone()
            now -= column * (now[q] / own)
            inverse -= torch.outer(column, column) / own
            inverse.diagonal()[q] = 1.0  # zero, but for rounding: it is not asked again
            costs[q], gone[q] = last, True
        return costs

    def _inverse(self) -> Tensor:
        return torch.cholesky_inverse(torch.linalg.cholesky(self.matrix.double()))

    def without(self, weights: Tensor, removed: Tensor) -> Tensor:
        """Return the weights `[M]` that make the quadratic form least when those `removed` (True) are zero.

        With Q what goes and R what stays: `w_R + H_RR^-1 H_RQ w_Q`, which minimises `dw^T H dw` under `dw_Q = -w_Q`; for one weight it is eq. 5 of Hassibi and
        Stork, `dw = -w_q / [H^-1]_qq H^-1 e_q`.
        """
        stays, moved = ~removed, torch.zeros_like(weights)
        if stays.any():
            rows = self.matrix[stays].double()
            pull = (rows[:, removed] @ weights[removed]).unsqueeze(1)
            moved[stays] = weights[stays] + torch.cholesky_solve(pull, torch.linalg.cholesky(rows[:, stays])).squeeze(1)
        return moved


def blocks(model: nn.Module, names: Sequence[str], bench: Bench, *, examples: int, curvature: Curvature, size: int, damping: float) -> list[Block]:
    """Return the curvature among the weights that are not zero, `1/N sum_n g_n g_n^T + l I`, in one block where they are `size` or fewer.

    Otherwise each parameter is cut by its rows: as many whole rows (all weights of an output) as fit, or parts of one that does not. `l` is `damping` times the
    mean of the diagonal over all blocks, so that the inverse exists.
    """
    with undisturbed(model, names) as parameters:
        made = _cut(parameters, size)

        def add(rows: Mapping[str, Rows]) -> None:
            flat = {name: row.each().flatten(1) for name, row in rows.items()}
            for block in made:
                part = torch.cat([flat[name][:, places] for name, places in block.places.items()], 1).to(block.matrix.dtype)
                block.matrix.addmm_(part.T, part)

        count = sweep(model, parameters, bench, examples, curvature, add)
    trace = sum(float(block.matrix.diagonal().sum()) for block in made) / count
    if not math.isfinite(trace):
        raise DataError("the curvature of the loss is not finite: the model's weights, its loss or the data hold NaN or infinity, or the loss overflows")
    level = damping * trace / max(1, sum(len(block.matrix) for block in made))
    for block in made:
        block.matrix /= count
        block.matrix.diagonal().add_(max(level, torch.finfo(block.matrix.dtype).tiny ** 0.5))
    return made


def _cut(parameters: Mapping[str, nn.Parameter], size: int) -> list[Block]:
    """Empty blocks of at most `size` weights that are not zero."""
    live = {name: parameter.detach().flatten().nonzero().squeeze(1) for name, parameter in parameters.items()}
    live = {name: places for name, places in live.items() if len(places)}
    if sum(map(len, live.values())) <= size:
        groups = [live] if live else []
    else:
        groups = [{name: part} for name, places in live.items() for part in _rows(places, parameters[name], size)]
    numbers = sum(sum(map(len, group.values())) ** 2 for group in groups)
    like = next(iter(parameters.values()))
    dtype = torch.float64 if numbers <= _DOUBLE or like.dtype == torch.float64 else torch.float32
    return [Block(group, torch.zeros([sum(map(len, group.values()))] * 2, dtype=dtype, device=like.device)) for group in groups]


def _rows(places: Tensor, parameter: Tensor, size: int) -> list[Tensor]:
    """Cut flat places into runs of at most `size`, at the ends of rows where a row fits."""
    of_row = (places // max(1, parameter[0].numel())).tolist()
    counts: dict[int, int] = {}
    for row in of_row:
        counts[row] = counts.get(row, 0) + 1
    lengths, filled = [], 0
    for count in counts.values():
        if filled and filled + count > size:
            lengths.append(filled)
            filled = 0
        lengths += [size] * (count // size) if count > size else []
        filled += count % size if count > size else count
    return list(places.split([*lengths, filled] if filled else lengths))
