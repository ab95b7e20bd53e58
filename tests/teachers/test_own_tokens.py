"""A teacher that reads the student's text in tokens of its own."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from limbeck.core.errors import MismatchError
from limbeck.core.knowledge import Reads
from limbeck.core.lookup import build
from limbeck.core.task import Task
from limbeck.schemes.offline import Offline
from limbeck.teachers.own_tokens import OwnTokens


def task(folder: Path, tokenizer: dict[str, Any], context: int) -> Task:
    (folder / "book.txt").write_text("what was large is small, and drips; " * 30)
    options = {"root": str(folder / "book.txt"), "tokenizer": tokenizer, "context": context, "validation": 0, "test": 0}
    return build("tasks", "language", options)


def gpt(of: Task, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return build("models", "gpt", {"dim": 8, "depth": 1, "heads": 2, "dropout": 0.3}, in_shape=of.facts().in_shape, classes=of.facts().classes)


def test_it_answers_its_own_tokens_and_both_objectives_learn_from_it(tmp_path: Path) -> None:
    ours, theirs = task(tmp_path, {"kind": "bytes"}, 16), task(tmp_path, {"kind": "bpe", "size": 280}, 20)
    model, student = gpt(theirs, 1), gpt(ours, 0)
    with torch.no_grad():
        next(model.parameters()).mul_(20)  # a mind of its own
    teacher = OwnTokens(model, theirs)
    loader = build("transfer", "retokenized", {}, theirs).loader(ours, batch_size=4, seed=0)
    batch = next(loader.batches(0))
    teacher.prepare(Reads(), ours)
    said = teacher(batch)
    plain = model.eval()(batch["teacher_input"], batch["teacher_segment"], batch["teacher_position"])
    assert torch.equal(said.main.logits, plain.logits)
    assert said.mask is not None and torch.equal(said.mask, batch["teacher_label"] >= 0)
    for kind in ("sequence.uld", "sequence.aligned"):
        scheme = Offline(student, teacher, [build("objectives", kind, {})], ours, batch, ours.facts())
        optimizer = torch.optim.Adam(scheme.parameters(), 0.02)
        losses = []
        for _ in range(30):
            found = scheme(batch)
            losses.append(float(found.parts[kind.removeprefix("sequence.")] / found.count))
            found.loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        assert sum(losses[-3:]) < 0.95 * sum(losses[:3]), (kind, losses[0], losses[-1])
    assert not [*teacher.parameters()] and all(value.grad is None for value in model.parameters())


def test_batches_without_its_tokens_and_other_objectives_are_refused(tmp_path: Path) -> None:
    ours, theirs = task(tmp_path, {"kind": "bytes"}, 16), task(tmp_path, {"kind": "bpe", "size": 280}, 20)
    batch = next(ours.loader("train", batch_size=2).batches(0))
    teacher = OwnTokens(gpt(theirs, 1), theirs)
    with pytest.raises(MismatchError, match=r"reads tokens of its own, and the batch has .*retokenized"):
        Offline(gpt(ours, 0), teacher, [build("objectives", "sequence.uld", {})], ours, batch, ours.facts())
    with pytest.raises(MismatchError, match="reads the field 'ends' and the batch has"):
        Offline(gpt(ours, 0), gpt(ours, 1), [build("objectives", "sequence.aligned", {})], ours, batch, ours.facts())
    both = next(build("transfer", "retokenized", {}, theirs).loader(ours, batch_size=2, seed=0).batches(0))
    scheme = build("schemes", "on_policy", {"share": 1.0}, gpt(ours, 0), teacher, [build("objectives", "sequence.uld", {})], ours, both, ours.facts())
    with pytest.raises(MismatchError, match="no scheme in which the student writes"):
        scheme(both)
