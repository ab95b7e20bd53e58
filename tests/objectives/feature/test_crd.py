"""`feature.crd` against a loop, its bank against a dictionary, and both after a kill."""

import copy
import math
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck import Offline
from limbeck.core.errors import ArtifactError, DataError, LockedError, MismatchError, RecipeError, StorageError, TrainingError
from limbeck.core.knowledge import Dense, Knowledge
from limbeck.core.task import Facts, Task
from limbeck.objectives.feature import _journal, crd
from limbeck.objectives.feature._bank import Bank, uniform_kernel
from limbeck.objectives.feature.crd import CRD, crd_loss

NO_TASK = cast(Task, None)
FACTS = Facts((1, 4, 4), 3, ("a", "b", "c"), 12)


def sides(ids: Tensor, seed: int = 0, mask: Tensor | None = None) -> tuple[Knowledge, Knowledge, dict[str, Tensor]]:
    """What both say of some examples, the same whenever it is asked, and the batch."""
    draw = torch.Generator().manual_seed(seed)
    ours, theirs = torch.randn(100, 6, generator=draw)[ids % 100], torch.randn(100, 2, 2, 2, generator=draw)[ids % 100]
    none = {"main": Dense(torch.zeros(len(ids), 3))}
    return Knowledge(none, {"s": ours}, mask), Knowledge(none, {"t": theirs}), {"id": ids, "label": ids % 3}


def bound(start: int = 0, **options: Any) -> CRD:
    torch.manual_seed(start)
    objective = CRD(layers={"s": "t"}, **{"embedding": 8, "negatives": 9, **options})
    objective.bind(*sides(torch.arange(4))[:2], NO_TASK, FACTS)
    return objective


def steps(objective: CRD, numbers: range) -> list[Tensor]:
    """Each step's losses: four examples of ids that are far apart."""
    losses: list[Tensor] = []
    for number in numbers:
        ids = torch.randperm(12, generator=torch.Generator().manual_seed(number))[:4] * 1001
        losses.append(objective(*sides(ids, number)).detach())
        objective.after_step()
    return losses


def test_the_leaf_equals_a_loop_in_value_and_gradient() -> None:
    anchor, positive = (F.normalize(torch.randn(3, 5, dtype=torch.float64)).requires_grad_() for _ in range(2))
    negatives, excluded = F.normalize(torch.randn(4, 5, dtype=torch.float64)), torch.tensor([[0, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]]).bool()
    expected = []
    for i in range(3):
        e = [math.e ** ((anchor[i] * other).sum() / 0.5) for other in (positive[i], *negatives)]
        kept = [one for one, out in zip(e[1:], excluded[i], strict=True) if not out]
        pushed = sum((-(1 - one / (one + 3.0)).log() for one in kept), torch.zeros(()))
        expected.append(-(e[0] / (e[0] + 3.0)).log() + pushed * 4 / max(len(kept), 1))
    loss = crd_loss(anchor, positive, negatives, excluded=excluded, temperature=0.5, noise=3.0)
    assert torch.allclose(loss, torch.stack(expected), rtol=1e-9)
    for leaf in (anchor, positive):
        one, other = (torch.autograd.grad(value.sum(), leaf, retain_graph=True)[0] for value in (loss, torch.stack(expected)))
        assert torch.allclose(one, other, rtol=1e-6, atol=1e-12)


def test_the_normalizer_is_what_random_rows_give() -> None:
    assert uniform_kernel(3, 0.25) == pytest.approx(math.sinh(4) / 4), "on a sphere"
    rows = F.normalize(torch.randn(200_000, 128))
    assert uniform_kernel(128, 0.07) == pytest.approx((rows[:, 0] / 0.07).exp().mean().item(), rel=0.02)
    assert bound(embedding=128, temperature=0.07).noise == pytest.approx(9 * 2.2087, rel=1e-4)
    assert bound(normalizer="paper").noise == 9 / 12


