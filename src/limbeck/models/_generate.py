"""Text from a causal language model that reads piece by piece: what `generate` of each model does.

Shapes: N rows, L tokens of the prompt, T tokens in all, V vocabulary.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.knowledge import Dense, Hidden

__all__ = ["check_generate", "generated", "within"]

Read = Callable[[Tensor], Dense | Hidden]
"""Read the next tokens `[N, L]`, and say what comes after the last of them, `[N]` predictions."""


def check_generate(model: str, prompt: Tensor, tokens: int, most: float, temperature: float, top_k: int | None, vocabulary: int) -> None:
    """Refuse a prompt that cannot be gone on with, and numbers that no token can be drawn by."""
    length = prompt.shape[1]
    if length < 1 or tokens < 0 or length + tokens > most:
        raise MismatchError(f"a prompt of {length} tokens and {tokens} more: there must be one or more, and {model} has positions for {most} in all")
    if not (math.isfinite(temperature) and temperature >= 0) or (top_k is not None and not 1 <= top_k <= vocabulary):
        raise RecipeError(f"temperature is {temperature:g} and top_k {top_k}; 0 or more, and 1 to {vocabulary} of the vocabulary")


def generated(
    reading: Callable[[Tensor], Read],
    prompt: Tensor,
    tokens: int,
    *,
    temperature: float,
    top_k: int | None,
    eos: int | None,
    segment: Tensor | None,
    generator: torch.Generator | None,
) -> Tensor:
    """Return the prompt `[N, L]` and `tokens` more; `reading` makes a reader of `segment [N, T]`, 0 where a prompt is padded."""
    count = len(prompt)
    seen = torch.ones_like(prompt) if segment is None else segment
    read = reading(torch.cat([seen, seen.new_ones(count, tokens)], 1))
    done = torch.zeros(count, dtype=torch.bool, device=prompt.device)
    made, new = prompt, prompt
    for _ in range(tokens):
        drawn = _drawn(read(new).logits.float(), temperature, top_k, generator)
        new = drawn[:, None] if eos is None else drawn.masked_fill(done, eos)[:, None]
        if eos is not None:
            done = done | (new[:, 0] == eos)
        made = torch.cat([made, new], 1)
    return made


def _drawn(logits: Tensor, temperature: float, top_k: int | None, generator: torch.Generator | None) -> Tensor:
    """Draw a token from each row of `[N, V]`."""
    if temperature == 0:
        return logits.argmax(-1)
    kept, index = logits.topk(logits.shape[-1] if top_k is None else top_k)
    place = torch.multinomial((kept / temperature).softmax(-1), 1, generator=generator)
    return index.gather(1, place)[:, 0]


def within(segment: Tensor) -> Tensor:
    """Return each token's place within its stretch of equal numbers: `[N, T]` -> `[N, T]`.

    >>> within(torch.tensor([[1, 1, 2, 2, 2, 0]]))
    tensor([[0, 1, 0, 1, 2, 0]])
    """
    place = torch.arange(segment.shape[1], device=segment.device).expand_as(segment)
    fresh = torch.cat([torch.ones_like(segment[:, :1], dtype=torch.bool), segment[:, 1:] != segment[:, :-1]], 1)
    return place - torch.where(fresh, place, 0).cummax(1).values
