"""Codistillation: what is exchanged, when peers are heard, what a silent or broken one changes, and two processes at work."""

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.events import silent
from limbeck.core.lookup import build
from limbeck.core.objective import Objective
from limbeck.core.task import Facts
from limbeck.pipeline.run import run_recipe
from limbeck.schemes import _exchange
from limbeck.schemes.codistillation import Codistillation

FACTS = Facts((4,), 3, ("a", "b", "c"), 64)


def net(seed: int = 0, width: int = 5) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.5), nn.Linear(width, 3))


def objective(kind: str, **options: Any) -> Objective:
    return build("objectives", kind, options)


def taught() -> list[Any]:
    return [0.5 * objective("response.kd", temperature=2.0), objective("supervised")]


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    made = torch.Generator().manual_seed(7)
    return torch.randn(6, 4, generator=made), torch.randint(0, 3, (6,), generator=made)


def scheme(folder: Path, batch: Any, *, name: str = "a", peers: Any = ("b",), student: nn.Module | None = None, **options: Any) -> Codistillation:
    peers = list(peers) if isinstance(peers, tuple) else peers
    return Codistillation(student or net(), None, taught(), example=batch, facts=FACTS, folder=str(folder), name=name, peers=peers, **{"every": 2, **options})


def left(folder: Path, name: str, model: nn.Module, step: int, *, finished: bool = False) -> None:
    _exchange.leave(_exchange.place(folder, name), model, step, finished=finished)


def steps(made: Codistillation, count: int) -> list[str]:
    told: list[str] = []
    for _ in range(count):
        made.after_step()
        told += made.news()
    return told


def soft(z: Tensor, p: Tensor, temperature: float) -> Tensor:
    p, q = (p.log() / temperature).softmax(-1), (z / temperature).softmax(-1)
    return temperature**2 * (p * (p / q).log()).sum(-1)