@given(
    n=st.integers(1, 4), k=st.integers(0, 5), scale=st.sampled_from([1e-4, 1.0, 1e4]),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
)  # fmt: skip
@settings(max_examples=25, deadline=None)
def test_the_leaf_is_finite_everywhere(n: int, k: int, scale: float, dtype: torch.dtype) -> None:
    anchor = (torch.randn(n, 1) * scale).to(dtype).requires_grad_()
    loss = crd_loss(anchor, (torch.randn(n, 1)).to(dtype), torch.randn(k, 1).to(dtype), noise=1.0)
    loss.sum().backward()
    assert anchor.grad is not None
    assert loss.isfinite().all() and anchor.grad.isfinite().all()
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


@pytest.mark.parametrize("others", ["classes", "examples"])
def test_forward_contrasts_with_the_rows_that_were_drawn_but_its_own_and_its_class(others: Any) -> None:
    objective = bound(others=others)
    steps(objective, range(5))
    student, teacher, batch = sides(torch.arange(4) * 1001, 9)
    s = F.normalize(objective.embed_student(student.features["s"]))
    t = F.normalize(objective.embed_teacher(teacher.features["t"].flatten(1)))
    bank = objective._bank
    assert bank is not None
    assert len(bank.drawn) == 9
    expected = []
    for i, own in enumerate(batch["id"].tolist()):
        rows = [row for row in bank.drawn.tolist() if bank.owners[row] != own and (others == "examples" or bank.labels[row] != own % 3)]
        half = [crd_loss(a[i : i + 1], b[i : i + 1], m[rows], noise=objective.noise) for a, b, m in ((s, t, bank.teacher), (t, s, bank.student))]
        close = [F.softplus(math.log(objective.noise) - (s[i] @ t[i]) / 0.07)] * 2
        expected.append(sum((h[0] - c) * 9 / len(rows) + c for h, c in zip(half, close, strict=True)))
    assert torch.allclose(objective(student, teacher, batch), torch.stack(cast(list[Tensor], expected)), rtol=1e-5)
    assert objective.needs.ids
    assert objective.needs.labels == (others == "classes")


def test_the_bank_follows_a_dictionary_whatever_the_order_of_the_examples() -> None:
    bank, mixed = (Bank(6, 3, "float32", torch.device("cpu"), draws=4, momentum=0.5) for _ in range(2))
    oracle: dict[int, Tensor] = {}
    for number in range(6):
        ids = torch.tensor([70_000, 5, -1, 33, 5, number + 100])
        new = F.normalize(torch.randn(6, 3))
        for at in (3, 1, 0, 5):  # id -1 is masked, and the second 5 does not count
            own = int(ids[at])
            oracle[own] = F.normalize((oracle[own] + new[at]) / 2, dim=0) if own in oracle else new[at]
        bank.take(ids, ids % 7, new, -new)
        order = torch.tensor([5, 2, 1, 4, 0, 3])
        mixed.take(ids[order], ids[order] % 7, new[order], -new[order])
    kept = [5, 33, 100, 70_000, 101, 102]  # in the order in which they came, by id within a step; then the bank is full
    assert bank.owners.tolist() == kept
    assert torch.allclose(bank.student, torch.stack([oracle[own] for own in kept]), atol=1e-6)
    assert torch.equal(bank.teacher, -bank.student)
    assert bank.labels.tolist() == [own % 7 for own in kept]
    assert all(torch.equal(one, other) for one, other in zip(bank._sides(), mixed._sides(), strict=True))
    with pytest.raises(DataError, match=r"9000000000.*number the examples from 0"):
        bank.take(torch.tensor([9_000_000_000]), torch.zeros(1).long(), new[:1], new[:1])


