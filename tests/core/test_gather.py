"""Two processes' tensors put together, and the way back of their gradients."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck.core.gather import gathered

SCRIPT = Path(__file__).parent / "_gathering.py"


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes found."""
    store = tmp_path_factory.mktemp("gather") / "store"
    running = [
        subprocess.Popen([sys.executable, str(SCRIPT), str(rank), str(store)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for rank in (0, 1)
    ]
    said = [process.communicate(timeout=60) for process in running]
    assert all(process.returncode == 0 for process in running), said
    return [json.loads(out) for out, _ in said]


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script's own functions."""
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import _gathering  # pyright: ignore[reportMissingImports]

    return _gathering


def test_one_process_gives_the_tensor_itself() -> None:
    x = torch.randn(3, 2)
    assert gathered(x) is x


def test_every_rank_holds_all_in_order_of_rank(ranks: list[dict[str, Any]], own: Any) -> None:
    assert ranks[0]["whole"] == ranks[1]["whole"] == torch.cat([own.data(0), own.data(1)]).tolist()
    assert ranks[0]["transposed"] == torch.cat([own.data(0)[:2].T, own.data(1)[:2].T]).tolist()
    assert ranks[0]["ids"] == ranks[1]["ids"] == [0, 5, 1, 5]
    assert ranks[0]["masks"] == ranks[1]["masks"] == [True, True, False, True]


def test_gradients_are_the_sum_of_what_every_rank_sends(ranks: list[dict[str, Any]], own: Any) -> None:
    whole = torch.cat([own.data(0), own.data(1)]).requires_grad_()
    loss = own.spread(whole) + 3 * own.spread(3 * whole)
    loss.backward()
    assert whole.grad is not None
    expected = 2 * whole.grad  # both ranks have this very loss; the mean over ranks that the loop takes makes it one
    for rank, found in enumerate(ranks):
        assert found["loss"] == pytest.approx(loss.item(), rel=1e-12)
        assert torch.allclose(torch.tensor(found["grad"], dtype=torch.float64), expected[3 * rank : 3 * rank + 3], rtol=1e-9)


def test_a_term_that_gathers_has_the_loss_of_all_examples(ranks: list[dict[str, Any]], own: Any) -> None:
    whole = torch.cat([own.data(0), own.data(1)]).requires_grad_()
    loss = own.spread(whole) * 0.5
    loss.backward()
    assert whole.grad is not None
    for rank, found in enumerate(ranks):
        assert found["term"] == pytest.approx(loss.item(), rel=1e-12)
        assert torch.allclose(torch.tensor(found["term_grad"], dtype=torch.float64), 2 * whole.grad[3 * rank : 3 * rank + 3], rtol=1e-9)


def test_tensors_of_different_shapes_are_refused_by_every_rank(ranks: list[dict[str, Any]]) -> None:
    for found in ranks:
        assert "[3, 2] on rank 0 and [4, 2] on rank 1" in found["length"]
        assert "[3] on rank 0 and [3, 2] on rank 1" in found["rank"]


def test_the_likeliest_classes_of_all_processes(ranks: list[dict[str, Any]], own: Any) -> None:
    whole = torch.cat([own.data(0), own.data(1)])
    for found in ranks:
        assert found["topk"] == [whole.tolist(), [[0, 0]] * 3 + [[1, 1]] * 3, whole[:, 0].tolist()]
