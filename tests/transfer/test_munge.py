"""MUNGE against a naive loop with the same draws, its statistics, and its loader as the loop needs it."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.watched import Killed, Watched, kill
from torch import Tensor, nn

from limbeck.bridges.scikit_learn import nearest
from limbeck.core.artifact import Artifact
from limbeck.core.draw import bits, key
from limbeck.core.errors import DataError, MismatchError, RecipeError
from limbeck.core.events import silent
from limbeck.core.lookup import build
from limbeck.core.task import Batch, Loader, Task
from limbeck.engine.loop import Fit, Work, fit
from limbeck.engine.plan import Training
from limbeck.engine.runtime import Runtime
from limbeck.pipeline.run import run_recipe
from limbeck.tasks.table import prepare
from limbeck.transfer._munge import comparable, layout_of, munged, normals, uniform, waves

COLUMNS: list[dict[str, Any]] = [
    {"name": "a", "kind": "numeric", "start": 0, "width": 1, "missing": False},
    {"name": "b", "kind": "nominal", "start": 1, "width": 3, "missing": False},
    {"name": "c", "kind": "numeric", "start": 4, "width": 2, "missing": True},
    {"name": "d", "kind": "nominal", "start": 6, "width": 2, "missing": True},
]
TOLD = {"kind": "table", "columns": COLUMNS}


def mixed(count: int = 80, seed: int = 0) -> Tensor:
    """Rows of two numbers, one of which may be missing, and two nominal attributes."""
    made = np.random.default_rng(seed)
    rows = np.zeros((count, 8), dtype=np.float32)
    rows[:, 0], missing = made.normal(size=count), made.random(count) < 0.3
    rows[np.arange(count), 1 + made.integers(0, 3, count)] = 1
    rows[:, 4], rows[:, 5] = np.where(missing, 0, made.normal(size=count)), missing
    rows[np.arange(count), 6 + made.integers(0, 2, count)] = 1
    return torch.from_numpy(rows)


def word(counter: int, with_key: int) -> int:
    return int(bits(torch.tensor([counter]), with_key)) & ((1 << 64) - 1)


def naive(rows: Tensor, ids: Tensor, p: float, s: float, with_key: int) -> tuple[np.ndarray, list[int]]:
    """Algorithm 1 in float64, row by row and attribute by attribute, with neighbours by the definition of the distance."""
    whole = rows.double().numpy()
    start = whole.copy()
    span = [whole[:, place].max() - whole[:, place].min() for place in (0, 4)]

    def apart(one: int, other: int) -> float:
        x, y = start[one], start[other]
        return (
            ((x[0] - y[0]) / span[0]) ** 2 + float(x[1:4].argmax() != y[1:4].argmax()) + ((x[4] - y[4]) / span[1]) ** 2
            + float(x[5] != y[5]) + float(x[6:8].argmax() != y[6:8].argmax())
        )  # fmt: skip

    partners = [min((other for other in range(len(whole)) if other != row), key=lambda other, row=row: apart(row, other)) for row in range(len(whole))]
    for row, other in enumerate(partners):
        for number, column in enumerate(COLUMNS):
            counter = int(ids[row]) * len(COLUMNS) + number
            if not (word(counter, key(with_key, 1)) >> 40) / 2**24 < p:
                continue
            block = slice(column["start"], column["start"] + column["width"])
            mine, theirs = whole[row, block].copy(), whole[other, block].copy()
            if column["kind"] == "numeric" and not (column["missing"] and (mine[1] or theirs[1])):
                hashed = word(counter, key(with_key, 2))
                radius, angle = math.sqrt(-2 * math.log(((hashed >> 32) + 0.5) / 2**32)), 2 * math.pi * (hashed & 0xFFFFFFFF) / 2**32
                sd = abs(mine[0] - theirs[0]) / s
                whole[row, block.start], whole[other, block.start] = theirs[0] + sd * radius * math.cos(angle), mine[0] + sd * radius * math.sin(angle)
            else:
                whole[row, block], whole[other, block] = theirs, mine
    return whole, partners


def one_pass(rows: Tensor, ids: Tensor, p: float, s: float, with_key: int = 7) -> Tensor:
    layout = layout_of(TOLD, rows.shape[1])
    partner = nearest(comparable(rows, layout))
    return munged(rows, ids, partner, waves(partner), layout, p=p, s=s, with_key=with_key)


@pytest.mark.parametrize(("p", "s"), [(0.5, 2.0), (1.0, 0.5), (0.1, 10.0)])
def test_a_pass_is_algorithm_1(p: float, s: float) -> None:
    rows, ids = mixed(), torch.arange(80) * 3 + 5
    expected, partners = naive(rows, ids, p, s, 7)
    assert nearest(comparable(rows, layout_of(TOLD, 8))).tolist() == partners
    found = one_pass(rows, ids, p, s)
    assert np.abs(found.double().numpy() - expected).max() < 1e-5 * max(1.0, np.abs(expected).max())
    assert not torch.equal(found, rows)


def test_p_0_gives_the_rows_again() -> None:
    rows = mixed()
    assert torch.equal(one_pass(rows, torch.arange(80), 0.0, 2.0), rows)


def test_without_noise_attributes_only_change_places() -> None:
    rows = mixed()
    found = one_pass(rows, torch.arange(80), 0.7, 1e12)
    for block in (slice(0, 1), slice(1, 4), slice(4, 6), slice(6, 8)):
        before, after = (sorted(map(tuple, part[:, block].tolist())) for part in (rows, found))
        assert np.allclose(before, after, atol=1e-5)
    assert not torch.equal(found, rows)


def test_what_is_nominal_or_missing_stays_what_it_is() -> None:
    found = one_pass(mixed(), torch.arange(80), 0.9, 0.3)
    for block in (slice(1, 4), slice(6, 8)):
        assert (found[:, block].sum(1) == 1).all() and ((found[:, block] == 0) | (found[:, block] == 1)).all()
    assert (found[found[:, 5] == 1, 4] == 0).all()
    assert found[:, 5].sum() == mixed()[:, 5].sum()


def test_the_draws_are_uniform_and_normal() -> None:
    counters = torch.arange(200_000)
    drawn = uniform(counters, 3)
    assert drawn.min() >= 0 and drawn.max() < 1
    assert torch.allclose(torch.histc(drawn, 20, 0, 1) / len(drawn), torch.full((20,), 0.05), atol=0.002)
    for one in normals(counters, 3):
        assert abs(one.mean()) < 0.01 and abs(one.std() - 1) < 0.01 and abs(one.pow(4).mean() - 3) < 0.1
    one, other = normals(counters, 3)
    assert abs((one * other).mean()) < 0.01


def test_the_noise_of_a_pair_has_the_deviation_that_s_says() -> None:
    rows, ids = torch.tensor([[0.0], [1.0]]).repeat(20_000, 1), torch.arange(40_000)
    wave = [torch.arange(0, 40_000, 2)]  # the first of each pair's turn alone
    made = munged(rows, ids, torch.arange(40_000) ^ 1, wave, layout_of({}, 1), p=1.0, s=4.0, with_key=3).view(-1, 2)
    assert torch.allclose(made.mean(0), torch.tensor([1.0, 0.0]), atol=0.01)
    assert torch.allclose(made.std(0), torch.tensor([0.25, 0.25]), atol=0.005)


def test_waves_keep_the_order_of_those_that_touch_one_row() -> None:
    partner = torch.from_numpy(np.random.default_rng(0).integers(0, 50, 50))
    partner = torch.where(partner == torch.arange(50), (partner + 1) % 50, partner)
    groups = waves(partner)
    assert sorted(torch.cat(groups).tolist()) == list(range(50))
    depth = {int(row): number for number, group in enumerate(groups) for row in group}
    for group in groups:
        touched = torch.cat([group, partner[group]])
        assert len(touched) == len(touched.unique())
    for one in range(50):
        for other in range(one):
            if {one, int(partner[one])} & {other, int(partner[other])}:
                assert depth[other] < depth[one]


def test_columns_that_are_not_the_rows_are_refused() -> None:
    with pytest.raises(DataError, match="the columns make 8 features and the rows have 9"):
        layout_of(TOLD, 9)


# The loader


@pytest.fixture
def task(tmp_path: Path) -> Task:
    """A table of 100 rows, two numbers and a nominal attribute of three values; the class is the sign of their product."""
    made = np.random.default_rng(0)
    x, colour = made.normal(size=(100, 2)), made.integers(0, 3, 100)
    rows = [f"{a:.4f},{b:.4f},{('r', 'g', 'b')[c]},{('no', 'yes')[int(a * b > 0)]}" for (a, b), c in zip(x, colour, strict=True)]
    (tmp_path / "toy.csv").write_text("\n".join(["a,b,c,answer", *rows]))
    return build("tasks", "table", {"data": "csv", "root": str(tmp_path / "toy.csv")})


def loader(task: Task, how: dict[str, Any] | None = None, **options: Any) -> Loader:
    return build("transfer", "munge", options).loader(task, **{"batch_size": 8, "seed": 0, **(how or {})})


def epoch(made: Loader, number: int, skip: int = 0) -> list[Batch]:
    return list(made.batches(number, skip=skip))


def same(one: list[Batch], other: list[Batch]) -> bool:
    return len(one) == len(other) and all(x.keys() == y.keys() and all(torch.equal(x[name], y[name]) for name in x) for x, y in zip(one, other, strict=True))


def test_batches_are_a_function_of_seed_and_epoch(task: Task) -> None:
    made = loader(task)
    assert len(made) == len(epoch(made, 0)) == task.facts().examples // 8
    later = epoch(made, 3)
    epoch(made, 0)
    assert same(later, epoch(made, 3)) and same(later, epoch(loader(task), 3)) and same(later[4:], epoch(loader(task), 3, skip=4))
    assert not same(later, epoch(made, 2)) and not same(later, epoch(loader(task, {"seed": 1}), 3))
    assert set(later[0]) == {"input", "id"}


def test_ranks_share_what_one_process_sees(task: Task) -> None:
    alone = torch.cat([batch["id"] for batch in epoch(loader(task, {"batch_size": 16}), 1)])
    ranks = [epoch(loader(task, {"batch_size": 8, "rank": rank, "world": 2}), 1) for rank in range(2)]
    assert torch.equal(alone, torch.cat([batch["id"] for pair in zip(*ranks, strict=True) for batch in pair]))


def test_ids_are_unique_over_passes_and_come_again_with_the_same_example(task: Task) -> None:
    made = loader(task, passes=2)
    seen: dict[int, Tensor] = {}
    for number in range(4):
        for batch in epoch(made, number):
            for name, row in zip(batch["id"].tolist(), batch["input"], strict=True):
                assert name >= 1 << 32 and (name not in seen or number >= 2)
                assert torch.equal(seen.setdefault(name, row), row)
    whole = epoch(loader(task, {"whole": True}), 0)
    assert torch.cat([batch["id"] for batch in whole]).diff().min() > 0 and sum(len(batch["id"]) for batch in whole) == task.facts().examples


def test_true_rows_among_them_have_their_own_id_and_label(task: Task) -> None:
    own = {
        int(name): (row, label)
        for batch in task.loader("train", batch_size=200, whole=True).batches(0)
        for name, row, label in zip(*(batch[n] for n in ("id", "input", "label")), strict=True)
    }
    share = []
    for number in range(20):
        for batch in epoch(loader(task, real=0.3), number):
            assert torch.equal(batch["labelled"], batch["id"] < 1 << 32)
            for name, row, label in zip(batch["id"].tolist(), batch["input"], batch["label"], strict=True):
                if name < 1 << 32:
                    assert torch.equal(own[name][0], row) and own[name][1] == label
            share.append(batch["labelled"].float().mean())
    assert abs(torch.stack(share).mean() - 0.3) < 0.05
    assert all(batch["labelled"].all() for batch in epoch(loader(task, real=1.0), 0))


def test_images_are_rows_of_numbers() -> None:
    digits: Task = build("tasks", "image", {"data": "digits", "subset": 60})
    batch = epoch(loader(digits), 0)[0]
    assert batch["input"].shape == (8, 1, 8, 8) and batch["input"].dtype == torch.float32


def test_what_cannot_be_munged_is_refused(task: Task, planetoid: Path) -> None:
    for options, message in (({"p": 1.5}, "p is 1.5"), ({"s": 0.0}, "s is 0"), ({"passes": 0}, "passes is 0"), ({"real": 2.0}, "real is 2")):
        with pytest.raises(RecipeError, match=message):
            build("transfer", "munge", options)
    with pytest.raises(MismatchError, match="munge makes inputs that nobody recorded"):
        loader(task, {"views": 2})
    with pytest.raises(DataError, match="batch_size is 200"):
        loader(task, {"batch_size": 200})
    with pytest.raises(MismatchError, match="munge takes examples that are rows of real numbers"):
        loader(build("tasks", "graph", {"data": "cora", "root": str(planetoid), "validation": 5}))
    for batch, message in (
        ((torch.zeros(4, 3), torch.zeros(4, dtype=torch.long)), "no field 'id'"),
        ({"input": torch.zeros(4, 3), "id": torch.tensor([0, 1, 1, 2])}, "two examples have the id 1"),
        ({"input": torch.zeros(4, 3), "id": torch.tensor([0, 1, -1, 2])}, "ids run from -1 to 2"),
        ({"input": torch.zeros(4, 3, dtype=torch.long), "id": torch.arange(4)}, "rows of real numbers"),
        ({"input": torch.zeros(1, 3), "id": torch.arange(1)}, "there is 1 example"),
    ):
        users: Task = build("tasks", "classify", {"classes": 2}, {"train": [batch]})
        with pytest.raises((MismatchError, DataError), match=message):
            loader(users, {"batch_size": 1})


def train(task: Task, folder: Path | None = None, stop: int = 0) -> tuple[dict[str, Tensor], Fit]:
    torch.manual_seed(0)
    facts = task.facts()
    student, teacher = (nn.Sequential(nn.Linear(facts.in_shape[0], width), nn.ReLU(), nn.Linear(width, facts.classes)) for width in (4, 16))
    made = Watched(loader(task, real=0.2), kill(stop))
    objectives = [0.9 * build("objectives", "response.kd", {}), 0.1 * build("objectives", "supervised", {})]
    scheme = build("schemes", "offline", {}, student, build("teachers", "frozen", {}, teacher), objectives, task, next(made.batches(0)), facts)
    made.drawn = 0
    plan = Training.model_validate({"epochs": 3, "batch_size": 8, "optimizer": {"kind": "adam", "lr": 0.01}})
    try:
        fitted = fit(scheme, task, made, plan, Runtime(), work=None if folder is None else Work(folder, folder / "logs"), listener=silent)
    except Killed:
        return {}, Fit([], 0, 0.0, 0, {})
    return dict(scheme.state_dict()), fitted


def test_a_run_that_is_killed_and_resumed_ends_the_same(task: Task, tmp_path: Path) -> None:
    whole, told = train(task)
    assert train(task, tmp_path / "run", stop=14)[0] == {}  # in the second epoch of nine steps
    resumed, retold = train(task, tmp_path / "run")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole) and told.history == retold.history


def test_an_objective_of_labels_is_refused_where_there_are_none(task: Task) -> None:
    objectives = [1.0 * build("objectives", "supervised", {})]
    with pytest.raises(MismatchError, match="needs labels and the batch has none"):
        build("schemes", "offline", {}, nn.Linear(5, 2), None, objectives, task, epoch(loader(task), 0)[0], task.facts())


def test_trees_teach_a_network_in_a_recipe(task: Task, tmp_path: Path) -> None:
    trees = {"kind": "fitted", "estimator": "python:limbeck.bridges.scikit_learn:SelectedTrees", "options": {"trees": 2, "held_out": 0.2}}
    recipe = {
        "name": "toy",
        "task": {"kind": "table", "data": "csv", "root": str(tmp_path / "toy.csv")},
        "measure": {"latency": False},
        "stages": {
            "student": {
                "kind": "distill", "teacher": {"kind": "blackbox", "source": trees, "keep": "memory"}, "transfer": {"kind": "munge", "passes": 2},
                "model": {"kind": "tabular", "numbers": 2, "widths": [8]}, "objectives": [{"kind": "response.kd", "temperature": 1.0}],
                "epochs": 3, "batch_size": 8,
            }
        },
    }  # fmt: skip
    done = run_recipe(recipe, out=tmp_path / "run", listener=silent)
    assert done.stages["student"]["metrics"]["epochs"] == 3
    spec = Artifact.open(tmp_path / "run" / "stages" / "student").spec
    assert prepare([{"a": 0.0, "b": 0.0, "c": "r"}], spec["preprocess"]).shape == (1, 5)