def test_forward_changes_nothing_and_masked_or_evaluated_examples_are_not_remembered() -> None:
    objective = bound()
    student, teacher, batch = sides(torch.arange(4), mask=torch.tensor([True, False, True, False]))
    bank = objective._bank
    assert bank is not None
    assert torch.equal(objective(student, teacher, batch), objective(student, teacher, batch))
    assert bank.filled == 0
    objective.after_step()
    assert bank.owners[: bank.filled].tolist() == [0, 2]
    objective.eval()(student, teacher, batch)
    with torch.no_grad():
        objective.train()(student, teacher, batch)
    objective.after_step()
    assert bank.updates == 1
    before = copy.deepcopy(objective)
    steps(objective, range(2))
    assert before._bank is not None
    assert (before._bank.updates, bank.updates) == (1, 3)


@pytest.mark.parametrize("options", [{}, {"dtype": "float16"}, {"bank": 5}, {"disk": "bank"}, {"disk": "bank", "dtype": "float16", "bank": 7}])
def test_a_run_that_was_saved_and_went_on_elsewhere_is_the_same_to_the_bit(options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    objective = bound(**options)
    expected = steps(objective, range(3))
    state = copy.deepcopy(objective.state_dict())
    expected = steps(objective, range(3, 8))
    whole = [side.clone() for side in cast(Bank, objective._bank)._sides()]
    assert ("bank.student" in state) == ("disk" not in options)
    del objective
    fresh = bound(1, **options)
    assert fresh.load_state_dict(state).missing_keys == []
    assert all(torch.equal(one, other) for one, other in zip(steps(fresh, range(3, 8)), expected, strict=True))
    assert all(torch.equal(one, other) for one, other in zip(cast(Bank, fresh._bank)._sides(), whole, strict=True))


KILLED = """
import os, signal, sys, torch
sys.path.insert(0, sys.argv[1])
from test_crd import bound, steps
objective = bound(disk="bank")
steps(objective, range(3))
torch.save(objective.state_dict(), "state")
steps(objective, range(3, 5))
objective.state_dict()
steps(objective, range(5, 6))
with objective._bank.journal._newest.open("ab") as file:
    file.write(b"half a record")
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_bank_on_disk_goes_back_to_its_checkpoint_after_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    ended = subprocess.run([sys.executable, str(script), str(Path(__file__).parent)], capture_output=True, text=True, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    fresh = bound(1, disk="bank")
    fresh.load_state_dict(torch.load("state", weights_only=True))
    whole = bound()
    steps(whole, range(3))
    assert all(torch.equal(one, other) for one, other in zip(cast(Bank, fresh._bank)._sides(), cast(Bank, whole._bank)._sides(), strict=True))
    assert all(torch.equal(one, other) for one, other in zip(steps(fresh, range(3, 8)), steps(whole, range(3, 8)), strict=True))


def test_a_bank_on_disk_that_does_not_lead_to_the_checkpoint_is_refused(tmp_path: Path) -> None:
    here = {"disk": str(tmp_path / "bank")}
    objective = bound(**here)
    steps(objective, range(1))
    state = copy.deepcopy(objective.state_dict())
    with pytest.raises(MismatchError, match="cannot be copied"):
        copy.deepcopy(objective)
    other = bound(**here)
    with pytest.raises(LockedError, match="bank"):
        steps(other, range(1))
    for number in range(1, 5):
        steps(objective, range(number, number + 1))
        objective.state_dict()
    assert len(list((tmp_path / "bank").glob("journal-*"))) == _journal.Journal.KEPT
    del objective, other
    with pytest.raises(ArtifactError, match=r"after 1 steps.*leads back to 3, 4, 5 only"):
        bound(**here).load_state_dict(state)
    with pytest.raises(ArtifactError, match="does not hold such a bank"):
        bound(**here, bank=4).load_state_dict(state)
    afresh = bound(**here)
    steps(afresh, range(1))
    assert cast(Bank, afresh._bank).filled == 4, "a run from the start begins with an empty bank"


def test_what_it_takes_is_said_and_refused_before_it_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (said,) = bound().said
    assert "2 x 12 embeddings of 8 float32" in said
    large = Facts((1, 4, 4), 3, ("a", "b", "c"), 10**12)
    for options, told in (({}, r"1040000.0 GB.*dtype: float16, bank:.*disk:"), ({"dtype": "float16"}, r"528000.0 GB.*free: take bank:")):
        objective = CRD(layers={"s": "t"}, **cast(Any, options))
        with pytest.raises(MismatchError, match=told):
            objective.bind(*sides(torch.arange(4))[:2], NO_TASK, large)
    with pytest.raises(StorageError, match=r"1040000.0 GB on disk.*choose another folder, or set bank"):
        CRD(layers={"s": "t"}, disk=str(tmp_path)).bind(*sides(torch.arange(4))[:2], NO_TASK, large)
    CRD(layers={"s": "t"}, bank=20).bind(*sides(torch.arange(4))[:2], NO_TASK, large)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 10_000})())
    with pytest.raises(MismatchError, match="CRD's bank of 2 x 12"):
        bound(embedding=128)
    monkeypatch.setattr(crd.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(crd.dist, "get_world_size", lambda: 2)
    with pytest.raises(MismatchError, match="one process, and there are 2"):
        bound(disk=str(tmp_path))


def test_what_cannot_be_meant_is_refused() -> None:
    student, teacher, _ = sides(torch.arange(4))
    with pytest.raises(MismatchError, match=r"facts=task.facts\(\)"):
        CRD(layers={"s": "t"}).bind(student, teacher, NO_TASK, None)
    with pytest.raises(MismatchError, match="others: examples"):
        CRD(layers={"s": "t"}).bind(student, teacher, NO_TASK, Facts((1,), 3, ("a", "b", "c"), 12, labelled=False))
    with pytest.raises(RecipeError, match="names 2"):
        CRD(layers={"s": "t", "u": "v"})
    with pytest.raises(RecipeError, match="did you mean 'classes'"):
        CRD(others=cast(Any, "class"))
    for option, value in (("momentum", 1.0), ("negatives", 0), ("bank", 1), ("temperature", 0.0)):
        with pytest.raises(RecipeError, match=option):
            CRD(**cast(Any, {option: value}))
    with pytest.raises(MismatchError, match=r"\[2, 4\].*\[2, 5\]"):
        crd_loss(torch.zeros(2, 4), torch.zeros(2, 5), torch.zeros(3, 4))


def test_a_loop_that_never_tells_of_its_steps_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crd, "_FORGOTTEN", 3)
    objective = bound()
    for _ in range(3):
        objective(*sides(torch.arange(4)))
    with pytest.raises(TrainingError, match=r"after_step\(\)"):
        objective(*sides(torch.arange(4)))


def test_it_teaches_a_student_to_be_told_apart_as_the_teacher_is_and_ships_nothing() -> None:
    def net(width: int) -> nn.Sequential:
        return nn.Sequential(nn.Flatten(), nn.Linear(16, width), nn.ReLU(), nn.Linear(width, 3))

    student, teacher = net(8), net(12)
    x, y, ids = torch.randn(12, 1, 4, 4), torch.arange(12) % 3, torch.arange(12)
    batches = [{"input": x[at], "label": y[at], "id": ids[at]} for at in (slice(0, 6), slice(6, 12))]
    objective = CRD(embedding=8, negatives=12, temperature=0.3)
    kd = Offline(student, teacher, [objective], example=batches[0], facts=FACTS)
    optimizer = torch.optim.Adam(kd.players()["student"], 0.02)
    losses: list[float] = []
    for _ in range(40):
        for batch in batches:
            loss = kd(batch).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            kd.after_step()
            losses.append(loss.item())
    assert losses[-1] < 0.6 * max(losses[1:5])
    assert objective.embed_teacher.weight.requires_grad
    assert kd.shipped()["student"] is student
    assert not any("bank" in name for name in student.state_dict())
    assert "pairs" in objective.said[0] and "remembers" in objective.said[1]
