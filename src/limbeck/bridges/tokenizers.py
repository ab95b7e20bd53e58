"""tokenizers: byte-level byte-pair encoding, trained on texts or read from a tokenizer.json."""

from collections.abc import Iterable, Sequence
from types import ModuleType
from typing import Any

from limbeck.core.errors import DataError, MissingDependency

__all__ = ["Codec", "train_bpe"]


def _library() -> ModuleType:
    try:
        import tokenizers
    except ImportError:
        raise MissingDependency("tokenizers", "language", "a tokenizer of kind bpe or file") from None
    return tokenizers


def train_bpe(texts: Iterable[str], size: int, specials: Sequence[str]) -> str:
    """Return, as JSON, a byte-level BPE tokenizer of at most `size` tokens trained on `texts`: specials have the first ids, then come the 256 bytes.

    The same texts give the same tokenizer, whatever the threads. Sennrich et al., "Neural Machine Translation of Rare Words with Subword Units", ACL 2016,
    arXiv:1508.07909; over bytes: Radford et al. 2019 (GPT-2), sec. 2.2, whose pattern cuts the text before pairs are merged.
    """
    library = _library()
    made: Any = library.Tokenizer(library.models.BPE())
    made.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(
        vocab_size=size, special_tokens=list(specials), initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    made.train_from_iterator(texts, trainer)
    return made.to_str()


class Codec:
    """A tokenizer from its JSON. What is encoded is text alone: the name of a special token that stands in a text is spelt out.

    `where` says what is read, for messages.

    Raises:
        DataError: the JSON is none of the library's.
    """

    def __init__(self, told: str, where: str = "the tokenizer") -> None:
        library = _library()
        try:
            self._tokenizer: Any = library.Tokenizer.from_str(told)
        except Exception as error:  # the library raises nothing narrower
            raise DataError(f"{where} is not a tokenizer.json of the library tokenizers: {' '.join(str(error).split())}") from None
        self._tokenizer.encode_special_tokens = True
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.json: str = told
        known = {index: token for token, index in self._tokenizer.get_vocab(with_added_tokens=True).items()}
        self.names = tuple(known.get(index, f"<unused {index}>") for index in range(max(known, default=-1) + 1))
        self.specials = tuple(token.content for token in self._tokenizer.get_added_tokens_decoder().values() if token.special)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text; no special token is added."""
        return [one.ids for one in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, special tokens left out."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=True)
