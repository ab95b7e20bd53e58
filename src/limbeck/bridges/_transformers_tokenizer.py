"""Tokenizers of transformers: what a folder says of one, conversations by its template, and a folder written for a model that was trained here."""

import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from limbeck.core.errors import DataError, RecipeError

from .transformers import library, located, quiet
from .vocabulary import _alphabet

__all__ = ["Chat", "Told", "as_told", "told_of_folder", "write"]

_NAMES = ("bos_token", "eos_token", "pad_token", "cls_token", "sep_token", "mask_token", "unk_token")
Message = Mapping[str, str]


class Told(NamedTuple):
    """A tokenizer: its tokenizer.json, what its special tokens are for, and its chat template, where it has one."""

    json: str
    specials: dict[str, str]
    template: str | None


def told_of_folder(name: str, revision: str | None = None) -> Told:
    """Read the tokenizer of a folder, or of a model of the hub.

    Raises:
        DataError: there is none, or none that can be told as a tokenizer.json.
    """
    folder = located(name, revision)
    try:
        with quiet():
            found: Any = library("a tokenizer of kind hf").AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise DataError(f"{name} holds no tokenizer that transformers can read ({' '.join(str(error).split())[:200]}): it wants tokenizer.json") from None
    if not found.is_fast:
        raise DataError(f"the tokenizer of {name} ({type(found).__name__}) has no tokenizer.json: write one with its own convert to a fast tokenizer")
    return Told(found.backend_tokenizer.to_str(), {one: told for one in _NAMES if (told := found.special_tokens_map.get(one))}, found.chat_template)


def _fast(told: Told) -> Any:
    import tokenizers

    with quiet():
        made = library("a tokenizer of kind hf").PreTrainedTokenizerFast(tokenizer_object=tokenizers.Tokenizer.from_str(told.json), **told.specials)
    made.chat_template = told.template
    return made


class Chat:
    """Writes conversations as a tokenizer's template has them; the template is Jinja, run in transformers' sandbox."""

    def __init__(self, told: Told, where: str) -> None:
        if told.template is None:
            raise RecipeError(f"{where} has no chat template: write turns out (turn: '{{role}}: {{content}}\\n'), or take another tokenizer")
        self._told, self._where = told, where
        self._marked = re.search(r"\{%-?\s*generation\s*-?%\}", told.template) is not None

    @cached_property
    def _tokenizer(self) -> Any:
        return _fast(self._told)

    def ids(self, messages: Sequence[Message]) -> tuple[list[int], list[bool]]:
        """Return the ids of a conversation, and which of them the assistant says: what stands within the template's `{% generation %}`.

        Where the template has none, it is what a message of the assistant's adds to the conversation before it and the prompt to go on.

        Raises:
            DataError: a conversation that the template refuses, or of which that cannot be said exactly.
        """
        ids = self._said(messages)
        return ids, self._by_mark(messages, ids) if self._marked else self._by_prefixes(messages, ids)

    def _said(self, messages: Sequence[Message], **how: bool) -> list[int]:
        try:
            return self._tokenizer.apply_chat_template([dict(one) for one in messages], tokenize=True, return_dict=False, sanitize_control_tokens=True, **how)
        except Exception as error:  # a template raises what it likes
            raise DataError(f"the chat template of {self._where} refuses a conversation: {' '.join(str(error).split())[:200]}") from None

    def _by_mark(self, messages: Sequence[Message], ids: list[int]) -> list[bool]:
        told = self._tokenizer.apply_chat_template([dict(one) for one in messages], tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
        if list(told["input_ids"]) != ids:
            raise DataError(f"a message spells a control token of {self._where}, and which tokens the assistant says cannot be told: take it out of the text")
        return [bool(one) for one in told["assistant_masks"]]

    def _by_prefixes(self, messages: Sequence[Message], ids: list[int]) -> list[bool]:
        counts = [False] * len(ids)
        for at, message in enumerate(messages):
            if message["role"] == "assistant":
                before, through = self._said(messages[:at], add_generation_prompt=True), self._said(messages[: at + 1])
                if through[: len(before)] != before or ids[: len(through)] != through:
                    raise DataError(
                        f"the chat template of {self._where} does not write a conversation turn by turn, and what the assistant says cannot be told: "
                        "mark it in the template by {% generation %} ... {% endgeneration %}, or write turns out (turn: '{role}: {content}\\n')"
                    )
                counts[len(before) : len(through)] = [True] * (len(through) - len(before))
        return counts


def as_told(told: Mapping[str, Any], names: Sequence[str], roles: Mapping[Any, int], *, sentences: bool) -> Told:
    """Return the tokenizer that a task tells of as transformers has one; bytes become a byte-level BPE without merges.

    One that was trained here puts a begin before a text, and of `sentences` an end behind it, as the task does.
    """
    if "specials" in told:
        return Told(told["json"], told["specials"], told["template"])
    import tokenizers
    from tokenizers import processors

    made = tokenizers.Tokenizer.from_str(told["json"]) if told["kind"] == "tokenizers" else _of_bytes([names[one] for one in roles.values()])
    spelt = {role: names[one] for role, one in roles.items()}
    begin, end = spelt.get("begin", spelt["eos"]), spelt["eos"]
    if json.loads(made.to_str())["post_processor"] is None:
        frame = f"{begin} $A {end}" if sentences else f"{begin} $A"
        made.post_processor = processors.TemplateProcessing(single=frame, special_tokens=[(one, made.token_to_id(one)) for one in dict.fromkeys((begin, end))])
    usual = {"bos_token": begin, "eos_token": end, "pad_token": spelt.get("pad", end), "mask_token": spelt.get("mask")}
    usual |= {"cls_token": begin, "sep_token": end} if sentences else {}
    return Told(made.to_str(), {name: one for name, one in usual.items() if one is not None}, None)


def _of_bytes(specials: Sequence[str]) -> Any:
    """Each byte as a token, its number its id; special tokens come after the 256."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    made = Tokenizer(models.BPE({**_alphabet()}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(list(specials))
    return made


def write(folder: Path, told: Told, most: int | None) -> None:
    """Write a tokenizer into a model's folder, so that `AutoTokenizer.from_pretrained` opens it; `most`: the tokens that the model reads."""
    made = _fast(told)
    if most is not None:
        made.model_max_length = most
    made.save_pretrained(folder)
    config = folder / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()), indent=2, sort_keys=True) + "\n")
