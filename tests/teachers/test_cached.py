"""What was recorded is read as it was said, by whoever reads it, and nothing else is: not after a kill, a flipped byte, another view."""

import copy
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from limbeck.core.errors import ArtifactError, DataError, LockedError, MismatchError, RecipeError
from limbeck.core.files import read_json, write_json
from limbeck.core.knowledge import Reads, TopK
from limbeck.core.task import default_task
from limbeck.pipeline.recorded import record
from limbeck.teachers import _store
from limbeck.teachers._store import Store
from limbeck.teachers._store_columns import Likeliest
from limbeck.teachers._store_writer import writing
from limbeck.teachers.cached import Cached

C, D = 7, 5
TOPK = {"kind": "topk", "k": 3, "temperature": 2.0}


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(D, 8), nn.ReLU(), nn.Linear(8, C)).eval()


def batches(views: int = 2, size: int = 6, ids: tuple[int, ...] = tuple(range(100, 160, 3))) -> list[dict[str, Tensor]]:
    """Every view of every example, in a mixed order; view v of example i is the same wherever it comes."""
    pairs = [(view, one) for view in range(views) for one in ids]
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(3)).tolist()
    return [batch([pairs[at] for at in order[first : first + size]]) for first in range(0, len(pairs), size)]


def batch(pairs: list[tuple[int, int]]) -> dict[str, Tensor]:
    drawn = [torch.randn(D, generator=torch.Generator().manual_seed(1000 * view + one)) for view, one in pairs]
    view, one = torch.tensor(pairs).T
    return {"input": torch.stack(drawn), "id": one.contiguous(), "view": view.contiguous()}


def reader(folder: Path, *features: str, **options: Any) -> Cached:
    made = Cached(folder, **options)
    made.prepare(Reads(features=frozenset(features)), default_task())
    return made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return record(model(), batches(), tmp_path / "store", views=2, features=["0"])


def test_whole_logits_and_features_are_what_the_model_says_to_the_bit(folder: Path) -> None:
    teacher = reader(folder, "0")
    assert teacher.views == 2 and not list(teacher.parameters()) and not teacher.state_dict()
    for shown in batches():
        said = teacher(shown)
        assert torch.equal(said.main.logits, model()(shown["input"]))
        assert torch.equal(said.feature("0"), model()[0](shown["input"]))
    mixed = batch([(1, 103), (0, 157), (1, 100), (1, 103)])
    assert torch.allclose(teacher(mixed).main.logits, model()(mixed["input"]), atol=1e-6)


@pytest.mark.parametrize(("dtype", "near"), [("float16", 2e-3), ("float32", 1e-6)])
def test_the_likeliest_classes_and_the_mass_of_the_others(tmp_path: Path, dtype: Any, near: float) -> None:
    teacher = reader(record(model(), batches(), tmp_path / "store", views=2, keep=TOPK, dtype=dtype))
    shown = batches()[1]
    said = teacher(shown).answer
    assert isinstance(said, TopK) and (said.temperature, said.classes) == (2.0, C)
    p = (model()(shown["input"]) / 2.0).softmax(-1)
    values, indices = p.topk(3)
    assert torch.equal(said.indices, indices)
    assert torch.allclose(said.log_probs.exp(), values, atol=near)
    assert torch.allclose(said.log_tail.exp(), 1 - values.sum(-1), atol=near)
    whole = torch.cat([said.log_probs, said.log_tail[:, None]], -1).exp().sum(-1)
    assert torch.allclose(whole, torch.ones_like(whole), atol=1e-6)


def test_a_renormalised_tail_is_a_way_of_reading(tmp_path: Path) -> None:
    folder = record(model(), batches(), tmp_path / "store", views=2, keep=TOPK)
    biased = Likeliest(k=3, temperature=2.0, tail="renormalized_biased")
    said = reader(folder, keep=biased)(batches()[0]).answer
    assert isinstance(said, TopK)
    assert torch.allclose(said.log_probs.exp().sum(-1), torch.ones(6), atol=1e-6)
    assert said.log_tail.eq(float("-inf")).all()


def test_the_size_that_is_promised(tmp_path: Path) -> None:
    count, k = 4096, 1
    with writing(tmp_path / "store", {"made_of": {}, "recording": {"views": 1}}) as writer:
        values = {"log_probs": np.zeros((count, k), "f2"), "indices": np.zeros((count, k), "u2"), "log_tail": np.zeros(count, "f2")}
        writer.add(np.arange(count), np.zeros(count, np.int64), {**values, "witness": np.zeros(count, "f4")}, {}, every={"witness": 16})
        writer.seal()
    assert sum(path.stat().st_size for path in (tmp_path / "store").iterdir()) <= 8 * k * count


