"""What is kept of a teacher's knowledge: reduced to columns when it is recorded, and made knowledge again when it is read.

Shapes: N examples, C classes, k of them kept.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from limbeck.core.draw import bits, key
from limbeck.core.errors import DataError, MismatchError, RecipeError
from limbeck.core.knowledge import Dense, Hidden, Knowledge, Reads, Response, TopK
from limbeck.core.task import Batch

from ._keep import Auto, HiddenStates, Keep, Kept, Likeliest, Samples, WholeLogits
from ._quantized import dequantized, drawn, quantized

__all__ = [
    "WITNESSED",
    "Keep",
    "Likeliest",
    "Recording",
    "Views",
    "WholeLogits",
    "check_recorded",
    "columns",
    "heads",
    "kept_of",
    "keys_of",
    "knowledge",
    "pieces",
    "sketch",
]  # fmt: skip

_LOGITS = 1 << 24
"""Logits that are multiplied out at once."""

WITNESSED = 16
"""One record in so many also keeps a sketch of the input that the teacher saw."""


Views = Annotated[int, Field(ge=1)]


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
        """What the records depend on, JSON-able, defaults filled in; `dtype` is of all but the states, which have their own."""
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


def kept_of(told: Mapping[str, Any]) -> Kept:
    """Return what is kept, as a store's header tells it."""
    keep = Recording.model_validate({"keep": told}).keep
    assert not isinstance(keep, Auto)
    return keep


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


@torch.no_grad()
def columns(
    said: Knowledge, ids: npt.NDArray[np.int64], recording: Recording, counters: Tensor | None = None
) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
    """Return what a store keeps of knowledge, column -> values `[N, ...]`, and what a reader must know of its outputs.

    Of tokens, `counters [N]` say what is drawn of each.

    Raises:
        RecipeError: more likeliest classes than there are others.
        MismatchError: answers whose first axis is not that of the ids, or that are no choice of one class where the likeliest are to be kept.
        DataError: values that are not finite, or beyond the precision.
    """
    told, keep = recording.told, recording.keep
    found: dict[str, npt.NDArray[Any]] = {}
    for name, one in said.outputs.items():
        if isinstance(keep, (HiddenStates, Samples)) and counters is None:
            raise RecipeError(f"keep: {{kind: {keep.kind}}} is of answers for each token of a text: take dense or topk for one answer an example")
        if isinstance(keep, HiddenStates):
            found |= {f"output.{name}.{part}": value for part, value in _states(one, ids, keep).items()}
            continue
        parts = list[dict[str, npt.NDArray[Any]]]()
        for at, piece in pieces(one if isinstance(one, Hidden) else said.whole(name)):
            if isinstance(keep, Likeliest):
                parts.append({f".{part}": value for part, value in _likeliest(piece, ids[at], keep, told["dtype"]).items()})
            elif isinstance(keep, Samples):
                assert counters is not None
                parts.append({f".{part}": value for part, value in _samples(piece, ids[at], keep, counters[at]).items()})
            else:
                parts.append({"": _fitted(piece.logits, ids[at], told["dtype"], f"logits ({name})")})
        found |= {f"output.{name}{part}": np.concatenate([one[part] for one in parts]) if len(parts) > 1 else parts[0][part] for part in parts[0]}
    found |= {f"feature.{path}": _fitted(said.feature(path), ids, told["dtype"], f"feature {path!r}") for path in told["features"]}
    if said.mask is not None:
        found["mask"] = said.mask.cpu().numpy().astype("u1")
    for name, value in found.items():
        if value.shape[:1] != ids.shape:
            raise MismatchError(f"the teacher's {name} is {list(value.shape)} for {len(ids)} ids: what is recorded has a row for each example")
    about = {name: {"link": one.link, "classes": one.classes} | _head_of(one, keep) for name, one in said.outputs.items()}
    return found, {"outputs": about}


