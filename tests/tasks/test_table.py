"""Tables: what is read, what a row becomes, which row goes where, and what is refused."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from limbeck.core.errors import DataError, MismatchError, RecipeError
from limbeck.core.lookup import build
from limbeck.core.task import Split, Task
from limbeck.tasks.table import prepare

Write = Callable[..., Path]
ROWS = 60


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a table of 60 rows: `size` and `weight` are numbers, `weight` missing in each 7th row, `colour` is one of three, `kind` is the class."""

    def put(name: str = "toy.csv", *, rows: int = ROWS, head: bool = True, change: Callable[[list[str]], Any] = lambda _: None, separator: str = ",") -> Path:
        made = np.random.default_rng(0)
        lines = ["size,weight,colour,kind"] if head else []
        for row in range(rows):
            weight = "?" if row % 7 == 0 else f"{made.normal(5, 2):.4f}"
            lines.append(f"{made.normal():.4f}, {weight},{('red', 'green', 'blue')[row % 3]},{('cat', 'dog')[row % 2]}")
        lines = [line.replace(",", separator) for line in lines]
        change(lines)
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        data = "\n".join(lines).encode()
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return path

    return put


def table(path: Path, **options: Any) -> Task:
    return build("tasks", "table", {"data": "csv", "root": str(path), **options})


def whole(task: Task, split: Split) -> dict[str, Tensor]:
    return dict(next(task.loader(split, batch_size=100_000, whole=True).batches(0)))


def columns(task: Task) -> dict[str, dict[str, Any]]:
    return {column["name"]: column for column in task.facts().preprocess["columns"]}


def test_a_row_is_its_numbers_standardised_and_its_categories_one_hot(write: Write) -> None:
    path = write()
    task = table(path)
    facts, found = task.facts(), columns(task)
    assert facts.in_shape == (1 + 2 + 3,) and facts.class_names == ("cat", "dog") and facts.examples == 43
    assert {name: (one["kind"], one["start"], one["width"]) for name, one in found.items()} == {
        "size": ("numeric", 0, 1), "weight": ("numeric", 1, 2), "colour": ("nominal", 3, 3),
    }  # fmt: skip
    raw = [line.split(",") for line in path.read_text().splitlines()[1:]]
    train = whole(task, "train")
    ids = train["id"].tolist()
    size = np.array([float(raw[row][0]) for row in ids])
    weights = [None if raw[row][1].strip() == "?" else float(raw[row][1]) for row in ids]
    there = np.array([one for one in weights if one is not None])
    for split in task.splits():
        batch = whole(task, split)
        for row, features in zip(batch["id"].tolist(), batch["input"].double(), strict=True):
            missing = raw[row][1].strip() == "?"
            told = 0.0 if missing else (float(raw[row][1]) - there.mean()) / there.std()
            wants = [(float(raw[row][0]) - size.mean()) / size.std(), told, float(missing), *(float(raw[row][2] == one) for one in ("blue", "green", "red"))]
            assert torch.allclose(features, torch.tensor(wants, dtype=torch.float64), atol=1e-5)
        assert [("cat", "dog")[label] for label in batch["label"].tolist()] == [raw[row][3] for row in batch["id"].tolist()]


def test_the_statistics_are_those_of_the_training_split(write: Write) -> None:
    task = table(write())
    train = whole(task, "train")["input"].double()
    assert train[:, 0].mean().abs() < 1e-6 and abs(train[:, 0].std(correction=0) - 1) < 1e-6
    found = columns(task)
    assert found["weight"]["missing_share"] == pytest.approx(float(train[:, 2].mean()))
    shares = dict(zip(found["colour"]["values"], found["colour"]["shares"], strict=True))
    assert shares == pytest.approx({"blue": float(train[:, 3].mean()), "green": float(train[:, 4].mean()), "red": float(train[:, 5].mean())})
    size = train[:, 0] * found["size"]["std"] + found["size"]["mean"]
    for level, value in found["size"]["quantiles"]:
        assert value == pytest.approx(float(size.quantile(level)), abs=1e-4)
    assert (found["size"]["quantiles"][0][1], found["size"]["quantiles"][-1][1]) == pytest.approx((float(size.min()), float(size.max())), abs=1e-4)