def test_ids_that_lie_apart_and_the_order_of_arrival(tmp_path: Path) -> None:
    ids = (-(2**40), -7, 3, 2**33, 2**62)
    teacher = reader(record(model(), batches(1, 2, ids), tmp_path / "store"))
    for one in ids:
        shown = batch([(0, one)])
        assert torch.allclose(teacher(shown).main.logits, model()(shown["input"]), atol=1e-6)


@pytest.mark.parametrize("file", ["00-output-main.bin", "02-witness.bin", "ids.bin", "rows.bin", "store.json"])
def test_a_flipped_byte_is_found(folder: Path, file: str) -> None:
    Cached(folder)
    path = folder / file
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    time.sleep(0.01)  # the clock of a file system is coarse
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match="damaged"):
        Cached(folder)


def test_what_is_cut_or_gone_is_found_without_reading_it(folder: Path) -> None:
    os.truncate(folder / "00-output-main.bin", 40)
    with pytest.raises(ArtifactError, match="has 40 bytes, not 1120"):
        Cached(folder, verify=False)
    (folder / "00-output-main.bin").unlink()
    with pytest.raises(ArtifactError, match="is missing"):
        Cached(folder, verify=False)


def test_no_store_and_another_format_are_told(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="is no store of recorded knowledge: record one first"):
        Cached(tmp_path)
    write_json(folder / "store.json", {"format": 9})
    with pytest.raises(ArtifactError, match="format 9, and this limbeck reads 1"):
        Cached(folder)


def test_an_example_or_a_view_that_was_not_recorded(folder: Path) -> None:
    teacher = reader(folder)
    with pytest.raises(MismatchError, match=r"example 101 was not recorded \(1 of 2 in this batch\).*20 examples.*ids 100 to 157"):
        teacher(batch([(0, 101), (0, 100)]))
    with pytest.raises(MismatchError, match=r"view 2 was not recorded.*2 views, from 0 to 1"):
        teacher(batch([(2, 100)]))
    with pytest.raises(MismatchError, match="view -1 was not recorded"):
        teacher({**batch([(0, 100)]), "view": torch.tensor([-1])})
    with pytest.raises(MismatchError, match=r'no field .id.*\[\{"input": x, "label": y, "id": i\} for i, \(x, y\) in enumerate\(data\)\]'):
        teacher({"input": torch.zeros(1, D)})
    with pytest.raises(MismatchError, match="2 views of each example are recorded, and the batch does not say which"):
        teacher({"input": torch.zeros(1, D), "id": torch.tensor([100])})


def test_the_wrapper_that_the_refusal_shows_works(tmp_path: Path) -> None:
    data = [(torch.randn(D), one % C) for one in range(8)]
    loader = torch.utils.data.DataLoader([{"input": x, "label": y, "id": i} for i, (x, y) in enumerate(data)], batch_size=4)  # pyright: ignore[reportArgumentType]
    teacher = reader(record(model(), loader, tmp_path / "store"))
    shown = next(iter(loader))
    assert torch.equal(teacher(shown).main.logits, model()(shown["input"]))


def test_another_input_than_the_teacher_saw_is_told(folder: Path) -> None:
    teacher, shown = reader(folder), [one for size in (6, 40) for one in batches(2, size)][-1]
    teacher(shown)
    teacher({**shown, "input": shown["input"] * (1 + 1e-4)})  # rounding, however large
    with pytest.raises(MismatchError, match=r"the input of example \d+ in view \d is not what the teacher saw.*3 of 3 compared differ"):
        teacher({**shown, "input": -shown["input"]})


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"views": 3}, r"recorded with views: 2, and views: 3 is asked for"),
        ({"keep": Likeliest(k=2, temperature=1.0)}, r"keep: \{'kind': 'dense'\}, and keep: \{.*'topk'"),
        ({"features": ["0", "2"]}, r"features: \['0'\], and features: \['0', '2'\]"),
        ({"dtype": "float16"}, r"dtype: float32, and dtype: float16"),
    ],
)
def test_a_store_of_something_else_is_refused(folder: Path, options: dict[str, Any], told: str) -> None:
    with pytest.raises(MismatchError, match=told):
        Cached(folder, **options)


def test_what_was_not_recorded_cannot_be_read(folder: Path) -> None:
    for reads, told in (
        (Reads(features=frozenset({"0", "2"})), r"layer '2' is not recorded, recorded are 0: name it, features: \[0, 2\]"),
        (Reads(outputs=frozenset({"main", "exit1"})), "output 'exit1' is not recorded; it has main"),
        (Reads(modules=frozenset({"0"})), "its layers themselves: teach by"),
        (Reads(input_gradient=True), "the gradient by its input: teach by"),
        (Reads(shapes=True), "name the layers in the place of layers: auto"),
    ):
        with pytest.raises(MismatchError, match=told):
            Cached(folder).prepare(reads, default_task())