def test_the_loss_is_that_of_the_labels_until_a_peer_is_heard_and_of_the_copies_mean_then(tmp_path: Path, batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch
    made = scheme(tmp_path, batch, peers=("b", "c")).eval()
    z = made.lesson.student(x)
    supervised = F.cross_entropy(z, y)
    found = made(batch)
    torch.testing.assert_close(found.loss, supervised)
    assert found.parts.keys() == {"supervised", "peers"} and found.parts["peers"] == 0
    others = {"b": net(1).eval(), "c": net(2).eval()}
    for name, other in others.items():
        left(tmp_path, name, other, 1)
    steps(made, 2)
    mean = sum(other(x).softmax(-1) for other in others.values()) / 2
    found = made(batch)
    torch.testing.assert_close(found.loss, supervised + 0.5 * soft(z, mean.detach(), 2.0).mean())  # pyright: ignore[reportAttributeAccessIssue]
    assert (found.parts["peers"] / 6, found.parts["lag"] / 6) == (2, 1)
    found.loss.backward()
    assert all(one.grad is None for one in made.company.parameters()) and all(one.grad is not None for one in made.players()["student"])
    assert len(made.players()["student"]) == len(list(net().parameters()))
    left(tmp_path, "b", net(3), 3)
    torch.testing.assert_close(made(batch).loss, found.loss)  # nothing is taken between two exchanges


def test_nobody_listens_before_the_burn_in_is_over(tmp_path: Path, batch: Any) -> None:
    made = scheme(tmp_path, batch, burn_in=5)
    left(tmp_path, "b", net(1), 4)
    assert steps(made, 5) == [] and not made.company.teaching
    assert _exchange.place(tmp_path, "a").is_file(), "it leaves its own weights all the same"
    assert steps(made, 1) == ["peer b is heard at step 6: it is at step 4"] and made.company.teaching == ["b"]


def test_what_is_left_is_the_whole_model_at_its_step(tmp_path: Path, batch: Any) -> None:
    made = scheme(tmp_path, batch)
    steps(made, 3)
    found = _exchange.found(_exchange.place(tmp_path, "a"))
    assert isinstance(found, _exchange.Left) and (found.step, found.finished) == (2, False)
    assert {name: value.tolist() for name, value in found.weights.items()} == {name: value.tolist() for name, value in net().state_dict().items()}
    made.leave(tmp_path / "artifact")
    found = _exchange.found(_exchange.place(tmp_path, "a"))
    assert isinstance(found, _exchange.Left) and (found.step, found.finished) == (3, True)
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"], "no scratch files"


def test_a_peer_that_dies_is_said_to_and_teaches_no_more_until_it_is_back(tmp_path: Path, batch: Any) -> None:
    made = scheme(tmp_path, batch, patience=2)
    left(tmp_path, "b", net(1), 2)
    assert len(steps(made, 2)) == 1
    assert steps(made, 2) == [] and made.company.teaching == ["b"]
    assert steps(made, 2) == ["peer b has left nothing new since its step 2, 2 exchanges ago: it is taken for dead, and teaches no more"]
    assert steps(made, 6) == [] and not made.company.teaching
    left(tmp_path, "b", net(1), 4)
    assert steps(made, 2) == ["peer b is heard again at step 14: it is at step 4"] and made.company.teaching == ["b"]
    left(tmp_path, "b", net(1), 5, finished=True)
    assert steps(made, 10) == [] and made.company.teaching == ["b"], "one that has finished teaches on"


def test_a_peer_that_never_comes_is_said_to_once_and_nobody_waits(tmp_path: Path, batch: Any) -> None:
    told = steps(scheme(tmp_path, batch), 8)
    assert told == [f"peer b has left nothing in {tmp_path} by step 2: training goes on without it"]


def test_waiting_is_for_those_behind_and_only_once_in_vain(tmp_path: Path, batch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        clock[0] += 1
        if clock[0] == 3:
            left(tmp_path, "b", net(1), 2)

    clock = [0.0]
    monkeypatch.setattr("limbeck.schemes.codistillation.time.sleep", sleep)
    monkeypatch.setattr("limbeck.schemes.codistillation.time.monotonic", lambda: clock[0])
    made = scheme(tmp_path, batch, wait=10.0)
    steps(made, 2)
    assert len(slept) == 3 and made.company.teaching == ["b"]
    steps(made, 2)
    assert len(slept) == 3, "one exchange behind is in time"
    steps(made, 4)
    assert len(slept) == 13, "two behind is waited for, to the end of the time"
    steps(made, 4)
    assert len(slept) == 13, "once"


def test_what_cannot_be_read_or_is_not_finite_is_said_and_the_last_copy_stands(tmp_path: Path, batch: Any) -> None:
    made = scheme(tmp_path, batch).eval()
    left(tmp_path, "b", net(1), 2)
    steps(made, 2)
    before = made(batch).loss
    path = _exchange.place(tmp_path, "b")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    (line,) = steps(made, 2)
    assert "b.safetensors cannot be read" in line and line.endswith("its last copy stands, if there is one")
    broken = net(1)
    with torch.no_grad():
        broken.get_parameter("0.bias").fill_(float("nan"))
    left(tmp_path, "b", broken, 6)
    save_file({"x": torch.zeros(1)}, path.with_name("c.safetensors"))
    assert steps(made, 2) == [] and _exchange.found(path) == "is not finite"
    assert _exchange.found(path.with_name("c.safetensors")) == "was not left by a codistillation"
    torch.testing.assert_close(made(batch).loss, before)


def test_a_peer_of_another_architecture_is_refused_unless_it_is_named(tmp_path: Path, batch: Any) -> None:
    other = build("models", "mlp", {"widths": [7]}, in_shape=(4,), classes=3)
    made = scheme(tmp_path, batch)
    left(tmp_path, "b", other, 2)
    with pytest.raises(MismatchError, match=r"what peer b left in .*b.safetensors is another model than it is said to be \(0.bias is not there in the file"):
        steps(made, 2)
    with pytest.raises(MismatchError, match="is another model"):
        scheme(tmp_path, batch)  # before step one, where the file is there
    known = scheme(tmp_path, batch, peers={"b": {"kind": "mlp", "widths": [7]}}).eval()
    steps(known, 2)
    z, p = known.lesson.student(batch[0]), other.eval()(batch[0]).softmax(-1).detach()
    torch.testing.assert_close(known(batch).loss, F.cross_entropy(z, batch[1]) + 0.5 * soft(z, p, 2.0).mean())


def test_two_processes_of_one_name_are_found_out(tmp_path: Path, batch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made = scheme(tmp_path, batch)
    steps(made, 2)
    with monkeypatch.context() as patch:
        patch.setattr(_exchange, "writer", lambda: "elsewhere:7")
        left(tmp_path, "a", net(4), 2)
    with pytest.raises(MismatchError, match="another process, elsewhere:7, leaves weights as a in"):
        steps(made, 2)


def test_what_an_earlier_training_left_is_told(tmp_path: Path, batch: Any) -> None:
    left(tmp_path, "a", net(4), 500)
    told = steps(scheme(tmp_path, batch), 2)
    assert told[0].startswith(f"{tmp_path / 'a.safetensors'} holds what an earlier training left at its step 500")


def test_the_copies_in_use_are_in_the_state(tmp_path: Path, batch: Any) -> None:
    made = scheme(tmp_path, batch, peers=("b", "c")).eval()
    left(tmp_path, "b", net(1), 2)
    steps(made, 5)
    left(tmp_path, "b", net(2), 5)
    fresh = scheme(tmp_path, batch, peers=("b", "c"), student=net(9)).eval()
    fresh.load_state_dict(copy.deepcopy(made.state_dict()))
    torch.testing.assert_close(fresh(batch).loss, made(batch).loss, rtol=0, atol=0)
    assert steps(fresh, 1) == steps(made, 1)
    torch.testing.assert_close(fresh(batch).loss, made(batch).loss, rtol=0, atol=0)
    assert fresh.get_extra_state().tolist() == made.get_extra_state().tolist()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"peers": ()}, "peers of a are nobody"),
        ({"peers": ("a", "b")}, "and not this one"),
        ({"peers": ("b", "b")}, "name each of the others once"),
        ({"peers": ("b/c",)}, "a peer cannot be called 'b/c'"),
        ({"every": 0}, "every 0 and patience 10 must be 1 or more"),
        ({"wait": float("inf")}, "must be 1 or more"),
        ({"peers": {"b": {"kind": "mpl"}}}, "did you mean 'mlp'"),
    ],
)
def test_what_cannot_be_meant_is_refused(options: dict[str, Any], message: str, tmp_path: Path, batch: Any) -> None:
    with pytest.raises(RecipeError, match=message):
        scheme(tmp_path, batch, **options)