def test_splits_part_the_rows_and_folds_part_the_tests(write: Write) -> None:
    path = write()
    task = table(path)
    ids = [whole(task, split)["id"].tolist() for split in task.splits()]
    assert sorted(row for one in ids for row in one) == list(range(ROWS)) and [len(one) for one in ids] == [43, 5, 12]
    tests = [whole(table(path, fold=fold), "test")["id"].tolist() for fold in range(5)]
    assert sorted(row for one in tests for row in one) == list(range(ROWS))
    assert table(path, validation=0.0).splits() == ("train", "test")
    assert table(path, subset=7).facts().examples == 7


def test_a_test_file_of_its_own(write: Write) -> None:
    write("data/train.csv")
    folder = write("data/test.csv", rows=8).parent
    task = table(folder)
    assert whole(task, "test")["id"].tolist() == list(range(ROWS, ROWS + 8))
    with pytest.raises(RecipeError, match=r"folds and fold are for data without a test split, and .*data has a test file: leave them out"):
        table(folder, fold=1).facts()
    write("data/test.csv", change=lambda lines: lines.__setitem__(0, "size,weight,hue,kind"))
    with pytest.raises(DataError, match="column 'colour' is in one of"):
        table(folder).facts()


@pytest.mark.parametrize(("name", "separator"), [("a.csv.gz", ","), ("b.csv", ";"), ("c.tsv", "\t")])
def test_other_forms_of_the_file_give_the_same(write: Write, name: str, separator: str) -> None:
    one, other = table(write()), table(write(name, separator=separator))
    assert torch.equal(whole(one, "train")["input"], whole(other, "train")["input"])


def test_names_may_be_given_where_the_file_has_none(write: Write) -> None:
    names = ["size", "weight", "colour", "kind"]
    task = table(write("bare.csv", head=False), columns=names)
    assert torch.equal(whole(task, "train")["input"], whole(table(write()), "train")["input"])
    with pytest.raises(DataError, match=r"line of .*bare.csv holds .*which is a value and no name: name the columns"):
        table(write("bare.csv", head=False)).facts()


def test_columns_may_be_chosen(write: Write) -> None:
    assert list(columns(table(write(), drop=["weight"]))) == ["size", "colour"]
    task = table(write(), target="colour")
    assert task.facts().class_names == ("blue", "green", "red") and list(columns(task)) == ["size", "weight", "kind"]
    numbered = table(
        write(change=lambda lines: lines.__setitem__(slice(None), [line.replace("red", "1").replace("green", "2").replace("blue", "3") for line in lines])),
        nominal=["colour"],
    )
    assert columns(numbered)["colour"]["values"] == ["1", "2", "3"]


def test_classes_that_are_numbers_stand_in_their_order(write: Write) -> None:
    def number(lines: list[str]) -> None:
        lines[1:] = [line.replace("cat", "10").replace("dog", "9") for line in lines[1:]]

    task = table(write(change=number))
    assert task.facts().class_names == ("9", "10")
    assert [(9, 10)[label] for label in whole(task, "train")["label"].tolist()] == [(10, 9)[row % 2] for row in whole(task, "train")["id"].tolist()]


def test_a_number_may_be_asked_for(write: Write) -> None:
    path = write()
    task = table(path, target="size", answer="number")
    assert (task.metric, task.higher_is_better, task.facts().classes) == ("mse", False, 1)
    batch = whole(task, "train")
    raw = [float(line.split(",")[0]) for line in path.read_text().splitlines()[1:]]
    assert torch.allclose(batch["label"][:, 0], torch.tensor([raw[row] for row in batch["id"].tolist()]))
    model = torch.nn.Linear(task.facts().in_shape[0], 1)
    said = task.forward(model, batch)
    assert said.main.link == "identity"
    assert torch.allclose(task.loss(said, batch), (said.main.logits - batch["label"]).square()[:, 0])