def pieces(said: Response) -> Iterator[tuple[slice, Dense]]:
    """Give an answer's rows as whole logits, a head's multiplied out some rows at a time."""
    if not isinstance(said, Hidden):
        assert isinstance(said, Dense)
        yield slice(None), said
        return
    count, rows = len(said.states), max(1, _LOGITS // said.classes)
    for first in range(0, max(count, 1), rows):
        at = slice(first, min(first + rows, count))
        yield at, Dense(replace(said, states=said.states[at]).logits, said.link)


def heads(said: Knowledge, keep: Keep) -> dict[str, Tensor]:
    """Return the heads that states are kept of, by output and part."""
    found: dict[str, Tensor] = {}
    for name, one in said.outputs.items() if isinstance(keep, HiddenStates) else ():
        assert isinstance(one, Hidden)
        found |= {f"{name}.{part}": value.detach().cpu().contiguous() for part, value in (("weight", one.weight), ("bias", one.bias)) if value is not None}
    return found


def _head_of(said: Response, keep: Keep) -> dict[str, Any]:
    return {"scale": said.scale, "softcap": said.softcap} if isinstance(said, Hidden) and isinstance(keep, HiddenStates) else {}


def _states(said: Response, ids: npt.NDArray[np.int64], keep: HiddenStates) -> dict[str, npt.NDArray[Any]]:
    if not isinstance(said, Hidden):
        raise MismatchError(
            f"keep: {{kind: hidden}} keeps the states before a head, and the teacher gives {said.classes} logits alone: keep: {{kind: topk, k: 64, "
            "temperature: 1.0}, or {kind: dense}, or a model that answers a Hidden, such as gpt"
        )
    _check_finite(said.states, ids, "states", minus_infinity=False)
    return quantized(said.states, keep.dtype)


def _samples(said: Dense, ids: npt.NDArray[np.int64], keep: Samples, counters: Tensor) -> dict[str, npt.NDArray[Any]]:
    if said.link != "softmax":
        raise MismatchError(f"samples are of a choice of one class, and the teacher's answers are {said.link}: keep: {{kind: dense}}")
    if keep.count >= said.classes:
        raise RecipeError(f"keep.count is {keep.count}, and the teacher knows {said.classes} classes: take fewer than that, or keep: {{kind: dense}}")
    _check_finite(said.logits, ids, "logits", minus_infinity=True)
    indices, counts = drawn(said.logits, counters, keep.count, keep.temperature)
    return {"indices": indices.cpu().numpy().astype(_narrow(said.classes)), "counts": counts.cpu().numpy().astype(_narrow(keep.count + 1, least=np.uint8))}


def _narrow(values: int, least: Any = np.uint16) -> Any:
    """The narrowest unsigned numbers that tell so many values apart."""
    return next(kind for kind in (least, np.uint16, np.uint32) if values <= np.iinfo(kind).max + 1)


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
    with np.errstate(over="ignore"):  # a logarithm below the precision's least is that of nothing
        few = {"log_probs": kept.cpu().numpy().astype(dtype), "log_tail": tail.cpu().numpy().astype(dtype)}
        return {"log_probs": few["log_probs"], "indices": indices.cpu().numpy().astype(_narrow(said.classes)), "log_tail": few["log_tail"]}


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
    read: Callable[[str], npt.NDArray[Any]],
    about: Mapping[str, Any],
    has: Mapping[str, Any],
    reads: Reads,
    keep: Keep,
    device: torch.device,
    head: Mapping[str, Tensor] | None = None,
) -> Knowledge:
    """Return what was recorded as knowledge in float32, on `device`: `read` gives a column's values `[N, ...]`, of those that the store `has`.

    `head` has the heads of states, by output and part.
    """

    def column(name: str) -> Tensor:
        return torch.from_numpy(read(name)).to(device).float()

    outputs: dict[str, Response] = {}
    for name, told in about["outputs"].items():
        if isinstance(keep, WholeLogits):
            outputs[name] = Dense(column(f"output.{name}"), told["link"])
            continue
        if isinstance(keep, HiddenStates):
            assert head is not None
            states = dequantized(lambda part, name=name: read(f"output.{name}.{part}"), keep.dtype).to(device)
            outputs[name] = Hidden(states, head[f"{name}.weight"], head.get(f"{name}.bias"), told["scale"], told["softcap"], told["link"])
            continue
        if isinstance(keep, Samples):
            indices = torch.from_numpy(read(f"output.{name}.indices").astype(np.int64)).to(device)
            log_probs = (column(f"output.{name}.counts") / keep.count).log()
            outputs[name] = TopK(log_probs, indices, torch.full_like(log_probs[:, 0], float("-inf")), keep.temperature, told["classes"])
            continue
        assert isinstance(keep, Likeliest)
        log_probs, log_tail = column(f"output.{name}.log_probs"), column(f"output.{name}.log_tail")
        indices = torch.from_numpy(read(f"output.{name}.indices")).to(device).long()
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
