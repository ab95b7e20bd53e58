"""The student writes, the teacher scores, and nobody takes the student's word for the truth."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.knowledge import Knowledge
from limbeck.core.lookup import build
from limbeck.core.objective import Objective
from limbeck.core.task import Batch, Task
from limbeck.objectives.response.divergence import divergence_loss
from limbeck.schemes.minillm import MiniLLM
from limbeck.schemes.on_policy import OnPolicy

T = 10


@pytest.fixture(scope="module")
def sums(tmp_path_factory: pytest.TempPathFactory) -> Task:
    path = tmp_path_factory.mktemp("sums") / "train.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": f"{at % 7}+{at % 5}=", "completion": str(at % 7 + at % 5)}) for at in range(40)))
    told = {"tokenizer": {"kind": "bytes"}, "context": T, "packing": "padded", "validation": 0, "test": 0}
    return build("tasks", "language", {"data": "jsonl", "root": str(path), **told})


def gpt(seed: int, dim: int = 8, **options: Any) -> nn.Module:
    torch.manual_seed(seed)
    return build("models", "gpt", {"dim": dim, "depth": 1, "heads": 2, **options}, in_shape=(T,), classes=257)


def batch_of(task: Task, size: int = 6) -> Batch:
    return next(task.loader("train", batch_size=size, seed=0).batches(0))


def jsd() -> Objective:
    return build("objectives", "response.divergence", {"divergence": {"kind": "jsd", "beta": 0.3}})


def supervised() -> Objective:
    return build("objectives", "supervised", {})


def made(task: Task, *objectives: Objective, student: nn.Module | None = None, seed: int = 7, **options: Any) -> OnPolicy:
    student, teacher = student or gpt(0), gpt(1, 12)
    torch.manual_seed(seed)
    return OnPolicy(student, teacher, objectives or [jsd()], task, batch_of(task), task.facts(), **options)


def test_the_loss_of_a_step_is_the_divergence_on_what_the_student_writes(sums: Task) -> None:
    student = gpt(0).eval()
    scheme, batch = made(sums, student=student, share=1.0, temperature=0.0), batch_of(sums)
    own = scheme.own(batch)
    total, count = 0.0, 0
    for row in range(6):
        before = int((batch["label"][row] >= 0).int().argmax())
        text = batch["input"][row, : before + 1].tolist()
        while len(text) < T + 1 and (len(text) == before + 1 or text[-1] != 256):
            with torch.no_grad():
                text.append(int(student(torch.tensor([text])).logits[0, -1].argmax()))
        written = text[before + 1 :]
        assert own["label"][row].tolist() == [-100] * before + written + [-100] * (T - before - len(written))
        assert own["input"][row, : len(text)].tolist() == text[:T]
        x = torch.tensor([text[:-1]])
        teacher: Any = scheme.base.teacher
        with torch.no_grad():
            each = divergence_loss(student(x).logits, teacher.model.eval()(x).logits, divergence={"kind": "jsd", "beta": 0.3})[0]  # pyright: ignore[reportArgumentType]
        total, count = total + float(each[before:].sum()), count + len(written)
    found = scheme(batch)
    assert found.count == count and found.parts.keys() == {"divergence_own"}
    torch.testing.assert_close(found.sums["student"].detach(), torch.tensor(total), rtol=1e-4, atol=1e-5)
    found.loss.backward()
    assert all(value.grad is None for value in teacher.model.parameters()) and any(
        bool(value.grad.abs().sum() > 0) for value in student.parameters() if value.grad is not None
    )


def test_labels_count_on_the_data_alone_and_that_is_said(sums: Task) -> None:
    scheme, batch = made(sums, jsd(), supervised(), share=0.4), batch_of(sums)
    seen = []
    for _ in range(60):
        own = scheme.writes()
        assert scheme(batch).parts.keys() == ({"divergence_own"} if own else {"divergence", "supervised"})
        seen.append(own)
        scheme.after_step()
    assert 0.2 < sum(seen) / 60 < 0.6
    assert scheme.news() == ("supervised read labels: they count on the data, not in the 40% of steps in which the student writes",) and scheme.news() == ()


def test_what_is_written_depends_on_seed_step_and_row_alone(sums: Task) -> None:
    scheme, batch = made(sums, share=0.5), batch_of(sums)
    first = scheme.own(batch)["label"]
    torch.manual_seed(99)
    halves = [scheme.own({name: value[some] for name, value in batch.items()})["label"] for some in (slice(0, 3), slice(3, 6))]
    assert torch.equal(torch.cat(halves), first)
    turns = [(scheme.writes(), scheme.after_step())[0] for _ in range(20)]
    assert not torch.equal(scheme.own(batch)["label"], first)
    again, other = made(sums, share=0.5), made(sums, share=0.5, seed=8)
    assert [(again.writes(), again.after_step())[0] for _ in range(20)] == turns
    assert torch.equal(again.own(batch)["label"], scheme.own(batch)["label"])
    assert [(other.writes(), other.after_step())[0] for _ in range(20)] != turns
    resumed = made(sums, share=0.5, seed=8)
    resumed.load_state_dict(scheme.state_dict())
    assert torch.equal(resumed.own(batch)["label"], scheme.own(batch)["label"])


@pytest.mark.parametrize("kind", ["on_policy", "minillm"])
def test_micro_batches_add_up(sums: Task, kind: str) -> None:
    batch = batch_of(sums)

    def gradient(cuts: list[slice]) -> Tensor:
        scheme = made(sums, share=1.0) if kind == "on_policy" else MiniLLM(gpt(0), gpt(1), [supervised()], sums, batch, sums.facts(), alpha=0.2)
        torch.manual_seed(7)
        scheme.turns.seed = 5
        losses = [scheme({name: value[some] for name, value in batch.items()}) for some in cuts]
        sum(one.sums["student"] for one in losses).backward()  # pyright: ignore[reportAttributeAccessIssue]
        return torch.cat([value.grad.flatten() for value in scheme.base.student.parameters() if value.grad is not None])

    whole, parts = gradient([slice(0, 6)]), gradient([slice(0, 2), slice(2, 6)])
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-5)


def test_dropout_does_not_reach_what_is_written(sums: Task) -> None:
    student = gpt(0, dropout=0.5).train()
    scheme, batch = made(sums, student=student, share=1.0), batch_of(sums)
    assert torch.equal(scheme.own(batch)["label"], scheme.own(batch)["label"]) and student.training


class _Voiceless(nn.Module):
    """A model that keeps nothing of what it has read."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = gpt(0)

    def forward(self, input: Tensor, segment: Tensor | None = None, position: Tensor | None = None) -> Tensor:
        return self.inner(input, segment, position).logits


