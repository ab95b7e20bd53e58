"""A network's deeper exits as the teachers of its earlier ones."""

import pytest
import torch

from limbeck.core.errors import MismatchError
from limbeck.core.knowledge import Dense, Knowledge, Reads
from limbeck.core.lookup import build
from limbeck.core.task import default_task
from limbeck.teachers.exits import Exits


def said(*names: str) -> Knowledge:
    draw = torch.Generator().manual_seed(0)
    outputs = {name: Dense(torch.randn(4, 3, generator=draw).requires_grad_()) for name in names}
    return Knowledge(outputs, {"of.pool": torch.randn(4, 7, generator=draw).requires_grad_()})


@pytest.mark.parametrize(("by", "teaching"), [("deepest", {"exit1": "main", "exit2": "main"}), ("next", {"exit1": "exit2", "exit2": "main"})])
def test_who_teaches_whom(by: str, teaching: dict[str, str]) -> None:
    teacher: Exits = build("teachers", "exits", {"by": by})
    teacher.prepare(Reads(features=frozenset({"of.pool"})), default_task())
    student = said("main", "exit1", "exit2")
    found = teacher({}, student)
    assert found.outputs.keys() == teaching.keys(), "nobody teaches the deepest"
    for name, deeper in teaching.items():
        assert torch.equal(found.whole(name).logits, student.whole(deeper).logits)
        assert not found.whole(name).logits.requires_grad
    assert torch.equal(found.feature("of.pool"), student.feature("of.pool")) and not found.feature("of.pool").requires_grad


def test_a_network_without_exits_cannot_teach_itself() -> None:
    teacher = Exits()
    teacher.prepare(Reads(), default_task())
    with pytest.raises(MismatchError, match="one answer, 'main', and no exits"):
        teacher({}, said("main"))


@pytest.mark.parametrize("reads", [Reads(shapes=True), Reads(modules=frozenset({"of.pool"})), Reads(input_gradient=True)])
def test_what_it_cannot_give_is_refused(reads: Reads) -> None:
    with pytest.raises(MismatchError, match="name the layers"):
        Exits().prepare(reads, default_task())