def test_raw_rows_are_prepared_as_the_training_rows_were(write: Write) -> None:
    path = write()
    task = table(path)
    told = json.loads(json.dumps(task.facts().preprocess))
    everything = torch.cat([whole(task, split)["input"] for split in task.splits()])
    ids = torch.cat([whole(task, split)["id"] for split in task.splits()])
    assert torch.equal(prepare(path, told)[ids], everything)
    rows = [{"colour": "red", "size": 0.5, "weight": None, "more": "x"}, {"colour": "pink", "size": "0.5", "weight": 5}]
    found = prepare(rows, told)
    assert found[0].tolist()[2:] == [1.0, 0.0, 0.0, 1.0]
    assert found[1].tolist()[2:] == [0.0, 0.0, 0.0, 0.0]
    assert found[0, 0] == found[1, 0]
    for rows, message in (
        ([{"size": 1}], "row 1 has no 'weight'; it has size: give every column"),
        ([], "nothing to prepare"),
        ([{"colour": "red", "size": "big", "weight": 1}], "column 'size' holds 'big', which is no number"),
        ([{"colour": "red", "size": float("inf"), "weight": 1}], "column 'size' holds 'inf', which is not finite"),
    ):
        with pytest.raises((DataError, MismatchError), match=message):
            prepare(rows, told)
    with pytest.raises(MismatchError, match="takes no named columns: its preprocessing is image"):
        prepare(path, {"kind": "image"})


