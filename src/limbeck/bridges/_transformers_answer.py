"""What a transformers model answers before its logits are multiplied out, and how documents in one row are kept apart.

Both are found by asking the model, and not by its name. Shapes: N rows, T tokens, D width of the states, V vocabulary.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from limbeck.core.errors import RecipeError
from limbeck.core.knowledge import Hidden

from .transformers import library

__all__ = ["Form", "Way", "check_rows", "form_of", "given", "keeps", "memory", "placed", "states", "way_of"]

Way = Literal["positions", "mask"]
"""How documents are kept apart: positions that begin anew, which the library reads as such, or a mask `[N, 1, T, T]` beside them."""
_TOKENS = 8


class Form(NamedTuple):
    """Logits are cap(scale (states weight^T + bias)), of the model's output embedding."""

    scale: float
    softcap: float | None

    def hidden(self, said: Tensor, head: nn.Linear) -> Hidden:
        return Hidden(said, head.weight, head.bias, self.scale, self.softcap)


@contextmanager
def _instead(head: nn.Module, gives: Callable[[Tensor], Tensor]) -> Iterator[list[Tensor]]:
    """Have a layer give something else while the block lasts; yields what it reads."""
    read: list[Tensor] = []

    def forward(x: Tensor) -> Tensor:
        read.append(x)
        return gives(x)

    head.forward = forward
    try:
        yield read
    finally:
        del head.forward


def _head(model: Any) -> nn.Linear | None:
    """The output embedding, where it is a plain linear layer."""
    head = model.get_output_embeddings()
    return head if isinstance(head, nn.Linear) and type(head).forward is nn.Linear.forward else None


def states(model: Any, input: Tensor, **how: Any) -> tuple[Tensor, nn.Linear] | None:
    """Return the states `[N, T, D]` that come to the output embedding, and that layer, which multiplies nothing out; None where it is no plain layer."""
    if (head := _head(model)) is None:
        return None
    with _instead(head, lambda x: x) as read:
        model(input_ids=input, **how)
    return (read[0], head) if len(read) == 1 else None


@contextmanager
def _asked(model: Any) -> Iterator[Tensor]:
    """Hold a model in evaluation mode without gradients; yields tokens `[2, 8]` to ask it about."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    ids = (torch.arange(2 * _TOKENS, device=next(model.parameters()).device) * 7 + 3) % model.config.get_text_config().vocab_size
    try:
        with torch.no_grad():
            yield ids.view(2, _TOKENS)
    finally:
        for module, mode in modes.items():
            module.training = mode


def form_of(model: Any, **how: Any) -> Form | None:
    """Return how a model's logits come of its states, None where that cannot be said, so that they must be multiplied out by the model itself.

    What the model does to the scores of its output embedding is seen by giving it other scores: small ones show the scale, large ones the cap, and those
    between them, and the logits of some tokens, that nothing else is done.
    """
    with _asked(model) as ids:
        own = model(input_ids=ids, **how).logits
        if (head := _head(model)) is None or own.shape != (*ids.shape, len(head.weight)):
            return None
        steps = torch.linspace(-1, 1, own.numel(), device=own.device).view(own.shape)

        def after(scores: Tensor) -> Tensor | None:
            with _instead(head, lambda x: scores if x.shape[:-1] == ids.shape else x) as read:
                told = model(input_ids=ids, **how).logits
            return told.float() if len(read) == 1 and told.shape == scores.shape else None

        small, large = after(torch.full_like(steps, 1e-3)), after(torch.full_like(steps, 1e6))
        if small is None or large is None or float(small.mean()) == 0:
            return None
        scale = _known(float(small.double().mean()) / 1e-3, model.config)
        most = float(large.double().mean())
        found = Form(scale, None if abs(most - scale * 1e6) <= 1e-4 * abs(scale * 1e6) else _known(abs(most), model.config))
        between = after(steps * 100 / abs(scale))
        assert between is not None
        wanted = steps * 100 / abs(scale) * scale
        wanted = wanted if found.softcap is None else (wanted / found.softcap).tanh() * found.softcap
        told = states(model, ids, **how)
        assert told is not None
        return found if _same(between, wanted, 1e-5) and _same(found.hidden(*told).logits, own, _near(own)) else None


def check_rows(model: Any, where: str) -> None:
    """Refuse a classifier that cannot be asked about two rows: one that reads a row's last token must know the token of padding.

    Raises:
        RecipeError: with the way out.
    """
    with _asked(model) as ids:
        try:
            model(input_ids=ids)
        except ValueError as error:
            if "padding token" not in str(error):
                raise
            raise RecipeError(
                f"{where} classifies a row by its last token that is no padding, and does not know which token that is: config: {{pad_token_id: ...}}, the id "
                "of the tokenizer's padding"
            ) from None


def _known(value: float, config: Any) -> float:
    """The number, or its reciprocal, that the configuration has for it, as single precision does not tell it to the last digit."""
    held = [1.0, *(one for one in vars(config.get_text_config()).values() if isinstance(one, (int, float)) and not isinstance(one, bool) and one)]
    near = [one for known in held for one in (float(known), 1 / known) if abs(one - value) <= 1e-5 * abs(value)]
    return near[0] if near else value


def _near(logits: Tensor) -> float:
    return 1e-5 if logits.dtype in (torch.float32, torch.float64) else 2e-2


def _same(found: Tensor, wanted: Tensor, tolerance: float) -> bool:
    scale = float(wanted.float().abs().max())
    return bool(found.isfinite().all()) and float((found.float() - wanted.float()).abs().max()) <= tolerance * scale + 1e-7


def given(way: Way, segment: Tensor, position: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return what tells a model to keep the tokens of each segment `[N, T]` to themselves, at their positions `[N, T]`."""
    if way == "positions":
        return {"position_ids": position}
    length = segment.shape[1]
    before = torch.ones(length, length, dtype=torch.bool, device=segment.device).tril()
    allowed = (segment[:, :, None] == segment[:, None, :]) & before
    hidden = torch.zeros(allowed.shape, dtype=dtype, device=segment.device).masked_fill(~allowed, torch.finfo(dtype).min)
    return {"position_ids": position, "attention_mask": hidden[:, None]}


