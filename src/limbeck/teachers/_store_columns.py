"""What is kept of a teacher's knowledge: reduced to columns when it is recorded, and made knowledge again when it is read.

Shapes: N examples, C classes, k of them kept.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from limbeck.core.draw import bits, key
from limbeck.core.errors import DataError, MismatchError, RecipeError
from limbeck.core.knowledge import Dense, Knowledge, Reads, Response, TopK
from limbeck.core.task import Batch

__all__ = ["WITNESSED", "Keep", "Likeliest", "Recording", "Views", "WholeLogits", "check_recorded", "columns", "keys_of", "knowledge", "sketch"]

WITNESSED = 16
"""One record in so many also keeps a sketch of the input that the teacher saw."""


class _Kind(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class WholeLogits(_Kind):
    """Every logit."""

    kind: Literal["dense"] = "dense"


class Likeliest(_Kind):
    """The `k` likeliest classes at one temperature, and the probability of all others together.

    `tail: bucket` tells the student that mass, as one class of its own; `renormalized_biased` leaves it out and makes the k sum to one, which teaches that the
    others are impossible (a matter of reading: the store holds the mass either way).
    """

    kind: Literal["topk"] = "topk"
    k: int = Field(ge=1)
    temperature: float = Field(gt=0, allow_inf_nan=False)
    tail: Literal["bucket", "renormalized_biased"] = "bucket"


Views = Annotated[int, Field(ge=1)]
Keep = Annotated[WholeLogits | Likeliest, Field(discriminator="kind")]


class Recording(BaseModel):
    """What is recorded of a teacher: how many views of each example, what of its answers, which layers, in which precision."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    views: Views = 1
    keep: Keep = WholeLogits()
    features: tuple[str, ...] = ()
    input: str = "input"
    dtype: Literal["float16", "float32"] | None = None

    @property
    def reads(self) -> Reads:
        """What is read of the teacher."""
        return Reads(features=frozenset(self.features))

    @property
    def told(self) -> dict[str, Any]:
        """What the records depend on, JSON-able, defaults filled in."""
        usual = "float16" if isinstance(self.keep, Likeliest) else "float32"
        kept = self.keep.model_dump(exclude={"tail"})
        return {"views": self.views, "keep": kept, "features": sorted(set(self.features)), "input": self.input, "dtype": self.dtype or usual}


