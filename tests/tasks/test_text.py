"""`text`: sentences as rows of tokens, their labels and splits, and what a table may not be."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.core.errors import DataError, RecipeError
from limbeck.tasks.text import Text

PAD, BEGIN, EOS = 256, 257, 258


class Counts(nn.Module):
    """Reads how long each sentence is."""

    def forward(self, input: Tensor, attention: Tensor) -> Tensor:
        length = attention.sum(1).float()
        return torch.stack([length, 2 * length, -length], 1)


def written(folder: Path, **files: list[tuple[str, str]]) -> str:
    for name, lines in files.items():
        (folder / f"{name}.tsv").write_text("".join(f"{sentence}\t{label}\n" for sentence, label in lines))
    return str(folder)


LINES = [(f"sentence {number}", "abc"[number % 3]) for number in range(30)]


def made(root: str, **how: Any) -> Text:
    return Text(**{"data": "tsv", "root": root, "tokenizer": {"kind": "bytes"}, "context": 16, **how})


def everything(task: Text, split: Any) -> dict[str, Tensor]:
    return dict(next(iter(task.loader(split, batch_size=1000, whole=True).batches(0))))


def test_a_row_is_its_sentence_between_begin_and_end(tmp_path: Path) -> None:
    task = made(written(tmp_path, train=[("ab", "y"), ("c\td", "n")], test=[("a" * 30, "n")]), validation=0.0)
    facts = task.facts()
    assert (facts.in_shape, facts.classes, facts.class_names, facts.examples) == ((16,), 2, ("n", "y"), 2)
    assert facts.preprocess["vocabulary"] == 260
    assert facts.preprocess["shortened"] == 1
    batch = everything(task, "train")
    assert batch["input"].tolist() == [[BEGIN, *b"ab", EOS, *[PAD] * 12], [BEGIN, *b"c\td", EOS, *[PAD] * 11]]
    assert torch.equal(batch["attention"], (batch["input"] != PAD).long())
    assert batch["label"].tolist() == [1, 0]
    test = everything(task, "test")
    assert test["input"].tolist() == [[BEGIN, *b"a" * 14, EOS]]
    assert test["id"].tolist() == [2]


def test_splits_without_files_are_carved_with_the_same_mix_and_share_no_row(tmp_path: Path) -> None:
    task = made(written(tmp_path, train=LINES), validation=0.2, test=0.3)
    assert task.splits() == ("train", "validation", "test")
    found = {split: everything(task, split) for split in task.splits()}
    assert {split: len(batch["id"]) for split, batch in found.items()} == {"train": 15, "validation": 6, "test": 9}
    assert sorted(one for batch in found.values() for one in batch["id"].tolist()) == list(range(30))
    for batch in found.values():
        assert batch["label"].bincount().unique().numel() == 1
    assert made(str(tmp_path), subset=4, validation=0.0, test=0.0).facts().examples == 4


def test_the_files_of_sst2_are_found(tmp_path: Path) -> None:
    folder = tmp_path / "text-sst2"
    folder.mkdir()
    written(folder, train=[("sentence", "label"), *LINES], dev=LINES[:6], test=LINES[:9])
    task = made(str(tmp_path), data="sst2")
    assert [len(everything(task, split)["id"]) for split in task.splits()] == [30, 6, 9], "a line of names is no sentence"


def test_loss_and_accuracy_are_those_of_a_classifier(tmp_path: Path) -> None:
    task = made(written(tmp_path, train=LINES))
    batch = everything(task, "train")
    said = task.forward(Counts(), task.batch(batch))
    logits = said.main.logits
    assert torch.allclose(task.loss(said, batch), F.cross_entropy(logits, batch["label"], reduction="none"))
    scores = task.scores(said, batch)
    assert torch.equal(scores["accuracy"], (batch["label"] == 1).float())
    assert task.metric == "accuracy"
    assert task.higher_is_better


def test_a_trimmed_batch_says_the_same(tmp_path: Path) -> None:
    root = written(tmp_path, train=LINES)
    whole, trimmed = (everything(made(root, trim=trim), "train") for trim in (False, True))
    longest = int(whole["attention"].sum(1).max())
    assert trimmed["input"].shape[1] == longest < 16
    assert torch.equal(trimmed["input"], whole["input"][:, :longest])
    assert torch.equal(Counts()(trimmed["input"], trimmed["attention"]), Counts()(whole["input"], whole["attention"]))
    assert made(root, trim=True).fingerprint() != made(root).fingerprint()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no label here\n", "line 1 has no tab"),
        ("a\ty\n\tx\n", "line 2 has no sentence"),
        ("a\ty\nb\t \n", "line 2 has no label"),
        ("a\ty\nb\ty\n", "must be two classes"),
        ("", "empty document"),
        ("sentence\tlabel\n", "holds no sentence"),
    ],
)
def test_tables_that_are_none_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "train.tsv").write_text(text)
    with pytest.raises(DataError, match=message):
        made(str(tmp_path), validation=0.0, test=0.0).facts()


def test_a_label_that_training_never_saw_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="test split has the label 'd'"):
        made(written(tmp_path, train=LINES, test=[("x", "d")])).facts()
    with pytest.raises(DataError, match=r"no train\.tsv"):
        made(str(tmp_path / "nowhere")).facts()


@pytest.mark.parametrize("how", [{"data": "csv"}, {"root": None}, {"context": 2}, {"validation": 1.0}, {"test": -1.0}, {"subset": 0}])
def test_options_that_cannot_be_meant_are_refused(tmp_path: Path, how: dict[str, Any]) -> None:
    with pytest.raises(RecipeError):
        made(**{"root": written(tmp_path, train=LINES), **how})
