"""Data sets of the library datasets: the same rows as in files give the same task, column by column."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from tests.pretrained import tokenizer

from limbeck.core.errors import DataError, RecipeError
from limbeck.tasks.language import Language
from limbeck.tasks.masked import Masked
from limbeck.tasks.text import Text

SAID = ["the cat sat on the mat", "hello there, how are you", "a dog ran by", "", "it is late"]
BYTES: dict[str, Any] = {"tokenizer": {"kind": "bytes"}, "context": 32}


@pytest.fixture(autouse=True)
def _silent() -> Any:
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def saved(path: Path, **splits: dict[str, list[Any]]) -> str:
    found = {split: datasets.Dataset.from_dict(columns) for split, columns in splits.items()}
    made: Any = found["train"] if list(splits) == ["train"] else datasets.DatasetDict(found)
    made.save_to_disk(path)
    return str(path)


def rows(task: Any, split: str = "train") -> torch.Tensor:
    return task.made.fields["input"][task.made.rows[split]]


def test_texts_are_those_of_the_same_lines(tmp_path: Path) -> None:
    root = saved(tmp_path / "saved", train={"text": SAID}, test={"text": ["the end"]})
    (tmp_path / "train.jsonl").write_text("".join(json.dumps({"text": one}) + "\n" for one in SAID if one))
    (tmp_path / "test.jsonl").write_text(json.dumps({"text": "the end"}))
    ours = Language(data="hub", root=root, packing="padded", validation=0, **BYTES)
    theirs = Language(data="jsonl", root=str(tmp_path), packing="padded", validation=0, **BYTES)
    assert ours.splits() == theirs.splits() == ("train", "test")
    for split in ("train", "test"):
        assert torch.equal(rows(ours, split), rows(theirs, split))
    assert ours.facts().preprocess["bytes"] == theirs.facts().preprocess["bytes"]


def test_a_single_table_is_divided(tmp_path: Path) -> None:
    root = saved(tmp_path / "saved", train={"sentence": [f"{one} {at}" for at in range(20) for one in SAID if one]})
    task = Masked(data="hub", root=root, hub={"text": "sentence"}, validation=0.1, test=0.1, **BYTES)  # pyright: ignore[reportArgumentType]
    assert task.splits() == ("train", "validation", "test")
    assert len(task.made.rows["validation"]) and len(task.made.rows["test"])


def test_prompts_are_read_and_not_learnt(tmp_path: Path) -> None:
    root = saved(tmp_path / "saved", train={"question": ["a", "bb"], "answer": ["yes", "no"], "text": ["x", "y"]})
    task = Language(data="hub", root=root, hub={"prompt": "question", "completion": "answer"}, packing="padded", validation=0, test=0, **BYTES)  # pyright: ignore[reportArgumentType]
    labels = task.made.fields["label"]
    assert [bytes(one for one in row.tolist() if 0 <= one < 256).decode() for row in labels] == ["yes", "no"]


def test_messages_by_the_models_own_template(tmp_path: Path) -> None:
    own = tokenizer(tmp_path / "tokens")
    talk = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "the cat"}]
    root = saved(tmp_path / "saved", train={"messages": [talk, talk], "label": [0, 1]})
    how: dict[str, Any] = {"tokenizer": {"kind": "hf", "root": str(tmp_path / "tokens")}, "context": 32, "packing": "padded"}
    task = Language(data="hub", root=root, turn="template", validation=0, test=0, **how)
    wanted = own.apply_chat_template(talk, tokenize=True)["input_ids"]
    assert rows(task)[0, : len(wanted) - 1].tolist() == wanted[:-1]


def test_classes_have_their_names_and_hidden_labels_are_no_split(tmp_path: Path) -> None:
    features = datasets.Features({"sentence": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])})
    made = datasets.DatasetDict({
        "train": datasets.Dataset.from_dict({"sentence": ["no", "yes"] * 10, "label": [0, 1] * 10}, features=features),
        "validation": datasets.Dataset.from_dict({"sentence": ["yes"], "label": [1]}, features=features),
        "test": datasets.Dataset.from_dict({"sentence": ["who knows"], "label": [-1]}, features=features),
    })  # fmt: skip
    made.save_to_disk(tmp_path / "saved")
    task = Text(data="hub", root=str(tmp_path / "saved"), hub={"text": "sentence"}, test=0, **BYTES)  # pyright: ignore[reportArgumentType]
    assert task.facts().class_names == ("bad", "good")
    assert task.splits() == ("train", "validation")
    assert task.made.fields["label"][task.made.rows["validation"]].tolist() == [1]
    (tmp_path / "train.tsv").write_text("no\tbad\nyes\tgood\n" * 10)
    (tmp_path / "dev.tsv").write_text("yes\tgood\n")
    theirs = Text(data="tsv", root=str(tmp_path), test=0, **BYTES)
    assert all(torch.equal(one, theirs.made.fields[name]) for name, one in task.made.fields.items())


def test_a_folder_of_data_files_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "train.csv").write_text("text,label\nyes,a\nno,b\n")
    task = Text(data="hub", root=str(tmp_path / "files"), validation=0, test=0, **BYTES)
    assert task.facts().class_names == ("a", "b")


def test_its_fingerprint_is_of_what_is_read_and_not_of_where_it_lies(tmp_path: Path) -> None:
    columns: dict[str, list[Any]] = {"text": ["one", "two"], "other": [1, 2]}
    roots = [
        saved(tmp_path / "a", train=columns),
        saved(tmp_path / "b", train=columns | {"other": [3, 4]}),
        saved(tmp_path / "c", train={"text": ["one", "too"]}),
    ]
    prints = [Language(data="hub", root=root, validation=0, test=0, **BYTES).fingerprint() for root in roots]
    assert prints[0] == prints[1] != prints[2]


@pytest.mark.parametrize(
    ("columns", "hub", "error", "told"),
    [
        ({"sentence": ["a"]}, None, RecipeError, r"no column text, messages, nor prompt and completion: name the one, hub: \{text: COLUMN\}"),
        ({"sentence": ["a"]}, {"text": "sentense"}, RecipeError, "names the column 'sentense' for text.*did you mean 'sentence'"),
        ({"text": ["", " "]}, None, DataError, "the train split of .* has no text"),
        ({"text": ["a"]}, {"config": "plain"}, RecipeError, "was saved to disk, and has neither"),
        ({"messages": [[{"role": "user", "content": "hi"}]]}, None, DataError, "row 0 of train has no message of the assistant"),
    ],
)
def test_what_cannot_be_read_is_said(columns: dict[str, list[Any]], hub: Any, error: type[Exception], told: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=told):
        Language(data="hub", root=saved(tmp_path / "saved", train=columns), hub=hub, validation=0, test=0, **BYTES).facts()


def test_other_mistakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RecipeError, match="hub says how data of kind hub are read, and data is 'text'"):
        Language(data="text", root=str(tmp_path), hub={})  # pyright: ignore[reportArgumentType]
    with pytest.raises(RecipeError, match="each row is a document"):
        Language(data="hub", root=str(tmp_path), documents="lines")
    with pytest.raises(DataError, match="and no train"):
        Language(data="hub", root=_dict(tmp_path), **BYTES).facts()
    with pytest.raises(RecipeError, match="has no column 'label'"):
        Text(data="hub", root=saved(tmp_path / "x", train={"text": ["a"]}), **BYTES).facts()
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match="is no data set that can be read"):
        Language(data="hub", root=str(tmp_path / "nowhere"), **BYTES).facts()


def _dict(path: Path) -> str:
    datasets.DatasetDict({"test": datasets.Dataset.from_dict({"text": ["a"]})}).save_to_disk(path / "only")
    return str(path / "only")
