"""Each ailment of language modelling, by a batch or a teacher broken on purpose."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from limbeck.core.knowledge import Hidden
from limbeck.core.lookup import build
from limbeck.core.task import Batch
from limbeck.objectives.supervised import Supervised
from limbeck.pipeline import _ailments_text as text
from limbeck.pipeline.doctor import dry, examine
from limbeck.schemes.offline import Offline

EOS = 9


def batch(**change: Tensor) -> dict[str, Tensor]:
    """Three documents in three rows, the last one ending early: what follows its end is padding, which is the end token too."""
    rows = torch.tensor([[9, 1, 2, 3, 4, 5, 6], [9, 4, 4, 3, 2, 1, 7], [9, 6, 5, 9, 9, 9, 9]])
    label = torch.cat([rows[:, 1:], torch.full((3, 1), -100)], 1)
    label[2, 3:] = -100
    label[:2, -1] = EOS
    return {"input": rows, "label": label, "id": torch.arange(3), **change}


def faults(found: Iterator[text.Finding]) -> list[str]:
    return [one.text for one in found if one.level == "fault"]


def test_a_sound_batch_has_no_fault() -> None:
    for look in (text.shift_of_labels(batch()), text.padded(batch(), EOS), text.padded(batch(), None), text.ended(batch(), EOS)):
        assert not faults(look)


def test_labels_that_were_not_shifted_or_shifted_twice() -> None:
    assert "inputs themselves (100%)" in faults(text.shift_of_labels(batch(label=batch()["input"].clone())))[0]
    twice = torch.cat([batch()["input"][:, 2:], torch.full((3, 2), -100)], 1)
    assert "shifted twice" in faults(text.shift_of_labels(batch(label=twice)))[0]
    assert not faults(text.shift_of_labels(batch(label=batch()["input"].clone(), attention=torch.ones(3, 7))))  # a masked model's are its inputs


@pytest.mark.parametrize(("field", "value", "says"), [("segment", 0, "by `segment`"), ("attention", 0, "padding"), ("prompt", 1, "a prompt by `prompt`")])
def test_padding_or_a_prompt_that_counts_by_the_batch_s_own_word(field: str, value: int, says: str) -> None:
    marked = torch.full((3, 7), 1 - value)
    marked[2, 1:] = value
    found = faults(text.padded(batch(**{field: marked}), EOS))
    assert says in found[0] and found[0].startswith("2 tokens")


def test_padding_that_counts_by_the_look_of_it() -> None:
    counted = batch()["label"]
    counted[2, 3:] = EOS
    assert "1 of 3 rows end in a run of token 9" in faults(text.padded(batch(label=counted), EOS))[0]
    assert "no token of the batch counts" in faults(text.padded(batch(label=torch.full((3, 7), -100)), EOS))[0]


def test_an_end_that_is_never_learnt_for_padding_is_the_same_token() -> None:
    label = batch()["label"]
    label[label == EOS] = -100  # masked by token, as padding
    assert "1 of 3 rows" in faults(text.ended(batch(label=label), EOS))[0]
    assert not faults(text.ended(batch(), EOS)) and not faults(text.ended(batch(label=label), None))


@pytest.mark.parametrize(("moved", "says"), [(0, None), (-1, "the token before"), (1, "the token after")])
def test_a_teacher_whose_answers_are_of_another_place(moved: int, says: str | None) -> None:
    given = torch.randint(0, 9, (4, 12), generator=torch.Generator().manual_seed(0))
    label = torch.cat([given[:, 1:], torch.full((4, 1), -100)], 1)
    known = nn.functional.one_hot(label.clamp(min=0).roll(-moved, 1), 9) * 8.0
    found = faults(text.shift_of_answers(known, {"input": given, "label": label}))
    assert not found if says is None else says in found[0]


class Table(nn.Module):
    """The next token by the present one."""

    def __init__(self, change: Callable[[Tensor], Tensor] = lambda logits: logits) -> None:
        super().__init__()
        self.embed, self.head, self.change = nn.Embedding(260, 8), nn.Linear(8, 260), change

    def forward(self, input: Tensor, **_: Any) -> Hidden | Tensor:
        states = self.embed(input)
        return Hidden(states, self.head.weight, self.head.bias)


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    path = tmp_path / "lines.txt"
    path.write_text("".join(f"the still drips {'slowly ' * (at % 4)}and is small.\n" for at in range(60)))
    return path


def test_the_doctor_looks_at_tokens(lines: Path) -> None:
    task = build("tasks", "language", {"data": "text", "root": str(lines), "tokenizer": {"kind": "bytes"}, "context": 16})
    torch.manual_seed(0)
    student, teacher = Table(), Table().eval()
    with torch.no_grad():
        teacher.head.weight.mul_(30)  # sure of what is wrong: worse than a student that knows nothing
    kd = Offline(student, teacher, [build("objectives", "response.divergence", {}), 0.5 * Supervised()], task)
    loader = task.loader("train", batch_size=8)
    raw: Batch = next(iter(loader.batches(0)))
    told = [str(one) for one in examine(kd, raw, [raw])]
    assert any("fine: each label is the token after its input" in one for one in told)
    assert any("fault: loss of the teacher" in one and "the student is better" in one for one in told)
    told = [str(one) for one in examine(kd, {**raw, "label": raw["input"]}, [raw])]
    assert any("fault: the labels are the inputs themselves" in one for one in told)


def test_a_recipe_s_price_is_told_before_it_runs(lines: Path) -> None:
    task = {"kind": "language", "data": "text", "root": str(lines), "tokenizer": {"kind": "bytes"}, "context": 16}
    model = {"kind": "gpt", "dim": 16, "depth": 1, "heads": 2}
    tree = {"name": "priced", "task": task, "stages": {"student": {"kind": "train", "model": model, "epochs": 3, "batch_size": 4}}}
    _, found = dry(tree)
    price = next(one.text for one in found["student"] if one.about == "price")
    assert price.startswith("an estimate: about ") and "of 3 epochs" in price and "MB at its peak" in price