def way_of(model: Any, **how: Any) -> Way | None:
    """Return how a causal model keeps documents apart, None where it cannot: of two in one row, and of one padded on the left, it must answer as alone."""
    with _asked(model) as ids:

        def said(row: Tensor, **more: Any) -> Tensor:
            found = states(model, row, **how, **more)
            return model(input_ids=row, **how, **more).logits if found is None else found[0]

        cut, device = 3, ids.device
        place = torch.arange(_TOKENS, device=device)
        segment = torch.stack([1 + (place >= cut).long(), (place >= cut).long()])
        position = torch.stack([torch.where(place < cut, place, place - cut), (place - cut).clamp(min=0)])
        alone = [said(ids[:1, :cut])[0], said(ids[:1, cut:])[0], said(ids[1:, cut:])[0]]
        for way in ("positions", "mask"):
            try:
                told = said(ids, **given(way, segment, position, alone[0].dtype))
            except (RuntimeError, ValueError, TypeError):
                continue  # a model that takes no positions, or no such mask
            together = [told[0, :cut], told[0, cut:], told[1, cut:]]
            if all(_same(one, other, 1e-4 if one.dtype == torch.float32 else 3e-2) for one, other in zip(together, alone, strict=True)):
                return way
    return None


def memory(model: Any) -> dict[str, Any]:
    """Return what a model is given to keep the keys and values of what it reads."""
    return {"use_cache": True, "past_key_values": library().DynamicCache(config=model.config)}


def placed(seen: Tensor, start: int) -> dict[str, Tensor]:
    """Return what tells a model where its new tokens stand, from `start` on, of `seen [N, T]`, 0 for padding on the left."""
    return {"attention_mask": seen, "position_ids": (seen.cumsum(1) - 1).clamp(min=0)[:, start:]}


def keeps(model: Any) -> bool:
    """Whether a model that has kept what it read goes on as if it read all of it."""
    with _asked(model) as ids:
        whole, cut, seen = model(input_ids=ids).logits[:, -1], _TOKENS - 2, torch.ones_like(ids)
        kept = memory(model)
        try:
            model(input_ids=ids[:, :cut], **kept, **placed(seen[:, :cut], 0))
            rest = [model(input_ids=ids[:, at : at + 1], **kept, **placed(seen[:, : at + 1], at)).logits for at in range(cut, _TOKENS)]
        except (RuntimeError, ValueError, TypeError, AttributeError, IndexError):
            return False
    return _same(rest[-1][:, -1], whole, 1e-4 if whole.dtype == torch.float32 else 3e-2)