def test_stale_by_teacher_data_or_options_says_which(folder: Path) -> None:
    assert record(model(), batches(), folder, views=2, features=["0"]) == folder  # the very same: nothing is written
    other = model()
    with torch.no_grad():
        other[2].bias.add_(1)
    with pytest.raises(MismatchError, match="is stale: it was recorded of another teacher"):
        record(other, batches(), folder, views=2, features=["0"])
    with pytest.raises(MismatchError, match=r"views: 2, and views: 1 is asked for"):
        record(model(), batches(1), folder, features=["0"])


def test_what_cannot_be_recorded(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"keep\.k is 7, and the teacher knows 7 classes"):
        record(model(), batches(1), tmp_path / "a", keep={**TOPK, "k": 7})
    with pytest.raises(DataError, match="came twice in view 0"):
        record(model(), [*batches(1), batches(1)[0]], tmp_path / "b")
    with pytest.raises(DataError, match=r"2 views of the same examples.*view 0: 20 examples, view 1: 14 examples"):
        record(model(), [batch([(v, i) for i in range(20 - 6 * v)]) for v in (0, 1)], tmp_path / "c", views=2)
    with pytest.raises(DataError, match="nothing to record"):
        record(model(), [], tmp_path / "d")
    broken = {**batches(1)[0]}
    broken["input"] = broken["input"].clone()
    broken["input"][2] = float("nan")
    with pytest.raises(DataError, match=f"logits .* of example {int(broken['id'][2])} is not finite"):
        record(model(), [broken], tmp_path / "e")
    loud = nn.Sequential(model(), nn.Linear(C, C))
    with torch.no_grad():
        loud[1].weight.mul_(1e7)
    with pytest.raises(DataError, match="beyond what float16 can hold: record it with dtype: float32"):
        record(loud, batches(1), tmp_path / "f", dtype="float16")
    with pytest.raises(MismatchError, match="or is a record itself"):
        record(Cached(record(model(), batches(1), tmp_path / "g")), batches(1), tmp_path / "h")


READ = """
import sys, torch
from limbeck.core.knowledge import Reads
from limbeck.core.task import default_task
from limbeck.teachers.cached import Cached
teacher = Cached(sys.argv[1])
teacher.prepare(Reads(), default_task())
print("open", flush=True)
for _ in sys.stdin:
    said = teacher({"id": torch.tensor([103, 100]), "view": torch.tensor([1, 0])})
    print(said.main.logits.flatten().tolist(), flush=True)
"""


