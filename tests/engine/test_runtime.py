"""One process or two: the same losses; what is not there is refused; what one rank raises is raised here."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck.core.errors import DataError, MismatchError
from limbeck.core.events import Event, Note
from limbeck.core.scheme import Losses, Scheme
from limbeck.engine.runtime import Runtime


def test_two_processes_give_the_losses_of_one(arrays: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    import _ranks  # pyright: ignore[reportMissingImports]

    asked: list[tuple[str, dict[str, Any]]] = [
        ("both", {}),
        ("kd", {"accumulate": 4}),
        ("hints", {"epochs": 2}),
        ("contest", {"epochs": 2}),
        ("gathered", {"epochs": 2}),
        ("balance", {"epochs": 2}),
    ]
    alone = [_ranks.train(Runtime(), str(arrays), *one) for one in asked]
    assert len(alone[0][0]) == 5 * 4  # five epochs of twelve steps: sixty in all
    assert any("projector" in name for name in alone[0][1])
    heard: list[Event] = []
    runtime = Runtime(devices=2)
    with pytest.raises(DataError, match="label 7 is out of range"), runtime.relayed(heard.append) as tell:
        runtime.launch(_ranks.together, str(arrays), asked, str(tmp_path), tell)
    assert sorted(str(event.text) for event in heard if isinstance(event, Note)) == ["rank 0 of 2", "rank 1 of 2"]
    found, uneven, stopped = json.loads((tmp_path / "found.json").read_text())
    again = found.pop()
    assert stopped.startswith("interrupted at step 22 of 60 of train; the state is saved")  # at the look after step 15: ranks agree there
    assert again == found[0]
    for (scenario, _), (figures, weights), (theirs, ranks) in zip(asked, alone, found, strict=True):
        assert ranks[0] == ranks[1]
        if scenario == "balance":  # each rank's norms are of its own share of a batch: they agree on the mean of theirs
            continue
        assert theirs == pytest.approx(figures, rel=1e-4)
        flat = torch.cat([value.flatten() for value in weights.values()])
        torch.testing.assert_close(torch.tensor(ranks[0]), flat, rtol=1e-3, atol=1e-5)
    assert uneven[1] == pytest.approx(uneven[0]) and uneven[2] == pytest.approx(uneven[0])  # one batch for two ranks, three, and one each
    assert all(math.isfinite(value) for value in uneven[0].values())


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_an_accelerator_that_is_not_there_is_refused() -> None:
    with pytest.raises(MismatchError, match="1 cuda devices were asked for, and torch sees 0: take accelerator: cpu"):
        Runtime(accelerator="cuda")
    if not torch.backends.mps.is_available():
        with pytest.raises(MismatchError, match="mps"):
            Runtime(accelerator="mps")
    assert Runtime(accelerator="auto").device.type in ("cpu", "mps")


def test_float16_on_a_cpu_is_refused_and_not_replaced() -> None:
    with pytest.raises(MismatchError, match=r"16-mixed needs a GPU, .* take precision: bf16-mixed, or 32-true"):
        Runtime(precision="16-mixed")


class One(Scheme):
    """A single weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([3.0, 4.0]))

    def players(self) -> dict[str, list[torch.nn.Parameter]]:
        return {"student": [self.weight]}

    def optimizers(self) -> dict[str, Any]:
        return {}

    def forward(self, batch: object, phase: str = "student") -> Losses:
        return Losses({"student": (self.weight.square() / 2).sum()}, torch.ones(()))

    def shipped(self) -> dict[str, torch.nn.Module]:
        return {}

    def after_step(self) -> None: ...


def test_clipping_brings_the_norm_down_and_tells_what_it_was() -> None:
    runtime, scheme = Runtime(), One()
    setup = runtime.setup(scheme, {"student": torch.optim.SGD(scheme.parameters(), lr=1.0)})
    runtime.backward(setup.wrapped({}, "student").loss)
    assert runtime.clip(setup, "student", 10.0).item() == pytest.approx(5)
    assert scheme.weight.grad.tolist() == [3, 4]  # pyright: ignore[reportOptionalMemberAccess]
    assert runtime.clip(setup, "student", 1.0).item() == pytest.approx(5)
    assert scheme.weight.grad.tolist() == pytest.approx([0.6, 0.8], rel=1e-5)  # pyright: ignore[reportOptionalMemberAccess]


def test_a_single_process_sums_and_gathers_itself() -> None:
    runtime = Runtime()
    assert (runtime.rank, runtime.world, runtime.is_main) == (0, 1, True)
    assert runtime.sum(torch.tensor([1.0, 2.0])).tolist() == [1, 2]
    assert runtime.gather(torch.tensor([1, 2])).tolist() == [[1, 2]]
    heard: list[object] = []
    with runtime.relayed(heard.append) as tell:
        assert runtime.launch(lambda own, value: (tell(Note("here")), own is runtime, value), 7)[1:] == (True, 7)
    assert heard == [Note("here")]


def test_logs_from_an_earlier_attempt_give_way_from_the_same_step_on(tmp_path: Path) -> None:
    def log(start: int, *steps: int) -> None:
        runtime = Runtime()
        runtime.open_logs(tmp_path / "logs", start, tensorboard=False)
        for step in steps:
            runtime.log({"loss": step / 10}, step)
        runtime.close_logs()

    log(0, 1, 2)
    log(2, 3, 4, 5)
    log(2, 3, 4)
    rows = {path.parent.name: path.read_text().splitlines()[1:] for path in sorted((tmp_path / "logs").rglob("*.csv"))}
    assert [len(lines) for lines in rows.values()] == [2, 2]
    assert all("0.4" in line or "0.3" in line for line in rows["csv_000002"])
