"""Rows from column statistics: the marginals are those of the data, and the data are not needed."""

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from limbeck.core.artifact import Artifact, seal
from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.lookup import build
from limbeck.core.task import Facts, Task
from limbeck.transfer.marginals import drawn


@pytest.fixture
def task(tmp_path: Path) -> Task:
    """2,000 rows: a skewed number that a fifth of the rows lack, equal to another one, and a nominal attribute of unequal shares."""
    made = np.random.default_rng(0)
    a, colour = made.exponential(size=2000), made.choice(["r", "g", "b"], 2000, p=[0.7, 0.2, 0.1])
    rows = [f"{'' if row % 5 == 0 else f'{x:.5f}'},{x:.5f},{c},{('no', 'yes')[row % 2]}" for row, (x, c) in enumerate(zip(a, colour, strict=True))]
    (tmp_path / "toy.csv").write_text("\n".join(["a,b,c,answer", *rows]))
    return build("tasks", "table", {"data": "csv", "root": str(tmp_path / "toy.csv")})


def epoch(task: Any, number: int, source: Artifact | None = None, **options: Any) -> torch.Tensor:
    made = build("transfer", "marginals", options, source).loader(task, batch_size=100, seed=0)
    return torch.cat([batch["input"] for batch in made.batches(number)])


def test_the_marginals_are_those_of_the_training_rows(task: Task) -> None:
    real = torch.cat([batch["input"] for batch in task.loader("train", batch_size=2000, whole=True).batches(0)])
    columns = task.facts().preprocess["columns"]
    found = drawn(columns, torch.arange(50_000), 5)
    assert torch.allclose(found.mean(0), real.mean(0), atol=0.03)
    for place, mark in ((0, 1), (2, None)):  # a and its mark, b
        one, other = (rows[:, place] if mark is None else rows[rows[:, mark] == 0, place] for rows in (found, real))
        shares = torch.linspace(0.05, 0.95, 10)
        assert torch.allclose(one.quantile(shares), other.quantile(shares), atol=0.1)
        assert other.min() - 1e-5 <= one.min() and one.max() <= other.max() + 1e-5
    assert (found[found[:, 1] == 1, 0] == 0).all() and (found[:, 3:].sum(1) == 1).all()
    both = found[found[:, 1] == 0]
    assert abs(np.corrcoef(both[:, 0], both[:, 2])[0, 1]) < 0.02  # equal in the data


def test_epochs_are_new_rows_and_a_function_of_the_seed(task: Task) -> None:
    assert epoch(task, 0).shape == (1400, 6) and epoch(task, 0, rows=300).shape == (300, 6)
    assert not torch.equal(epoch(task, 0).sort(0).values, epoch(task, 1).sort(0).values)
    assert torch.equal(epoch(task, 1), epoch(task, 1))
    munged = epoch(task, 0, rows=300, p=0.5)
    assert not torch.equal(munged, epoch(task, 0, rows=300)) and (munged[:, 3:].sum(1) == 1).all()


class Blind:
    """Stands for a task whose data are gone: it knows the shape of a row, and has no loader."""

    def facts(self) -> Facts:
        return Facts((6,), 2, ("no", "yes"), 0)


def test_an_artifact_s_statistics_do_without_data(task: Task, tmp_path: Path) -> None:
    folder = tmp_path / "teacher"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(b"x")
    seal(folder, name="t", kind="graph", model="model.onnx", stage_hash="h", spec={"preprocess": dict(task.facts().preprocess)}, metrics={})
    expected = epoch(task, 0, rows=500)
    (tmp_path / "toy.csv").unlink()
    assert torch.equal(epoch(Blind(), 0, Artifact.open(folder), rows=500), expected)


def test_what_has_no_columns_is_refused(task: Task) -> None:
    digits = build("tasks", "image", {"data": "digits"})
    with pytest.raises(MismatchError, match=r"tell nothing of columns .preprocessing image.: marginals is for tables"):
        epoch(digits, 0)
    other = cast(Any, Blind())
    other.facts = lambda: Facts((5,), 2, ("no", "yes"), 0, preprocess=task.facts().preprocess)
    with pytest.raises(MismatchError, match=r"the columns make 6 features, and the task's rows have shape \[5\]"):
        epoch(other, 0)
    for options, message in (({"rows": 1}, "rows is 1"), ({"p": -0.1}, "p is -0.1"), ({"s": float("inf")}, "s is inf")):
        with pytest.raises(RecipeError, match=message):
            build("transfer", "marginals", options, None)
    with pytest.raises(MismatchError, match="marginals draws inputs that nobody recorded"):
        build("transfer", "marginals", {}, None).loader(task, batch_size=8, views=2)
