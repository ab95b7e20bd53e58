"""What the tokens of a language model spell, byte for byte, from what a task tells of its tokenizer (`Facts.preprocess["tokenizer"]`)."""

import json
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from limbeck.core.errors import MismatchError

from .tokenizers import Codec

__all__ = ["Spelling", "differ", "end_of", "spelling"]

_BYTES = 256


def end_of(preprocess: Mapping[str, Any]) -> int | None:
    """Return the id of the token that ends a text, None where nothing is told of a tokenizer or it has none."""
    told = preprocess.get("tokenizer")
    if not isinstance(told, Mapping):
        return None
    return _roles(told).get("eos")


def differ(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str | None:
    """Say how the vocabularies of two models differ, from their preprocessing; None where they are one, or where one tells of none.

    >>> differ({"tokenizer": {"kind": "bytes", "roles": ["eos"]}}, {"tokenizer": {"kind": "bytes", "roles": ["eos"]}})
    >>> differ({"tokenizer": {"kind": "bytes", "roles": ["eos"]}}, {"tokenizer": {"kind": "bytes", "roles": ["pad", "eos"]}})
    "257 tokens of kind bytes and 258 tokens of kind bytes; 1 of the first 257 ids differs, 256 is 'eos' there and 'pad' here"
    """
    one, other = theirs.get("tokenizer"), ours.get("tokenizer")
    if not isinstance(one, Mapping) or not isinstance(other, Mapping):
        return None
    same = one["kind"] == other["kind"] and (one["roles"] == other["roles"] if one["kind"] == "bytes" else one["json"] == other["json"])
    if same:
        return None
    first, second = _names(one), _names(other)
    apart = [at for at, (a, b) in enumerate(zip(first, second, strict=False)) if a != b]
    most = min(len(first), len(second))
    if not apart:
        told = f"the first {most} ids alike"
    else:
        at = apart[0]
        verb = "differs" if len(apart) == 1 else "differ"
        told = f"{len(apart)} of the first {most} ids {verb}, {at} is {first[at]!r} there and {second[at]!r} here"
    return f"{_named(one)} and {_named(other)}; {told}"


def _named(told: Mapping[str, Any]) -> str:
    names = _names(told)
    return f"{len(names)} tokens of kind {'bytes' if told['kind'] == 'bytes' else str(json.loads(told['json'])['model'].get('type', 'unknown')).lower()}"


def _names(told: Mapping[str, Any]) -> Sequence[str]:
    return [*map(str, range(_BYTES)), *told["roles"]] if told["kind"] == "bytes" else _codec(told["json"]).names


def _roles(told: Mapping[str, Any]) -> dict[str, int]:
    if told["kind"] == "bytes":
        return {role: _BYTES + place for place, role in enumerate(told["roles"])}
    place = {name: index for index, name in enumerate(_codec(told["json"]).names)}
    return {role: place[name] for role, name in told["roles"].items()}


@cache
def _codec(told: str) -> Codec:
    return Codec(told)


class Spelling:
    """A vocabulary that spells every text byte for byte: `bytes` of each token, None for the special ones; `roles`: what those are for -> id."""

    def __init__(self, told: Mapping[str, Any]) -> None:
        self.roles = _roles(told)
        if told["kind"] == "bytes":
            self._codec = None
            self.bytes: tuple[bytes | None, ...] = (*(bytes([one]) for one in range(_BYTES)), *(None for _ in told["roles"]))
            return
        self._codec = _codec(told["json"])
        self.bytes = _spelt(json.loads(told["json"]), self._codec)

    def __len__(self) -> int:
        return len(self.bytes)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text, which together spell it.

        Raises:
            MismatchError: a text that is changed before it is divided.
        """
        if self._codec is None:
            return [list(text.encode()) for text in texts]
        made = self._codec.encode(texts)
        for text, ids in zip(texts, made, strict=True):
            if b"".join(self.bytes[one] or b"" for one in ids) != text.encode():
                raise MismatchError(f"the tokenizer changes {text[:40]!r} before it divides it, so that its tokens spell another text: {_WAY}")
        return made


_WAY = "tokens are aligned by bytes where both tokenizers spell a text as it is (bytes, or byte-level BPE without a normalizer)"


@cache
def _alphabet() -> dict[str, int]:
    """The character that byte-level BPE writes for each byte -> the byte (Radford et al. 2019): printable Latin-1 as it is, the others from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [one for one in range(_BYTES) if one not in printable]
    return {chr(one): one for one in printable} | {chr(0x100 + place): one for place, one in enumerate(others)}


def _spelt(told: Mapping[str, Any], codec: Codec) -> tuple[bytes | None, ...]:
    """The bytes of each token of a byte-level tokenizer.json."""
    decoder = told.get("decoder") or {}
    kinds = [one.get("type") for one in decoder.get("decoders", [decoder])]
    if kinds != ["ByteLevel"]:
        raise MismatchError(f"the tokenizer writes text back by {' and '.join(map(str, kinds))}, not byte by byte: {_WAY}")
    added = {one["content"]: None if one.get("special") else one["content"].encode() for one in told.get("added_tokens", [])}
    alphabet = _alphabet()
    return tuple(
        added[name] if name in added else bytes(alphabet[one] for one in name) if all(one in alphabet for one in name) else None for name in codec.names
    )


def spelling(preprocess: Mapping[str, Any]) -> Spelling:
    """Return what a model's tokens spell, from its preprocessing.

    Raises:
        MismatchError: it reads no tokens, or ones that do not spell a text byte for byte.
    """
    told = preprocess.get("tokenizer")
    if not isinstance(told, Mapping):
        raise MismatchError(f"this task reads no tokens (its preprocessing is {preprocess.get('kind') or 'not known'}): take a task of text, such as language")
    return Spelling(told)
