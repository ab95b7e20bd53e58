"""What a causal language model writes after some beginnings of the data: the same beginnings and the same draws for every model.

Shapes: B beginnings, V vocabulary.
"""

from collections.abc import Callable
from typing import Any

import torch

from limbeck.core.knowledge import Dense, Hidden, Knowledge
from limbeck.core.task import Batch, Split

from ._pack import IGNORED
from ._text_task import Made

__all__ = ["samples"]

_BEGINNINGS, _TOKENS, _TEMPERATURE = 3, 64, 0.8


@torch.no_grad()
def samples(answer: Callable[[Batch], Knowledge], made: Made, split: Split, device: torch.device | None = None) -> list[dict[str, Any]]:
    """Return, of rows spread over a split, `prompt`, `written` and `text`, what the data go on with; each model draws with the same numbers at temperature 0.8.

    A beginning is a quarter of a row, of its first document; at most 64 tokens are written, up to an end token or the row's length, each after all before it.
    """
    rows, length = made.rows[split], made.fields["input"].shape[1]
    begun = max(1, length // 4)
    most = min(_TOKENS, length - begun)
    eos = made.vocabulary.roles["eos"]
    draw = torch.Generator().manual_seed(0)
    found = []
    for row in rows[torch.arange(min(_BEGINNINGS, len(rows))) * len(rows) // min(_BEGINNINGS, len(rows))].tolist():
        tokens = _document(made, row)
        ids = tokens[:begun].long()[None].to(device or "cpu")
        written: list[int] = []
        for chance in torch.rand(most, generator=draw).tolist():
            fields = {"segment": torch.ones_like(ids), "position": torch.arange(ids.shape[1], device=ids.device)[None]} if "segment" in made.fields else {}
            said = answer({"input": ids, **fields, "label": torch.full_like(ids, IGNORED)}).answer
            assert isinstance(said, (Dense, Hidden)), "a model's own answer"
            last = said.logits[0, -1] if isinstance(said, Dense) else Hidden(said.states[0, -1:], *_head(said)).logits[0]
            share = (last.double().cpu()[: made.vocabulary.size] / _TEMPERATURE).softmax(-1).cumsum(-1)
            token = min(int(torch.searchsorted(share, chance * share[-1])), len(share) - 1)
            if token == eos:
                break
            written.append(token)
            ids = torch.cat([ids, ids.new_tensor([[token]])], 1)
        spell = made.vocabulary.decode
        found.append({"prompt": spell(tokens[:begun].tolist()), "written": spell(written), "text": spell(tokens[begun : begun + most].tolist())})
    return found


def _head(said: Hidden) -> tuple[Any, ...]:
    return said.weight, said.bias, said.scale, said.softcap


def _document(made: Made, row: int) -> torch.Tensor:
    """The tokens of a row's first document, padding left out."""
    tokens = made.fields["input"][row]
    if (segment := made.fields.get("segment")) is not None:
        return tokens[segment[row] == segment[row][segment[row] > 0].min()]
    counted = (made.fields["label"][row] != IGNORED).nonzero()
    return tokens[: int(counted[-1]) + 1] if len(counted) else tokens
