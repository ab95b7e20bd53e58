"""Parity: does an exported file compute what the model computes?

Shapes: N examples, C classes; a = `reference [N, C]`, what the model says, b = `exported [N, C]`, what the file says, both in float64 here.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.core.errors import DataError, MismatchError, ParityError

__all__ = ["FLOAT", "INT8", "Parity", "Tolerance", "parity"]

_FLOOR = 1e-3


@dataclass(frozen=True)
class Tolerance:
    """What an exported file may differ by; a bound that is None is not checked.

    `max_abs`: the largest |a - b|, in units of max(1, max |a|); `cosine`: the least cosine over examples; `agreement`: the least share of examples
    whose top class is the same; `sqnr_db`: the least ratio of signal to quantization noise.
    """

    max_abs: float | None = None
    cosine: float | None = None
    agreement: float | None = None
    sqnr_db: float | None = None


FLOAT = Tolerance(max_abs=1e-4)
INT8 = Tolerance(agreement=0.97, sqnr_db=10.0)


@dataclass(frozen=True)
class Parity:
    """How far an exported file is from its model, over `inputs` examples.

    `max_abs`: max |a - b|. `max_rel`: max |a - b| / max(|a|, floor), the floor being 1e-3 max |a| (1e-3 where every a is zero), so that a logit that
    happens to be near zero does not decide. `cosine`: the least over examples. `agreement`: the share of examples with the same top class.
    `sqnr_db`: 10 log10(sum a^2 / sum (a - b)^2), infinite for equal outputs. `scale`: max |a|. `worst`: example, class, a and b where |a - b| is largest;
    `flipped`: the first example whose top class differs, with both classes.
    """

    inputs: int
    max_abs: float
    max_rel: float
    cosine: float
    agreement: float
    sqnr_db: float
    scale: float
    worst: tuple[int, int, float, float]
    flipped: tuple[int, int, int] | None
    output: str
    quantized: bool

    def metrics(self) -> dict[str, float]:
        """Return the figures under the names they have in `metrics.json`; agreement and SQNR for quantized files only, SQNR only where it is finite."""
        found: dict[str, float] = {
            "parity_inputs": self.inputs, "parity_max_abs": self.max_abs, "parity_max_rel": self.max_rel, "parity_cosine": self.cosine,
        }  # fmt: skip
        if self.quantized:
            found["parity_agreement"] = self.agreement
            if math.isfinite(self.sqnr_db):
                found["parity_sqnr_db"] = self.sqnr_db
        return found

    def check(self, tolerance: Tolerance | None = None) -> None:
        """Refuse a file that differs by more than `tolerance`, which is `FLOAT` or `INT8` where it is None.

        Raises:
            ParityError: names the output, the example and class that differ most, both values and the bound.
        """
        bounds = tolerance or (INT8 if self.quantized else FLOAT)
        allowed = None if bounds.max_abs is None else bounds.max_abs * max(1.0, self.scale)
        example, column, ours, theirs = self.worst
        where = f"output {self.output!r} differs most at example {example}, class {column}: {ours:.6g} in the model, {theirs:.6g} in the file"
        if allowed is not None and not self.max_abs <= allowed:
            raise ParityError(f"{where}; the difference of {self.max_abs:.3g} is more than {allowed:.3g} ({bounds.max_abs:g} of the logits' scale)")
        if bounds.cosine is not None and not self.cosine >= bounds.cosine:
            raise ParityError(f"{where}; the least cosine of {self.cosine:.6g} is less than {bounds.cosine:g}")
        if bounds.agreement is not None and not self.agreement >= bounds.agreement:
            flip = "" if self.flipped is None else f"example {self.flipped[0]} is class {self.flipped[1]} in the model and {self.flipped[2]} in the file; "
            raise ParityError(
                f"output {self.output!r} names the same top class for {self.agreement:.2%} of {self.inputs} examples, less than {bounds.agreement:.2%}: "
                f"{flip}calibrate on more examples, or keep the last layer in float"
            )
        if bounds.sqnr_db is not None and not self.sqnr_db >= bounds.sqnr_db:
            raise ParityError(f"{where}; a signal of {self.sqnr_db:.1f} dB over the quantization noise is less than {bounds.sqnr_db:g} dB")


def parity(reference: Tensor, exported: Tensor, *, quantized: bool = False, output: str = "logits") -> Parity:
    """Compare what the model said with what its exported file says, `[N, C]` each, on the same inputs: 256 real ones or more where there are so many.

    Raises:
        DataError: no example.
        MismatchError: shapes that differ, or are not `[N, C]`.
        ParityError: a number that is not finite, on either side.
    """
    if reference.shape != exported.shape or reference.ndim != 2:
        raise MismatchError(f"output {output!r} is {list(reference.shape)} in the model and {list(exported.shape)} in the file: both must be the same [N, C]")
    if not reference.numel():
        raise DataError(f"parity of output {output!r} needs at least one example and one class, given {list(reference.shape)}")
    a, b = reference.detach().cpu().double(), exported.detach().cpu().double()
    for side, values in (("model", a), ("file", b)):
        if not (finite := values.isfinite()).all():
            example, column = (int(index) for index in (~finite).nonzero()[0])
            raise ParityError(
                f"output {output!r} is {values[example, column].item()} in the {side} at example {example}, class {column}: nothing agrees with that"
            )
    gap, scale = (a - b).abs(), a.abs().max().item()
    floor = _FLOOR * (scale or 1.0)
    row, column = divmod(int(gap.argmax()), gap.shape[1])
    ours, theirs = a.argmax(1), b.argmax(1)
    differs = (ours != theirs).nonzero().flatten()
    noise, signal = gap.square().sum().item(), a.square().sum().item()
    return Parity(
        inputs=len(a),
        max_abs=gap.max().item(),
        max_rel=(gap / a.abs().clamp(min=floor)).max().item(),
        cosine=_cosines(a, b).min().item(),
        agreement=1.0 - len(differs) / len(a),
        sqnr_db=math.inf if noise == 0 else (-math.inf if signal == 0 else 10 * math.log10(signal / noise)),
        scale=scale,
        worst=(row, column, a[row, column].item(), b[row, column].item()),
        flipped=None if not len(differs) else (int(differs[0]), int(ours[differs[0]]), int(theirs[differs[0]])),
        output=output,
        quantized=quantized,
    )


def _cosines(a: Tensor, b: Tensor) -> Tensor:
    """Return a . b / (|a| |b|) per example `[N]`: 1 where both are zero, 0 where one is."""
    length_a, length_b = a.norm(dim=1), b.norm(dim=1)
    both = (length_a == 0) & (length_b == 0)
    lengths = length_a * length_b
    return torch.where(both, 1.0, (a * b).sum(1) / torch.where(lengths == 0, 1.0, lengths))