def test_two_processes_read_at_once(folder: Path) -> None:
    expected = reader(folder)(batch([(1, 103), (0, 100)])).main.logits.flatten().tolist()
    readers = [
        subprocess.Popen([sys.executable, "-c", READ, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for one in readers:
        assert one.stdout is not None and one.stdout.readline() == "open\n"
    for one in readers:  # both have it open
        out, err = one.communicate("ask\nask\n")
        assert not err and [json.loads(line) for line in out.splitlines()] == [expected, expected]


def test_copies_and_what_is_sent_to_another_process_open_it_again(folder: Path) -> None:
    teacher = reader(folder)
    shown = batches()[0]
    expected = teacher(shown).main.logits
    assert torch.equal(copy.deepcopy(teacher)(shown).main.logits, expected)
    sent = pickle.dumps(teacher._store)
    assert len(sent) < 500 and pickle.loads(sent).examples == 20
    child = os.fork()
    if child == 0:
        os._exit(0 if torch.equal(teacher(shown).main.logits, expected) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_large_columns_are_read_row_by_row_and_small_ones_mapped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = batches()[0]
    mapped = reader(folder, "0")(shown)
    monkeypatch.setattr(_store, "RESIDENT", 0)
    teacher = reader(folder, "0")
    read = teacher(shown)
    assert not teacher._store._maps and teacher._store._handles
    assert torch.equal(read.main.logits, mapped.main.logits) and torch.equal(read.feature("0"), mapped.feature("0"))
    os.truncate(folder / "00-output-main.bin", 4)
    with pytest.raises(ArtifactError, match="is shorter than it was"):
        teacher(shown)


WRITE = """
import sys, time
from pathlib import Path
import numpy as np
from limbeck.teachers import _store_writer as module
module.SHARD_BYTES = 2000
with module.writing(Path(sys.argv[1]), {"made_of": {"teacher": sys.argv[2]}, "recording": {"views": 1}}) as writer:
    print("taken", len(writer.keys), flush=True)
    for first in range(len(writer.keys), 4000, 40):
        ids = np.arange(first, first + 40)
        writer.add(ids, ids * 0, {"x": ids.astype("f4") * 2, "witness": ids.astype("f4")}, {"outputs": {}}, every={"witness": 16})
        print(first, flush=True)
        time.sleep(float(sys.argv[3]))
    writer.seal()
"""


def write(folder: Path, plan: str = "one", pause: float = 0.0) -> "subprocess.Popen[str]":
    return subprocess.Popen([sys.executable, "-c", WRITE, str(folder), plan, str(pause)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def check_written(folder: Path) -> None:
    store = Store.open(folder)
    rows = store.rows(np.arange(4000), np.zeros(4000, np.int64))
    assert (store.read("x", rows) == 2 * np.arange(4000)).all()
    assert (store.read("witness", np.arange(250)) == 16 * np.arange(250)).all()
    assert {path.name for path in folder.iterdir()} == {"store.json", "ids.bin", "00-x.bin", "01-witness.bin"}


def test_a_killed_writer_leaves_nothing_that_opens_and_the_next_one_goes_on(tmp_path: Path) -> None:
    folder, taken = tmp_path / "store", [0]
    for stop in (700, 2300):
        process = write(folder, pause=0.002)
        assert process.stdout is not None
        taken.append(int(process.stdout.readline().split()[1]))
        while (line := process.stdout.readline()) and int(line) < stop:
            pass
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        with pytest.raises(ArtifactError, match="its writing did not come to an end: record it again, which goes on from there"):
            Store.open(folder)
    out, err = write(folder).communicate()
    taken.append(int(out.split()[1]))
    assert not err
    assert taken[1] == 0 < 300 < taken[2] <= 800 < 1500 < taken[3], taken  # all but the last shard
    check_written(folder)
    assert not folder.with_name("store.partial").exists()


@pytest.mark.parametrize("damage", ["torn journal", "flipped shard", "cut column", "another plan"])
def test_only_what_is_whole_and_of_this_plan_is_taken_over(tmp_path: Path, damage: str) -> None:
    folder, partial = tmp_path / "store", tmp_path / "store.partial"
    process = write(folder, pause=0.002)
    assert process.stdout is not None
    while not (line := process.stdout.readline()).startswith("2000"):
        assert line
    process.kill()
    process.communicate()
    shards = [json.loads(line) for line in (partial / "journal.jsonl").read_text().splitlines()]
    assert len(shards) > 5
    if damage == "torn journal":
        with (partial / "journal.jsonl").open("ab") as journal:
            journal.write(b'{"records": 99')
    elif damage == "flipped shard":
        data = bytearray((partial / "00-x.bin").read_bytes())
        data[shards[2]["records"] * 4 + 1] ^= 4
        (partial / "00-x.bin").write_bytes(data)
    elif damage == "cut column":
        os.truncate(partial / "00-x.bin", shards[1]["records"] * 4 + 2)
    out, err = write(folder, "two" if damage == "another plan" else "one").communicate()
    assert not err
    expected = {"torn journal": shards[-1]["records"], "flipped shard": shards[2]["records"], "cut column": shards[1]["records"], "another plan": 0}
    assert int(out.split()[1]) == expected[damage]
    check_written(folder)


def test_a_seal_that_was_killed_before_its_move_is_finished(tmp_path: Path) -> None:
    folder, plan = tmp_path / "store", {"made_of": {}, "recording": {"views": 1}}
    with writing(folder, plan) as writer:
        writer.add(np.arange(4), np.zeros(4, np.int64), {"x": np.arange(4)}, {}, every={})
        writer._close_shard()
        writer._index()
    with writing(folder, plan) as writer:
        assert writer.sealed
        writer.seal()
    assert Store.open(folder).examples == 4


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    plan = {"made_of": {}, "recording": {"views": 1}}
    with writing(tmp_path / "store", plan), pytest.raises(LockedError), writing(tmp_path / "store", plan):
        pass


def test_a_teacher_that_was_interrupted_is_asked_only_about_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("limbeck.teachers._store_writer.SHARD_BYTES", 1)
    shown = batches()

    def stopping() -> Any:
        yield from shown[:4]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        record(model(), stopping(), tmp_path / "store", views=2)
    made, asked = model(), []
    made.register_forward_hook(lambda _module, args, _output: asked.append(len(args[0])))
    folder = record(made, shown, tmp_path / "store", views=2)
    assert sum(asked) == 40 - 24
    assert torch.equal(reader(folder)(shown[0]).main.logits, model()(shown[0]["input"]))
    assert read_json(folder / "store.json")["examples"] == 20
