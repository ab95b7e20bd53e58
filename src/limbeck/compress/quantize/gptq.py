"""Weights rounded one after the other, those that are left making up for the error of those that are done.

Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", ICLR 2023, arXiv:2210.17323, algorithm 1.
With H = X X^T over a layer's inputs and U^T U = H^-1, U upper triangular: column j becomes q_j, e = (w_j - q_j) / U_jj, and each column k after it loses
e U_jk.

Shapes: P groups of a convolution (1 else), R output channels of each, K weights of each, G groups of weights that share a step.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.compress._method import Bench, Operated, Surgery
from limbeck.core.errors import DataError, MismatchError, RecipeError

from ._fake import Fake, fake_layers, weight_high
from ._integer import make_blank, make_integer
from ._observe import best_steps, chosen, watched
from ._observe_flow import first_batch, flow_of
from .convert import grouped_steps, store, stored
from .prepare import check_layers, check_rounding

__all__ = ["GPTQ", "columns", "gptq_codes", "squared_error"]

_BLOCK = 128


class GPTQ(Surgery):
    """Store weights as integers, rounded so that what each layer gives on real inputs changes least.

    Of a float model: weights alone are rounded. Of a prepared one, not trained since: on its own steps, its inputs rounded, in the place of `quantize.convert`.
    Layers are rounded in the order in which they run, each with the inputs that the rounded ones before it give.

    Args:
        weights: bits of a weight of a float model, 2 to 8; left out for a prepared one, which knows its own.
        group: weights of one output channel that share a step, of a float model; a whole channel where it is left out, or where it does not divide a layer's.
        damping: what is added to the diagonal of H, as a share of its mean.
        examples: training inputs that H is the sum over.
        only: the layers that are rounded, by path; all where it is left out.
        keep_float: layers that stay float, by path.
    """

    def __init__(
        self,
        *,
        weights: int | None = None,
        group: int | None = None,
        damping: float = 0.01,
        examples: int = 512,
        only: Sequence[str] | None = None,
        keep_float: Sequence[str] = (),
    ) -> None:
        check_rounding(weights, group, only, keep_float)
        if not 0 < damping < torch.inf:
            raise RecipeError(f"damping must be above zero, not {damping:g}")
        if examples < 1:
            raise RecipeError(f"examples must be 1 or more, not {examples}")
        self.weights, self.group, self.damping, self.examples = weights, group, damping, examples
        self.only, self.keep_float = only, tuple(keep_float)

    def operate(self, model: nn.Module, bench: Bench) -> Operated:
        """Return the model with stored integers.

        Raises:
            MismatchError: neither a prepared model nor bits for a float one, or both; a model that is converted already.
            DataError: weights or inputs that are not finite; a layer that reads zeros alone.
            RecipeError: a layer that is not there.
        """
        flow = flow_of(model, bench.task, first_batch(bench))
        prepared, said = set(fake_layers(model)), []
        if bool(prepared) == (self.weights is not None):
            way = "it is prepared: leave `weights` out" if prepared else "it is not prepared: say how many bits its weights get (weights: 4)"
            raise MismatchError(f"the model cannot be rounded so: {way}")
        order = list(dict.fromkeys(step.path for step in flow.steps if step.path is not None))
        if self.weights is None:
            layers = [path for path in order if path in prepared]
            if silent := sorted(prepared - set(order)):
                raise MismatchError(f"{', '.join(silent)} does not run by itself on the training inputs: convert the model (quantize.convert) instead")
        else:
            able, said = check_layers(model, flow)
            layers = chosen(able, self.only, self.keep_float)
        made = copy.deepcopy(model)
        errors: dict[str, dict[str, float]] = {}
        for path in layers:
            errors[path], more = self._round(path, made, bench)
            said += more
        done = stored(made, model, said)
        rows = [dict(row) | errors[row["name"]] for row in done.layers]
        return Operated(made, done.record, done.metrics, rows, done.said)

    @torch.no_grad()
    def _round(self, path: str, model: nn.Module, bench: Bench) -> tuple[dict[str, float], list[str]]:
        """Round one layer of a model, in place; return its error beside that of rounding to the nearest, and what is to be said."""
        layer = model.get_submodule(path)
        hessian = self._hessian(path, model, layer, bench)
        weight, parts = layer.get_parameter("weight").detach(), len(hessian)
        rows = weight.reshape(parts, len(weight) // parts, -1)  # [P, R, K]
        if isinstance(layer, Fake):
            bits, said = layer.bits, []
            nearest = layer.weight_step().detach().flatten().expand(len(weight))[:, None]
        else:
            assert self.weights is not None
            bits = self.weights
            nearest, said = grouped_steps(path, weight, weight_high(bits), self.group)
        fixed = nearest.reshape(parts, -1, nearest.shape[1])  # [P, R, G]
        high = weight_high(bits)
        codes, steps = gptq_codes(rows, hessian, fixed, high, damping=self.damping, renew=nearest.shape[1] > 1)
        near = torch.clamp(rows.unflatten(2, (fixed.shape[2], -1)) / fixed[..., None], -high, high).round().flatten(2)
        whole = squared_error(rows, hessian)
        figures = {
            "error": squared_error(rows - _floats(codes, steps), hessian) / whole,
            "error_nearest": squared_error(rows - _floats(near, fixed), hessian) / whole,
        }
        if isinstance(layer, Fake):
            store(layer, codes.view_as(weight))
        else:
            bias = layer.bias
            assert bias is None or isinstance(bias, Tensor)
            make_integer(layer, codes.view_as(weight), steps.flatten(0, 1), bits, bias)
        return figures, said

    def _hessian(self, path: str, model: nn.Module, layer: nn.Module, bench: Bench) -> Tensor:
        """Return the sum of x x^T over a layer's inputs, `[P, K, K]` in float64."""
        sums: list[Tensor] = []

        def hear(layer: nn.Module, given: Tensor, _output: Tensor, _share: float) -> None:
            seen = layer.input(given) if isinstance(layer, Fake) and layer.input is not None else given
            x = columns(layer, seen).double()
            sums[:] = [x @ x.mT + (sums[0] if sums else 0)]

        watched(model, bench, self.examples, hear, [layer])
        if not sums:
            raise MismatchError(f"{path} does not run by itself on the training inputs: it cannot be rounded by what it reads")
        if not sums[0].isfinite().all():
            raise DataError(f"{path} reads numbers that are not finite on the calibration inputs: mend the data or the model before it is quantized")
        if not sums[0].any():
            raise DataError(f"{path} reads zeros alone on the {self.examples} calibration inputs: leave it out (keep_float: [{path}])")
        return sums[0]

    @staticmethod
    def rebuild(model: nn.Module, record: Mapping[str, Any]) -> nn.Module:
        """Return the model with the same layers of stored integers, all zero."""
        for path, told in record["layers"].items():
            make_blank(model.get_submodule(path), told)
        return model


