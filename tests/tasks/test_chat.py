"""A model's own tokenizer, and conversations as its template has them: what transformers gives by hand, token by token."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.pretrained import CHAT, UNMARKED, tokenizer

from limbeck.core.errors import DataError, RecipeError
from limbeck.tasks._tokens import Pretrained, vocabulary, vocabulary_of
from limbeck.tasks.language import Language
from limbeck.tasks.masked import Masked
from limbeck.tasks.text import Text

TALK = [
    {"role": "system", "content": "be kind"},
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": "the cat sat"},
    {"role": "user", "content": "how are you"},
    {"role": "assistant", "content": "on the mat"},
]


def task(path: Path, lines: list[dict[str, Any]], **options: Any) -> Language:
    (path / "talk.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    how: dict[str, Any] = {"tokenizer": {"kind": "hf", "root": str(path)}, "context": 64, "packing": "padded", "turn": "template"} | options
    return Language(data="jsonl", root=str(path / "talk.jsonl"), validation=0, test=0, **how)


def row(made: Language, at: int = 0) -> tuple[list[int], list[int]]:
    batch = next(iter(made.loader("train", batch_size=len(made.made.rows["train"]), whole=True).batches(0)))
    return batch["input"][at].tolist(), batch["label"][at].tolist()


def test_its_ids_and_roles_are_the_tokenizers_own(tmp_path: Path) -> None:
    own = tokenizer(tmp_path)
    words = vocabulary(Pretrained(root=str(tmp_path)), [], ("pad", "begin", "eos", "mask"))
    text = "the cat sat, naïvely; 猫"
    assert words.encode([text])[0].tolist() == own(text, add_special_tokens=False)["input_ids"]
    assert words.roles == {"pad": own.pad_token_id, "begin": own.bos_token_id, "eos": own.eos_token_id, "mask": own.mask_token_id}
    assert words.size == len(own)
    again = vocabulary_of({"tokenizer": json.loads(json.dumps(words.told()))})
    assert again.encode([text])[0].tolist() == words.encode([text])[0].tolist()
    assert again.digest == words.digest
    assert again.chat is not None and again.chat.ids(TALK)[0] == own.apply_chat_template(TALK)["input_ids"]


def test_one_made_for_sentences_begins_and_ends_by_its_own(tmp_path: Path) -> None:
    own = tokenizer(tmp_path, None, cls_token="<s>", sep_token="</s>", pad_token="<pad>", mask_token="<mask>")
    assert vocabulary(Pretrained(root=str(tmp_path)), [], ("eos",)).roles == {"eos": own.sep_token_id, "begin": own.cls_token_id, "pad": own.pad_token_id}
    (tmp_path / "text.txt").write_text("the cat sat on the mat\n\nhello there\n\nhow are you")
    (tmp_path / "train.tsv").write_text("the cat\ta\nhello\tb\n" * 8)
    how: dict[str, Any] = {"tokenizer": {"kind": "hf", "root": str(tmp_path)}, "validation": 0, "test": 0}
    for made in (Masked(data="text", root=str(tmp_path / "text.txt"), context=8, **how), Text(data="tsv", root=str(tmp_path), context=8, **how)):
        fields = made.made.fields["input"]
        assert (fields[:, 0] == own.cls_token_id).all()
        assert ((fields == own.sep_token_id).sum(1) == 1).all()


def test_where_padding_is_the_end_token_the_first_end_is_learnt(tmp_path: Path) -> None:
    own = tokenizer(tmp_path, None, eos_token="</s>")
    made = task(tmp_path, [{"text": "the cat"}, {"text": "the cat sat on the mat, hello there"}])
    tokens, labels = row(made)
    ids = own("the cat")["input_ids"]
    end = own.eos_token_id
    assert tokens[: len(ids) + 1] == [end, *ids] and set(tokens[len(ids) + 1 :]) == {end}
    assert labels == [*ids, end] + [-100] * (64 - len(ids) - 1)


@pytest.mark.parametrize("template", [CHAT, UNMARKED])
def test_what_the_assistant_says_counts_and_nothing_else(template: str, tmp_path: Path) -> None:
    own = tokenizer(tmp_path, template)
    tokens, labels = row(task(tmp_path, [{"messages": TALK}]))
    wanted = own.apply_chat_template(TALK, tokenize=True)["input_ids"]
    assert tokens[: len(wanted) - 1] == wanted[:-1]
    said = [own(one, add_special_tokens=False)["input_ids"] for one in ("the cat sat<|end|>", "on the mat<|end|>")]
    assert [label for label in labels if label != -100] == [*said[0], *said[1]]
    place = next(at for at in range(len(wanted)) if wanted[at : at + len(said[0])] == said[0])
    assert labels[place - 1 : place - 1 + len(said[0])] == said[0], "the label of a token is the one after it"


def test_both_ways_of_telling_agree(tmp_path: Path) -> None:
    tokenizer(tmp_path / "a", CHAT)
    tokenizer(tmp_path / "b", UNMARKED)
    one, other = (vocabulary(Pretrained(root=str(tmp_path / name)), [], ("eos",)).chat for name in "ab")
    assert one is not None and other is not None
    for end in range(3, len(TALK) + 1):
        assert one.ids(TALK[:end]) == other.ids(TALK[:end])


def test_a_control_token_in_a_message_is_spelt_out(tmp_path: Path) -> None:
    own = tokenizer(tmp_path, UNMARKED)
    talk = [{"role": "user", "content": "say <|end|> now"}, *TALK[2:3]]
    tokens, _ = row(task(tmp_path, [{"messages": talk}]))
    assert tokens.count(own.convert_tokens_to_ids("<|end|>")) == 1, "the user's own; the last is a label alone"
    tokenizer(tmp_path, CHAT)
    with pytest.raises(DataError, match="spells a control token"):
        task(tmp_path, [{"messages": talk}]).facts()


def test_plain_lines_stand_beside_conversations(tmp_path: Path) -> None:
    own = tokenizer(tmp_path)
    made = task(tmp_path, [{"text": "the cat"}, {"messages": TALK}, {"prompt": "hello", "completion": " there"}], turn="template")
    assert row(made, 0)[0][0] == own.bos_token_id
    assert row(made, 1)[0][: len(own.apply_chat_template(TALK)["input_ids"]) - 1] == own.apply_chat_template(TALK)["input_ids"][:-1]
    assert [one for one in row(made, 2)[1] if one != -100] == [*own(" there", add_special_tokens=False)["input_ids"], own.eos_token_id]


@pytest.mark.parametrize(
    ("template", "error", "told"),
    [
        (None, RecipeError, "turn is template, and the tokenizer has none"),
        ("{{ messages | length }}", DataError, "does not write a conversation turn by turn.* generation"),
        ("{{ raise_exception('no system here') }}", DataError, "refuses a conversation: no system here"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", DataError, "refuses a conversation"),
    ],
)
def test_what_a_template_cannot_say(template: str | None, error: type[Exception], told: str, tmp_path: Path) -> None:
    tokenizer(tmp_path, template)
    with pytest.raises(error, match=told):
        task(tmp_path, [{"messages": TALK}], turn="template").facts()


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no tokenizer that transformers can read"):
        vocabulary(Pretrained(root=str(tmp_path)), [], ("eos",))


def test_a_tokenizer_without_a_mask_is_asked_for_one(tmp_path: Path) -> None:
    tokenizer(tmp_path, None, eos_token="</s>")
    with pytest.raises(RecipeError, match=r"needs a token for mask, .* \{kind: hf, mask: ...\}"):
        vocabulary(Pretrained(root=str(tmp_path)), [], ("eos", "mask"))
    assert "mask" in vocabulary(Pretrained(root=str(tmp_path), mask="<mask>"), [], ("eos", "mask")).roles


def test_rows_of_a_batch_are_whole_numbers(tmp_path: Path) -> None:
    tokenizer(tmp_path)
    made = task(tmp_path, [{"messages": TALK}] * 3, turn="template", packing="isolated")
    assert made.made.fields["input"].dtype == torch.int32