def test_objectives_of_both_kinds_are_needed(tmp_path: Path, batch: Any) -> None:
    given: dict[str, Any] = {"example": batch, "folder": str(tmp_path), "name": "a", "peers": ["b"]}
    with pytest.raises(RecipeError, match=r"ask no teacher are learnt from, and there is none: add one, such as \{kind: supervised\}"):
        Codistillation(net(), None, [objective("response.kd")], **given)
    with pytest.raises(RecipeError, match="codistillation with the objectives supervised teaches nobody"):
        Codistillation(net(), None, [objective("supervised")], **given)


RECIPE = {
    "name": "pair",
    "task": {"kind": "image", "data": "digits", "subset": 512},
    "stages": {
        "student": {
            "kind": "train", "model": {"kind": "mlp", "widths": [16]}, "epochs": 3, "batch_size": 32,
            "objectives": [{"kind": "response.kd", "temperature": 1.0}, {"kind": "supervised"}],
            "scheme": {"kind": "codistillation", "folder": "shared", "name": "a", "peers": ["b"], "every": 5, "wait": 60},
        }
    },
    "measure": {"latency": False},
}  # fmt: skip


def test_two_processes_teach_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(json.dumps(RECIPE))
    other = ["seed=1", "stages.student.scheme.name=b", "stages.student.scheme.peers=[a]"]
    call = [sys.executable, "-m", "limbeck", "run", "recipe.yaml", "--out", "run-b", *(word for one in other for word in ("--set", one))]
    with subprocess.Popen(call, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as started:
        run_recipe("recipe.yaml", out=tmp_path / "run-a", listener=silent)
        told = started.communicate(timeout=120)[1]
    assert started.returncode == 0, told
    for name, peer in (("a", "b"), ("b", "a")):
        folder = tmp_path / f"run-{name}"
        notes = [note["text"] for note in json.loads((folder / "run.json").read_text())["notes"]]
        assert any(text.startswith(f"peer {peer} is heard at step 5") for text in notes), notes
        parts = [row["parts"] for row in json.loads((folder / "stages" / "student" / "history.json").read_text())["epochs"]]
        assert parts[-1]["peers"] == 1 and parts[-1]["kd"] > 0
    assert sorted(path.name for path in (tmp_path / "shared").iterdir()) == ["a.safetensors", "b.safetensors"]