def at(line: int, text: str) -> Callable[[list[str]], Any]:
    return lambda lines: lines.__setitem__(line, text)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (at(3, "1.0,2.0,red"), {}, "line 4 of .*toy.csv has 3 cells, and there are 4 columns"),
        (at(0, "size,size,colour,kind"), {}, "names 'size' twice"),
        (at(0, "size,,colour,kind"), {}, "no name for column 2"),
        (lambda lines: lines.clear(), {}, "toy.csv is empty"),
        (lambda lines: lines.__delitem__(slice(1, None)), {}, "has names of columns and no row"),
        (at(5, "1.0,2.0,red,?"), {}, "row 5 has no 'kind', and it is what is asked for"),
        (at(5, "inf,2.0,red,cat"), {}, "row 5 of column 'size' holds 'inf', which is not finite"),
        (at(5, "big,2.0,red,cat"), {"numeric": ["size"]}, "row 5 of column 'size' holds 'big', which is no number"),
        (at(5, '1.0,"2.0,red,cat'), {}, "quotation mark|quoted cell"),
        (lambda lines: None, {"target": "sort"}, "target names the column 'sort', which .*toy.csv has not"),
        (lambda lines: None, {"drop": ["colours"]}, "drop names the column 'colours', which .* did you mean 'colour'"),
        (lambda lines: None, {"drop": ["kind"]}, "drop names 'kind', which is the target"),
        (lambda lines: None, {"drop": ["size", "weight", "colour"]}, "no column beside the target"),
        (lambda lines: None, {"categories": 2}, "column 'colour' has 3 different values, more than the 2"),
        (lambda lines: None, {"target": "size"}, "class .* has one example|must be two classes|more than the 256|has one example"),
        (lambda lines: None, {"class_weight": [1.0, 1.0, 1.0]}, "class_weight has 3 weights, and 'kind' has 2 classes"),
        (lambda lines: lines.__setitem__(slice(None), [line.replace("dog", "cat") for line in lines]), {}, "every row's 'kind' is 'cat'"),
        (lambda lines: lines.__setitem__(slice(1, None), [f"1,?,{line.split(',', 2)[2]}" for line in lines[1:]]), {}, "column 'weight' has no value"),
        (lambda lines: None, {"target": "colour", "answer": "number"}, "row 1 of column 'colour' holds 'red', which is no number"),
    ],
)
def test_a_damaged_table_is_refused_in_one_line(write: Write, change: Callable[[list[str]], Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises((DataError, RecipeError), match=message) as caught:
        table(write(change=change), **options).facts()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": "adlt"}, "data"),
        ({"root": None}, "needs `root`"),
        ({"data": "adult", "target": "income"}, "adult has its own"),
        ({"validation": 1.0}, "validation is 1"),
        ({"fold": 5}, "fold is 5 of 5"),
        ({"subset": 0}, "subset is 0"),
        ({"nominal": ["a"], "numeric": ["a"]}, "'a' is in nominal and in numeric"),
        ({"answer": "number", "class_weight": [1.0, 2.0]}, "class_weight is for classes"),
        ({"categories": 0}, "categories is 0"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        build("tasks", "table", {"data": "csv", "root": "x.csv", **options})


def test_files_that_are_not_there_or_no_text(tmp_path: Path) -> None:
    for name, data, message in (
        ("a.csv", None, "neither a file nor a folder"),
        ("b.csv.gz", gzip.compress(b"a,b\n1,2\n")[:-9], "is damaged|cannot read"),
        ("c.csv", b"a,b\n\xff\xfe,2\n", "is no UTF-8 text"),
    ):
        if data is not None:
            (tmp_path / name).write_bytes(data)
        with pytest.raises(DataError, match=message):
            table(tmp_path / name).facts()
    with pytest.raises(DataError, match=r"has none of train.csv"):
        table(tmp_path).facts()
    with pytest.raises(DataError, match=r"has not both of adult.data and adult.test"):
        build("tasks", "table", {"data": "adult", "root": str(tmp_path)}).facts()


def test_the_fingerprint_is_of_content_and_options_alone(write: Write) -> None:
    one = table(write())
    assert one.fingerprint() == table(write("other.csv")).fingerprint()
    assert one.fingerprint() != table(write(), validation=0.2).fingerprint()
    assert one.fingerprint() != table(write(change=at(3, "1.0,2.0,red,cat"))).fingerprint()


def test_adult_loses_the_full_stop_of_its_test_labels(tmp_path: Path) -> None:
    row = "39, State-gov, 77516, Bachelors, 13, Never-married, {}, Not-in-family, White, Male, 2174, 0, 40, United-States, {}"
    train = [row.format(("Sales", "?")[number % 2], ("<=50K", ">50K")[number % 3 == 0]) for number in range(30)]
    (tmp_path / "adult.data").write_text("\n".join(train) + "\n\n")
    (tmp_path / "adult.test").write_text("|1x3 Cross validator\n" + "\n".join(row.format("Tech", f"{label}.") for label in ("<=50K", ">50K")) + "\n")
    task = build("tasks", "table", {"data": "adult", "root": str(tmp_path)})
    assert task.facts().class_names == ("<=50K", ">50K")
    assert whole(task, "test")["label"].tolist() == [0, 1]
    occupation = columns(task)["occupation"]
    assert (occupation["values"], occupation["missing"]) == (["Sales"], True)
    block = whole(task, "test")["input"][:, occupation["start"] : occupation["start"] + 2]
    assert not block.any()  # Tech is of no training row
    (tmp_path / "adult.test").write_text(row.format("Sales", "50K"))
    with pytest.raises(DataError, match="has the label '50K'"):
        build("tasks", "table", {"data": "adult", "root": str(tmp_path)}).facts()


def covertype(kind: int, soil: int, area: int) -> list[str]:
    return [
        *(str(100 + kind + number) for number in range(10)),
        *(str(int(number == area)) for number in range(4)),
        *(str(int(number == soil)) for number in range(40)),
        str(kind),
    ]


def test_covertype_s_one_hot_columns_are_two_attributes(tmp_path: Path) -> None:
    rows = [covertype(1 + number % 3, number % 2, number % 4) for number in range(40)]
    (tmp_path / "covtype.data").write_text("\n".join(map(",".join, rows)))
    task = build("tasks", "table", {"data": "covertype", "root": str(tmp_path)})
    found = columns(task)
    assert task.facts().in_shape == (10 + 4 + 2,) and task.facts().class_names == ("1", "2", "3")
    assert found["Soil_Type"]["values"] == ["Soil_Type1", "Soil_Type2"] and found["Wilderness_Area"]["width"] == 4
    rows[4][15] = rows[4][14] = "1"
    (tmp_path / "covtype.data").write_text("\n".join(map(",".join, rows)))
    with pytest.raises(DataError, match=r"row 5 of .* is of 2 kinds of Soil_Type"):
        build("tasks", "table", {"data": "covertype", "root": str(tmp_path)}).facts()


@pytest.mark.data
def test_the_real_ones() -> None:
    import os

    for data, counts, features, missing in (("adult", (29305, 3256, 16281), 108, 3), ("covertype", (10886, 1210, 3024), 10 + 4 + 38, 0)):
        task = build("tasks", "table", {"data": data, "root": os.environ["LIMBECK_DATA"]})
        assert tuple(len(whole(task, split)["id"]) for split in ("train", "validation", "test")) == counts
        assert task.facts().in_shape == (features,)
        assert sum(column["missing"] for column in task.facts().preprocess["columns"]) == missing
