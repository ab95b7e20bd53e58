"""DER++: the loss by hand, the reservoir, and a kill."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.watched import Watched, press
from torch import Tensor, nn

from limbeck.core.artifact import Artifact, seal
from limbeck.core.errors import Interrupted, MismatchError, RecipeError
from limbeck.core.events import silent
from limbeck.core.lookup import build
from limbeck.core.task import Task
from limbeck.engine.loop import Work, fit
from limbeck.engine.plan import Training
from limbeck.engine.runtime import Runtime
from limbeck.schemes.der import DER, dark_loss
from limbeck.tasks.classify import Classify


@pytest.fixture
def data(tmp_path: Path) -> dict[str, Any]:
    made = np.random.default_rng(0)
    labels = np.arange(240) % 4
    images = (made.normal(size=(240, 4, 4)) + labels[:, None, None]).astype(np.float32)
    np.savez(tmp_path / "toy.npz", x_train=images[:200], y_train=labels[:200], x_test=images[200:], y_test=labels[200:])
    return {"kind": "image", "data": "npz", "root": str(tmp_path / "toy.npz"), "validation": 0.2}


def sequel(data: dict[str, Any], now: int, **more: Any) -> Task:
    return build("tasks", "split", {"of": {**data, **more}, "tasks": [[0, 1], [2, 3]], "now": now})


def net(classes: int, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return build("models", "mlp", {"widths": [8], "dropout": 0.2}, in_shape=(1, 4, 4), classes=classes)


def supervised() -> Any:
    return build("objectives", "supervised", {})


def der(task: Task, student: nn.Module, source: Artifact | None = None, **options: Any) -> DER:
    example = next(iter(task.loader("train", batch_size=16).batches(0)))
    return DER(student, None, [supervised()], task, example, task.facts(), source, **options)


def test_dark_loss_is_the_mean_over_known_classes() -> None:
    z, h = torch.randn(5, 4, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    h[1, 2:] = h[3] = float("nan")
    expected = [((z[n, : 2 if n == 1 else 4] - h[n, : 2 if n == 1 else 4]) ** 2).mean() if n != 3 else torch.tensor(0.0).double() for n in range(5)]
    torch.testing.assert_close(dark_loss(z, h).double(), torch.stack(expected), rtol=1e-5, atol=1e-6)
    leaf = z.requires_grad_()
    dark_loss(leaf, h).sum().backward()
    assert leaf.grad is not None and leaf.grad.isfinite().all() and not leaf.grad[3].any() and not leaf.grad[1, 2:].any()


def test_the_loss_is_the_stream_s_and_two_draws_by_hand(data: dict[str, Any]) -> None:
    task = sequel(data, 0)
    student = net(2).eval()
    scheme = der(task, student, size=6, alpha=0.3, beta=0.7, batch=4)
    first, second = list(task.loader("train", batch_size=8).batches(0))[:2]
    scheme.train()
    student.eval()
    plain = scheme(first).loss
    torch.testing.assert_close(plain, F.cross_entropy(student(first["input"]), first["label"]))
    held = [scheme.get_buffer(name).clone() for name in ("inputs", "labels", "logits")]
    assert torch.allclose(held[2], student(held[0]), atol=1e-6)
    with torch.no_grad():
        for weight in student.parameters():
            weight.mul_(1.3)
    rows = [scheme._drawn(which, 8) for which in (0, 1)]
    assert all(len(set(one.tolist())) == 4 for one in rows)
    dark = (student(held[0][rows[0]]) - held[2][rows[0]]).square().mean()
    again = F.cross_entropy(student(held[0][rows[1]]), held[1][rows[1]])
    found = scheme(second)
    torch.testing.assert_close(found.loss, F.cross_entropy(student(second["input"]), second["label"]) + 0.3 * dark + 0.7 * again)
    torch.testing.assert_close(found.parts["dark"] / found.count, dark)


def test_the_reservoir_holds_examples_as_they_are_and_evaluation_meets_nobody(data: dict[str, Any]) -> None:
    task = sequel(data, 0, augment=[{"kind": "shift", "pixels": 1}])
    scheme = der(task, net(2), size=5).train()
    for epoch in range(2):
        for batch in task.loader("train", batch_size=8).batches(epoch):
            scheme(batch)
    ids = scheme.get_buffer("ids")
    still = {
        int(one): image
        for raw in sequel(data, 0).loader("train", batch_size=64, whole=True).batches(0)
        for one, image in zip(raw["id"], raw["input"], strict=True)
    }
    assert all(torch.equal(image, still[int(one)]) for one, image in zip(ids, scheme.get_buffer("inputs"), strict=True))
    before = scheme.state_dict()["ids"].clone()
    with torch.no_grad():
        scheme(batch)
    assert torch.equal(scheme.state_dict()["ids"], before) and scheme._seen == 160


@pytest.mark.parametrize("keep", ["ids", "examples"])
def test_the_next_task_goes_on_with_what_was_left(data: dict[str, Any], tmp_path: Path, keep: str) -> None:
    task = sequel(data, 0)
    scheme = der(task, net(2), size=6, keep=keep).train()
    for batch in task.loader("train", batch_size=8).batches(0):
        scheme(batch)
    scheme.leave(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    seal(tmp_path, name="first", kind="module", model="model.safetensors", stage_hash="0", spec={}, metrics={})
    assert ("inputs" in scheme.state_dict()) == (keep == "examples")
    later = der(sequel(data, 1), net(4), Artifact.open(tmp_path), size=6, keep=keep)
    assert later._seen == 80
    for name in ("ids", "labels", "inputs"):
        assert torch.equal(later.get_buffer(name), scheme.get_buffer(name))
    assert torch.equal(later.get_buffer("logits")[:, :2], scheme.get_buffer("logits")) and later.get_buffer("logits")[:, 2:].isnan().all()
    assert len(der(sequel(data, 1), net(4), Artifact.open(tmp_path), size=4, keep=keep).get_buffer("ids")) == 4
    with pytest.raises(RecipeError, match="a reservoir of 6 of 80 examples cannot become one of 9: size is 6 at most"):
        der(sequel(data, 1), net(4), Artifact.open(tmp_path), size=9, keep=keep)


@pytest.mark.parametrize("keep", ["ids", "examples"])
def test_a_stopped_training_goes_on_to_the_bit(data: dict[str, Any], tmp_path: Path, keep: str) -> None:
    task = sequel(data, 0, augment=[{"kind": "shift", "pixels": 1}])
    plan = Training.model_validate({"epochs": 3, "batch_size": 16, "optimizer": {"kind": "adam", "lr": 0.01}})

    def train(folder: Path | None, stop: int = 0) -> dict[str, Tensor]:
        scheme = der(task, net(2), size=7, keep=keep)
        torch.manual_seed(1)
        loader = task.loader("train", batch_size=16, seed=0)
        work = None if folder is None else Work(folder, folder / "logs")
        fit(scheme, task, Watched(loader, press(stop)), plan, Runtime(), work=work, listener=silent)
        return {**scheme.state_dict(), "inputs": scheme.get_buffer("inputs")}

    whole = train(None)
    with pytest.raises(Interrupted):
        train(tmp_path, stop=8)
    resumed = train(tmp_path)
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name].nan_to_num(9.0), resumed[name].nan_to_num(9.0)) for name in whole)


def test_a_loop_of_one_s_own() -> None:
    torch.manual_seed(0)
    student = nn.Sequential(nn.Linear(3, 2))
    x, y = torch.randn(8, 3), torch.randint(0, 2, (8,))
    scheme = DER(student, None, [supervised()], Classify(), (x, y), size=4, keep="examples").train()
    scheme((x, y)).loss.backward()
    assert scheme((x, y)).parts.keys() == {"supervised", "dark", "replayed"}


@pytest.mark.parametrize(
    ("options", "message"),
    [({"alpha": -1.0}, "alpha is -1"), ({"beta": float("nan")}, "beta is nan"), ({"batch": 0}, "batch is 0"), ({"size": 0}, "size is 0")],
)
def test_bad_options_are_refused(data: dict[str, Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        der(sequel(data, 0), net(2), **options)


def test_what_it_cannot_do_is_refused(data: dict[str, Any]) -> None:
    with pytest.raises(MismatchError, match="give the scheme `example=` a batch"):
        DER(net(2), None, [supervised()], sequel(data, 0))
    with pytest.raises(MismatchError, match="give keep='examples'"):
        DER(nn.Linear(3, 2), None, [supervised()], Classify(), (torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64)))
    scheme = der(sequel(data, 0), net(2), size=5).train()
    other = next(iter(sequel(data, 1).loader("train", batch_size=8).batches(0)))
    with pytest.raises(MismatchError, match="examples that are not the task's own"):
        scheme({**other, "label": other["label"] % 2})
