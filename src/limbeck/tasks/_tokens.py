"""From text to token ids and back: bytes, byte-pair encoding trained on the training split alone, a tokenizer.json of one's own, or a model's own."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from limbeck.bridges._transformers_tokenizer import Chat, Told, told_of_folder
from limbeck.bridges.tokenizers import Codec, train_bpe
from limbeck.core.errors import DataError, MismatchError, RecipeError, did_you_mean
from limbeck.core.files import digest

__all__ = ["BPE", "Bytes", "File", "Kind", "Pretrained", "Role", "Tokens", "Vocabulary", "as_tokens", "vocabulary", "vocabulary_of"]

Ids = npt.NDArray[np.int32]
Role = Literal["pad", "begin", "eos", "mask"]
_SPELT: Mapping[Role, str] = {"pad": "<pad>", "begin": "<cls>", "eos": "<eos>", "mask": "<mask>"}
_BYTES = 256


class _Shape(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Bytes(_Shape):
    """Each byte of the text's UTF-8 is a token; special tokens come after the 256."""

    kind: Literal["bytes"] = "bytes"


class BPE(_Shape):
    """Byte-pair encoding over bytes, trained on the training split alone: `size` tokens, fewer where the text has no more pairs to merge."""

    kind: Literal["bpe"] = "bpe"
    size: int = Field(default=4096, ge=_BYTES + 4, le=1 << 20)


class File(_Shape):
    """A tokenizer.json: `root` is the file, `eos` and the others name its special tokens; `begin` and `pad` are `eos` where they are not given."""

    kind: Literal["file"] = "file"
    root: str
    eos: str
    begin: str | None = None
    pad: str | None = None
    mask: str | None = None


class Pretrained(_Shape):
    """The tokenizer of a model of transformers: `root` is a folder or a name of the hub's; it says what its special tokens are, but for those named here."""

    kind: Literal["hf"] = "hf"
    root: str
    revision: str | None = None
    eos: str | None = None
    begin: str | None = None
    pad: str | None = None
    mask: str | None = None


Kind = Bytes | BPE | File | Pretrained
Tokens = Annotated[Kind, Field(discriminator="kind")]


def as_tokens(told: Any) -> Kind:
    """Return a tokenizer's options as what they are, from a mapping too.

    Raises:
        RecipeError: they cannot be meant.
    """
    try:
        return TypeAdapter(Tokens).validate_python(told)
    except ValidationError as error:
        first = error.errors()[0]
        raise RecipeError(f"tokenizer {'.'.join(map(str, first['loc']))}: {first['msg']}, not {first['input']!r}") from None


