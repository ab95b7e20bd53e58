"""A conversation as the tokenizer's own template writes it; what the assistant says is learnt."""

from collections.abc import Mapping, Sequence

import numpy as np

from limbeck.core.errors import RecipeError

from ._pack import Sequenced
from ._tokens import Vocabulary

__all__ = ["chatted"]


def chatted(messages: Sequence[Mapping[str, str]], words: Vocabulary) -> Sequenced:
    """Return a conversation as tokens, and which of them the assistant says.

    Raises:
        RecipeError: a tokenizer without a template.
        DataError: a conversation that the template refuses.
    """
    if words.chat is None:
        raise RecipeError("turn is template, and the tokenizer has none: tokenizer: {kind: hf, root: ...} of a model for conversations, or write turns out")
    ids, counts = words.chat.ids(messages)
    return Sequenced(np.array(ids, np.int32), np.array(counts, np.bool_))