def test_a_model_without_a_cache_writes_the_same(sums: Task) -> None:
    batch = batch_of(sums)
    texts = [made(sums, student=student, share=1.0).own(batch)["label"] for student in (gpt(0), _Voiceless())]
    assert torch.equal(*texts)


def test_minillm_is_the_policy_gradient_beside_the_data(sums: Task) -> None:
    batch = batch_of(sums)
    student, teacher = gpt(0).eval(), gpt(1, 12)
    scheme = MiniLLM(student, teacher, [supervised()], sums, batch, sums.facts(), alpha=0.25, weight=0.5)
    found = scheme(batch)
    read = (batch["label"] >= 0).sum()
    with torch.no_grad():
        data = sums.loss(sums.forward(student, batch), batch).sum()
    assert found.parts.keys() == {"policy", "reverse_kl", "supervised"} and found.count > read
    torch.testing.assert_close(found.parts["supervised"] / found.count, data / read)
    policy = found.parts["policy"] / found.count * (found.count - read)
    torch.testing.assert_close(found.sums["student"].detach(), data + 0.5 * policy)
    rows: list[Tensor] = []
    plain = scheme.pen.write

    def kept(*args: Any) -> dict[str, Tensor]:
        rows.append((text := plain(*args))["label"])
        return text

    scheme.pen.write = kept  # pyright: ignore[reportAttributeAccessIssue]
    scheme(batch)
    text = {**batch, "label": rows[0], "input": torch.where(torch.cat([rows[0][:, :1] < 0, rows[0][:, :-1] < 0], 1), batch["input"], rows[0].roll(1, 1))}
    with torch.no_grad():
        q, p = (sums.forward(model.eval(), text).main.logits.log_softmax(-1)[rows[0] >= 0] for model in (student, teacher))
    torch.testing.assert_close(found.parts["reverse_kl"] / found.count, (q.exp() * (q - p)).sum(-1).mean(), rtol=1e-4, atol=1e-5)