class Vocabulary(ABC):
    """Token ids and what they stand for. `names`: each token's, in order of its id; `roles`: what special tokens are for -> id."""

    names: tuple[str, ...]
    roles: Mapping[Role, int]
    chat: Chat | None = None
    """Writes conversations, where the tokenizer has a template for them."""

    @property
    def size(self) -> int:
        return len(self.names)

    @abstractmethod
    def encode(self, texts: Sequence[str]) -> list[Ids]:
        """Return the ids of each text, without special tokens."""

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, special tokens left out; bytes that are no UTF-8 become U+FFFD."""

    @abstractmethod
    def told(self) -> dict[str, Any]:
        """What `vocabulary_of` makes it of again, JSON-able."""

    @property
    def digest(self) -> str:
        return digest(self.told())


class _OfBytes(Vocabulary):
    def __init__(self, roles: Sequence[Role]) -> None:
        self.roles = {role: _BYTES + place for place, role in enumerate(roles)}
        self.names = (*(f"<{byte:02x}>" if not 32 < byte < 127 else chr(byte) for byte in range(_BYTES)), *(_SPELT[role] for role in roles))

    def encode(self, texts: Sequence[str]) -> list[Ids]:
        return [np.frombuffer(text.encode(), np.uint8).astype(np.int32) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(one for one in ids if one < _BYTES).decode(errors="replace")

    def told(self) -> dict[str, Any]:
        return {"kind": "bytes", "roles": list(self.roles)}


class _OfCodec(Vocabulary):
    def __init__(self, codec: Codec, roles: Mapping[Role, str], where: str, more: Told | None = None) -> None:
        place = {name: index for index, name in enumerate(codec.names)}
        for role, name in roles.items():
            if name not in place:
                raise DataError(f"{where} has no token {name!r} for {role}{did_you_mean(name, codec.specials)}")
        self._codec, self._spelt, self._more = codec, dict(roles), more
        if more is not None and more.template is not None:
            self.chat = Chat(more, where)
        self.names, self.roles = codec.names, {role: place[name] for role, name in roles.items()}

    def encode(self, texts: Sequence[str]) -> list[Ids]:
        return [np.array(ids, np.int32) for ids in self._codec.encode(texts)]

    def decode(self, ids: Sequence[int]) -> str:
        return self._codec.decode(ids)

    def told(self) -> dict[str, Any]:
        more = {} if self._more is None else {"specials": self._more.specials, "template": self._more.template}
        return {"kind": "tokenizers", "json": self._codec.json, "roles": self._spelt, **more}


def vocabulary(how: Kind, texts: Iterable[str], roles: Sequence[Role]) -> Vocabulary:
    """Make what a recipe asks for; `texts`, of the training split, are what a BPE learns from, `roles` are the special tokens that the task needs.

    Raises:
        DataError: a file that cannot be read, is no tokenizer, or lacks a token that is named.
        RecipeError: a file of which no token is named for a role that has no other.
        MissingDependency: the library tokenizers is not installed.
    """
    if isinstance(how, Bytes):
        return _OfBytes(roles)
    if isinstance(how, BPE):
        spelt: dict[Role, str] = {role: _SPELT[role] for role in roles}
        return _OfCodec(Codec(train_bpe(texts, how.size, list(spelt.values()))), spelt, "the tokenizer")
    more = told_of_folder(how.root, how.revision) if isinstance(how, Pretrained) else None
    eos, begin, pad, mask = _named(more.specials if more is not None else {}, how)
    named: dict[Role, str | None] = {"pad": pad or eos, "begin": begin or eos, "eos": eos, "mask": mask}
    every: list[Role] = [*roles, *(role for role in named if role in ("begin", "pad") and role not in roles and named[role] != eos)]
    wanted: dict[Role, str] = {}
    for role in every:
        if (name := named[role]) is None:
            way = f"tokenizer: {{kind: {how.kind}, {role}: ...}}"
            raise RecipeError(f"this task needs a token for {role}, and the tokenizer {how.root} is not told which: {way}")
        wanted[role] = name
    if more is not None:
        return _OfCodec(Codec(more.json, how.root), wanted, how.root, more)
    path = Path(how.root)
    try:
        told = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the tokenizer {path} cannot be read: {error.strerror if isinstance(error, OSError) else 'it is no UTF-8'}") from None
    return _OfCodec(Codec(told, str(path)), wanted, str(path))


def _named(specials: Mapping[str, str], how: File | Pretrained) -> tuple[str | None, ...]:
    """The tokens that are named for eos, begin, pad and mask: by the recipe, else by the tokenizer; one made for sentences ends by its separator."""
    usual = (("eos_token", "sep_token"), ("bos_token", "cls_token"), ("pad_token",), ("mask_token",))
    return tuple(
        own or next((specials[name] for name in names if name in specials), None)
        for own, names in zip((how.eos, how.begin, how.pad, how.mask), usual, strict=True)
    )  # fmt: skip


def vocabulary_of(preprocess: Mapping[str, Any]) -> Vocabulary:
    """Return the vocabulary of a model from `Facts.preprocess`, which its artifact keeps in its spec: what its tokens spell.

    Raises:
        MismatchError: the model was not made for text.
    """
    told = preprocess.get("tokenizer")
    if not isinstance(told, Mapping):
        raise MismatchError(f"this model reads no tokens: its preprocessing is {preprocess.get('kind') or 'not known'}")
    if told["kind"] == "bytes":
        return _OfBytes(told["roles"])
    more = Told(told["json"], told["specials"], told["template"]) if "template" in told else None
    return _OfCodec(Codec(told["json"]), told["roles"], "the tokenizer", more)