def columns(layer: nn.Module, x: Tensor) -> Tensor:
    """Return what a layer multiplies its weights with, `[P, K, M]`: a column for each place and example."""
    if isinstance(layer, nn.Linear):
        return x.flatten(0, -2).mT[None] if x.ndim > 1 else x[None, :, None]
    assert isinstance(layer, (nn.Conv1d, nn.Conv2d))
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    padded = F.pad(x, layer._reversed_padding_repeated_twice, mode)
    size, stride, dilation = tuple(layer.kernel_size), tuple(layer.stride), tuple(layer.dilation)
    if isinstance(layer, nn.Conv1d):
        padded, size, stride, dilation = padded.unsqueeze(-2), (1, *size), (1, *stride), (1, *dilation)
    patches = F.unfold(padded, size, dilation, 0, stride)  # [N, P K, L]
    return patches.transpose(0, 1).flatten(1).unflatten(0, (layer.groups, -1))


def squared_error(weight: Tensor, hessian: Tensor) -> float:
    """Return sum over X of |W x|^2 = tr(W H W^T), `weight [P, R, K]`, `hessian [P, K, K]`."""
    return torch.einsum("prk,pkl,prl->", weight.double(), hessian, weight.double()).item()


def _floats(codes: Tensor, steps: Tensor) -> Tensor:
    return (codes.unflatten(2, (steps.shape[2], -1)) * steps[..., None]).flatten(2)


def gptq_codes(weight: Tensor, hessian: Tensor, steps: Tensor, high: int, *, damping: float = 0.01, renew: bool = False) -> tuple[Tensor, Tensor]:
    """Return codes `[P, R, K]` of `weight [P, R, K]` and their steps `[P, R, G]`.

    With `renew`, the steps of each group are chosen anew when its turn comes, for the weights as they were changed until then.

    Raises:
        MismatchError: H, damped, that cannot be inverted.
    """
    parts, rows, each = weight.shape
    eye = torch.eye(each, dtype=torch.float64, device=weight.device)
    damped = hessian + damping * hessian.diagonal(dim1=1, dim2=2).mean(1)[:, None, None] * eye
    lower, failed = torch.linalg.cholesky_ex(damped)
    if failed.any():
        raise MismatchError(f"X X^T of {each} inputs cannot be inverted with damping {damping:g}: raise it, or give more examples")
    upper = torch.linalg.cholesky(torch.cholesky_inverse(lower), upper=True)  # [P, K, K]
    left, codes, steps = weight.double().clone(), torch.zeros_like(weight), steps.clone()
    group = each // steps.shape[2]
    block = group if renew else min(_BLOCK, each)
    for start in range(0, each, block):
        stop = min(start + block, each)
        if renew:
            steps[:, :, start // group] = best_steps(left[:, :, start:stop].flatten(0, 1).to(weight.dtype), high).view(parts, rows)
        lost = torch.zeros(parts, rows, stop - start, dtype=torch.float64, device=weight.device)
        for j in range(start, stop):
            step = steps[:, :, j // group].double()
            codes[:, :, j] = code = torch.clamp(left[:, :, j] / step, -high, high).round().to(weight.dtype)
            lost[:, :, j - start] = e = (left[:, :, j] - code * step) / upper[:, j, j, None]
            left[:, :, j + 1 : stop] -= e[:, :, None] * upper[:, None, j, j + 1 : stop]
        left[:, :, stop:] -= lost @ upper[:, start:stop, stop:]
    return codes, steps
