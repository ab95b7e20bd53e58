"""A completions endpoint asked about a text that is there: the log-probabilities of the likeliest tokens at each of its places.

Shapes: L tokens of a text, k likeliest.
"""

import codecs
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from pydantic import Field

from limbeck.core.errors import DataError, MismatchError

from ._sources import Served

__all__ = ["Completions", "distribution"]

_SLACK = 1e-3
"""By how much probabilities may sum to more than one: what printed digits and 16 bits lose."""
_LEAST = 1e-8
"""What all other tokens have at the least together."""
_WAY = "match it by objectives.sequence.uld, or serve a model of the student's own tokenizer"


class Completions(Served):
    """An OpenAI-compatible completions endpoint (`/v1/completions`), asked about token ids."""

    model: str = Field(description="the model's name at the server")
    top: int = Field(default=20, ge=1, description="k, how many likely tokens are asked for at each place")
    api: Literal["prompt_logprobs", "echo"] = Field(
        default="prompt_logprobs", description="prompt_logprobs, as vLLM has it, by token ids; or echo, the legacy form, by the tokens' text"
    )
    request: dict[str, Any] = Field(default={}, description="further fields of the request, over those that are sent")

    def asks(self, tokens: Sequence[int]) -> dict[str, Any]:
        """What is posted about a text."""
        fixed: dict[str, Any] = {"model": self.model, "prompt": list(tokens), "temperature": 0}
        if self.api == "echo":
            return {**fixed, "echo": True, "logprobs": self.top, "max_tokens": 0, **self.request}
        return {**fixed, "prompt_logprobs": self.top, "max_tokens": 1, **self.request}

    def read(self, told: Any, tokens: Sequence[int], texts: Mapping[str, int]) -> list[dict[int, float]]:
        """Return for each token but the first the log-probabilities at its place, by id; `texts` are the tokens' own.

        Raises:
            DataError: an answer of another form, or about fewer tokens.
            MismatchError: a server that reads other tokens.
        """
        try:
            choice = told["choices"][0]
            if self.api == "prompt_logprobs":
                places = (choice.get("prompt_logprobs") or told.get("prompt_logprobs"))[1:]
                found = [_by_id(one) for one in places]
                beyond = [{int(one) for one, value in place.items() if isinstance(value, Mapping) and value.get("rank", 0) > self.top} for place in places]
                said = None
            else:
                found = [_by_text(one, texts) for one in choice["logprobs"]["top_logprobs"][1:]]
                said = [_id(one, texts) for one in choice["logprobs"]["tokens"]]
                mine = zip(tokens[1:], choice["logprobs"]["token_logprobs"][1:], strict=False)
                beyond = []
                for place, (after, value) in zip(found, mine, strict=False):
                    beyond.append(set() if after in place else {after})
                    place.setdefault(after, float(value))
        except (KeyError, IndexError, TypeError, ValueError, AttributeError):
            what = "prompt_logprobs" if self.api == "prompt_logprobs" else "logprobs.tokens, token_logprobs and top_logprobs"
            raise DataError(
                f"{self.url} gives no choices[0].{what} of tokens that are known: ask a server that returns log-probabilities of the prompt, or say by "
                "source.api how it does"
            ) from None
        if (count := min(len(found), len(beyond))) < len(tokens) - 1:
            raise DataError(f"{self.url} answers about {count + 1} of {len(tokens)} tokens: what came before is kept; ask a server that reads such texts whole")
        found = found[: len(tokens) - 1]
        for place, one in enumerate(found, 1):  # the token that stands there is told besides the likeliest
            if tokens[place] not in one or (said is not None and said[place] != tokens[place]):
                raise MismatchError(f"{self.url} does not read token {tokens[place]} where it was sent: it has another tokenizer; {_WAY}")
        return [{one: value for one, value in place.items() if one not in other} for place, other in zip(found, beyond, strict=False)]


def _by_id(told: Any) -> dict[int, float]:
    """`{"17": {"logprob": -0.1}, ...}`."""
    return {int(one): float(value["logprob"] if isinstance(value, Mapping) else value) for one, value in told.items()}


def _by_text(told: Any, texts: Mapping[str, int]) -> dict[int, float]:
    """`{" the": -0.1, ...}`."""
    return {_id(one, texts): float(value) for one, value in told.items()}


def _id(told: str, texts: Mapping[str, int]) -> int:
    """A token from what a server calls it: its text, `token_id:17`, or `bytes:\\xe2\\x80`; -1 for one that nobody knows."""
    if told.startswith("token_id:"):
        return int(told.removeprefix("token_id:"))
    if told.startswith("bytes:"):
        return texts.get(codecs.decode(told.removeprefix("bytes:"), "unicode_escape").encode("latin-1").hex(), -1)
    return texts.get(told.encode().hex(), -1)


def distribution(said: Mapping[int, float], top: int, classes: int, where: str) -> np.ndarray:
    """Return the `top` likeliest of a place as `[log p, ..., id, ...]` float32, as many of each; what they leave to all others is theirs.

    Raises:
        DataError: fewer than were asked for, or log-probabilities that are none.
        MismatchError: a token outside of the vocabulary.
    """
    known = {one: value for one, value in said.items() if one >= 0}
    if known and max(known) >= classes:
        raise MismatchError(f"{where} tells of token {max(known)}, and the vocabulary has {classes}: it has another tokenizer; {_WAY}")
    wanted = min(top, classes)
    if len(known) < wanted:
        raise DataError(
            f"{where} was asked for {wanted} log-probabilities and gives {len(known)}: set source.top: {max(1, len(known))}; what came before is kept"
        )
    best = sorted(known.items(), key=lambda one: (-one[1], one[0]))[:wanted]
    values = [value for _, value in best]
    whole = sum(math.exp(min(value, 1.0)) for value in values)
    if any(math.isnan(value) for value in values) or not whole <= 1 + _SLACK or not whole > 0:
        raise DataError(f"{where} gives log-probabilities that come to {whole:g} together, the first {values[0]:g}: they must be natural logarithms")
    most = 1.0 if wanted == classes else 1.0 - _LEAST
    over = math.log(whole / most) if whole > most or wanted == classes else 0.0
    return np.array([*(value - over for value in values), *(float(one) for one, _ in best)], np.float32)