def test_a_student_learns_to_say_what_its_teacher_says(sums: Task) -> None:
    """Both schemes lower the reverse KL on the student's own texts."""
    teacher: Any = gpt(1, 12)
    teacher.head = nn.Linear(12, 257, bias=False)
    with torch.no_grad():
        teacher.head.weight.mul_(4)
    batch = batch_of(sums, 20)
    for kind in ("on_policy", "minillm"):
        student = gpt(0, 12)
        torch.manual_seed(0)
        objectives = [build("objectives", "response.divergence", {"divergence": "reverse_kl"})] if kind == "on_policy" else [0.0 * supervised()]
        options: dict[str, Any] = {"share": 1.0} if kind == "on_policy" else {"alpha": 0.2}
        scheme = build("schemes", kind, options, student, teacher, objectives, sums, batch, sums.facts())
        optimizer = torch.optim.Adam(student.parameters(), 0.02)
        told = []
        for _ in range(60):
            losses = scheme(batch)
            told.append(float(losses.parts["divergence_own" if kind == "on_policy" else "reverse_kl"] / losses.count))
            losses.loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            scheme.after_step()
        assert sum(told[-5:]) < 0.7 * sum(told[:5]), kind


def test_what_cannot_be_meant_is_refused(sums: Task) -> None:
    batch, facts = batch_of(sums), sums.facts()
    for options in ({"share": 0.0}, {"share": 1.5}, {"prompt": 0.0}, {"tokens": 0}, {"temperature": -1.0}, {"top_p": 2.0}):
        with pytest.raises(RecipeError, match=next(iter(options))):
            made(sums, **options)
    with pytest.raises(RecipeError, match=r"supervised read labels, and the student's own text has none: add"):
        made(sums, supervised())
    with pytest.raises(RecipeError, match=r"share is 1, so that supervised.*leave them out, or lower share"):
        made(sums, jsd(), supervised(), share=1.0)
    with pytest.raises(MismatchError, match="a teacher scores what the student writes, and there is none"):
        OnPolicy(gpt(0), None, [jsd()], sums, batch, facts)
    peer = build("teachers", "ema", {}, gpt(1))
    with pytest.raises(MismatchError, match=r"EMA is no frozen model: take \{kind: frozen\}, or alpha: 0"):
        MiniLLM(gpt(1), peer, [supervised()], sums, batch, facts)
    for options in ({"alpha": 1.0}, {"weight": 0.0}):
        with pytest.raises(RecipeError, match=next(iter(options))):
            MiniLLM(gpt(0), gpt(1), [supervised()], sums, batch, facts, **options)  # pyright: ignore[reportArgumentType]
    digits = build("tasks", "image", {"data": "digits", "subset": 64})
    images = next(digits.loader("train", batch_size=4).batches(0))
    nets = [build("models", "mlp", {"widths": [4]}, in_shape=(1, 8, 8), classes=10) for _ in range(2)]
    scheme = OnPolicy(nets[0], nets[1], [build("objectives", "response.kd", {})], digits, images, digits.facts(), share=1.0)
    with pytest.raises(MismatchError, match=r"the batch has input \[4, 1, 8, 8\].*take a task of text"):
        scheme(images)


def test_a_teacher_that_was_recorded_is_refused(sums: Task) -> None:
    class Recorded(build("teachers", "blackbox", {}, lambda x: x).__class__):
        def forward(self, batch: Batch, student: Knowledge | None = None) -> Knowledge:
            raise AssertionError

    teacher = Recorded(lambda x: x, views=1)
    with pytest.raises(MismatchError, match=r"Recorded knows what was recorded of the data, and on-policy distillation asks about what the student writes"):
        OnPolicy(gpt(0), teacher, [jsd()], sums, batch_of(sums), sums.facts())


def test_lengths_and_places(sums: Task, tmp_path: Path) -> None:
    scheme, batch = made(sums, share=1.0, tokens=2), batch_of(sums)
    assert int((scheme.own(batch)["label"] >= 0).sum(1).max()) <= 2
    path = tmp_path / "plain.txt"
    path.write_text("no prompt in a plain text but its beginning\n" * 4)
    plain = build("tasks", "language", {"data": "text", "root": str(path), "tokenizer": {"kind": "bytes"}, "context": T, "validation": 0, "test": 0})
    batch = batch_of(plain)
    batch = {name: value[(batch["label"] >= 0).all(1)] for name, value in batch.items()}
    own = made(plain, share=1.0, prompt=0.3).own(batch)
    assert torch.equal(own["input"][:, :3], batch["input"][:, :3]) and bool((own["label"][:, :2] == -100).all()) and bool((own["label"][:, 2] >= 0).all())