def keys_of(batch: Batch, views: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the ids `[N]` and the views `[N]` of a batch's examples; a batch that tells no view has the only one there is.

    Raises:
        MismatchError: a batch that does not say which example is which, or, of several views, which one it shows.
    """
    if "id" not in batch:
        raise MismatchError(
            f"what was recorded is found by the example's id, and the batch has no field 'id' (fields {', '.join(batch)}): give the DataLoader "
            '[{"input": x, "label": y, "id": i} for i, (x, y) in enumerate(data)], or a Dataset whose items are such mappings'
        )
    ids = batch["id"].cpu().numpy()
    if "view" in batch:
        return ids, batch["view"].cpu().numpy()
    if views > 1:
        raise MismatchError(
            f"{views} views of each example are recorded, and the batch does not say which it shows (fields {', '.join(batch)}): give it a field 'view', "
            "int64 for each example; limbeck's own loaders do when they are told views="
        )
    return ids, np.zeros_like(ids)


def check_recorded(reads: Reads, features: Sequence[str], outputs: Iterable[str]) -> None:
    """Refuse what an objective reads of a teacher and a store does not hold.

    Raises:
        MismatchError: with the option that would record it, where there is one.
    """
    if missing := sorted(reads.features - set(features)):
        held = f"recorded are {', '.join(features)}" if features else "no layer is"
        raise MismatchError(f"the teacher's layer {missing[0]!r} is not recorded, {held}: name it, features: [{', '.join([*features, *missing])}]")
    if missing := sorted(reads.outputs - set(outputs)):
        raise MismatchError(f"the teacher's output {missing[0]!r} is not recorded; it has {', '.join(outputs)}: its model gives no other")
    said = "a cached teacher has no body, and an objective reads"
    if reads.modules or reads.input_gradient:
        raise MismatchError(f"{said} {'its layers themselves' if reads.modules else 'the gradient by its input'}: teach by {{kind: frozen}}")
    if reads.shapes:
        raise MismatchError(f"{said} the shapes of all its layers: name the layers in the place of layers: auto, and record them")


def columns(said: Knowledge, ids: npt.NDArray[np.int64], recording: Recording) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
    """Return what a store keeps of knowledge, column -> values `[N, ...]`, and what a reader must know of its outputs.

    Raises:
        RecipeError: more likeliest classes than there are others.
        MismatchError: answers whose first axis is not that of the ids, or that are no choice of one class where the likeliest are to be kept.
        DataError: values that are not finite, or beyond the precision.
    """
    told = recording.told
    outputs = {name: said.whole(name) for name in said.outputs}
    found: dict[str, npt.NDArray[Any]] = {}
    for name, one in outputs.items():
        if isinstance(recording.keep, Likeliest):
            found |= {f"output.{name}.{part}": value for part, value in _likeliest(one, ids, recording.keep, told["dtype"]).items()}
        else:
            found[f"output.{name}"] = _fitted(one.logits, ids, told["dtype"], f"logits ({name})")
    found |= {f"feature.{path}": _fitted(said.feature(path), ids, told["dtype"], f"feature {path!r}") for path in told["features"]}
    if said.mask is not None:
        found["mask"] = said.mask.cpu().numpy().astype("u1")
    for name, value in found.items():
        if value.shape[:1] != ids.shape:
            raise MismatchError(f"the teacher's {name} is {list(value.shape)} for {len(ids)} ids: what is recorded has a row for each example")
    return found, {"outputs": {name: {"link": one.link, "classes": one.classes} for name, one in outputs.items()}}


def _likeliest(said: Dense, ids: npt.NDArray[np.int64], keep: Likeliest, dtype: str) -> dict[str, npt.NDArray[Any]]:
    if said.link != "softmax":
        raise MismatchError(f"the likeliest classes are of a choice of one class, and the teacher's answers are {said.link}: keep: {{kind: dense}}")
    if keep.k >= said.classes:
        raise RecipeError(f"keep.k is {keep.k}, and the teacher knows {said.classes} classes: take fewer than that, or keep: {{kind: dense}}")
    logits = said.logits.float()
    _check_finite(logits, ids, "logits", minus_infinity=True)
    log_p = (logits / keep.temperature).log_softmax(-1)
    kept, indices = log_p.topk(keep.k)
    tail = log_p.scatter(-1, indices, float("-inf")).logsumexp(-1)
    narrow = np.uint16 if said.classes <= 1 << 16 else np.uint32
    with np.errstate(over="ignore"):  # a logarithm below the precision's least is that of nothing
        return {
            "log_probs": kept.cpu().numpy().astype(dtype), "indices": indices.cpu().numpy().astype(narrow), "log_tail": tail.cpu().numpy().astype(dtype),
        }  # fmt: skip


def _fitted(value: Tensor, ids: npt.NDArray[np.int64], dtype: str, what: str) -> npt.NDArray[Any]:
    _check_finite(value, ids, what, minus_infinity=what.startswith("logits"))
    fitted = value.to(getattr(torch, dtype))
    if (fitted.isinf() & ~value.isinf()).any():
        largest = value[value.isfinite()].abs().max().item()
        raise DataError(f"the teacher's {what} reaches {largest:.3g}, beyond what {dtype} can hold: record it with dtype: float32")
    return fitted.cpu().numpy()


def _check_finite(value: Tensor, ids: npt.NDArray[np.int64], what: str, *, minus_infinity: bool) -> None:
    peak = (value if minus_infinity else value.abs()).max() if value.numel() else value.sum()  # NaN, where there is one
    if peak.isnan() or peak == float("inf"):
        bad = value.isnan() | (value == float("inf") if minus_infinity else value.isinf())
        first = int(bad.flatten(1).any(1).nonzero()[0])
        raise DataError(f"the teacher's {what} of example {ids[first]} is not finite (NaN or infinity): nothing can be learnt from that; look at its input")


def knowledge(
    read: Callable[[str], npt.NDArray[Any]], about: Mapping[str, Any], has: Mapping[str, Any], reads: Reads, keep: WholeLogits | Likeliest, device: torch.device
) -> Knowledge:
    """Return what was recorded as knowledge in float32, on `device`: `read` gives a column's values `[N, ...]`, of those that the store `has`."""

    def column(name: str) -> Tensor:
        return torch.from_numpy(read(name).astype(np.float32, copy=False)).to(device)

    outputs: dict[str, Response] = {}
    for name, told in about["outputs"].items():
        if isinstance(keep, WholeLogits):
            outputs[name] = Dense(column(f"output.{name}"), told["link"])
            continue
        log_probs, log_tail = column(f"output.{name}.log_probs"), column(f"output.{name}.log_tail")
        indices = torch.from_numpy(read(f"output.{name}.indices").astype(np.int64)).to(device)
        if keep.tail == "renormalized_biased":
            log_tail = torch.full_like(log_tail, float("-inf"))
        whole = torch.cat([log_probs, log_tail.unsqueeze(-1)], -1).logsumexp(-1)  # one, but for rounding
        outputs[name] = TopK(log_probs - whole.unsqueeze(-1), indices, log_tail - whole, keep.temperature, told["classes"])
    features = {path: column(f"feature.{path}") for path in sorted(reads.features)}
    mask = torch.from_numpy(read("mask").astype(bool)).to(device) if "mask" in has else None
    return Knowledge(outputs, features, mask)


def sketch(inputs: Tensor) -> Tensor:
    """Return one number for each input `[N, ...]` -> `[N]`: the sum of its values with fixed random signs, over the root of their count.

    Another crop of an image has another sketch, by about the image's own deviation; rounding changes it by as much as it changes the image.
    """
    flat = inputs.flatten(1).float()
    return (flat * _signs(flat.shape[1]).to(flat.device)).sum(1) / max(flat.shape[1], 1) ** 0.5


@lru_cache(maxsize=4)
def _signs(count: int) -> Tensor:
    return 1.0 - 2.0 * (bits(torch.arange(count), key(WITNESSED)) < 0).float()
