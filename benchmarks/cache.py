"""The cached teacher against its bars: `python benchmarks/cache.py [epoch] [size] [store] [language] [--pairs 12] [--records 1000000]`.

`epoch`  one epoch of a student taught by a store (KD at weight 0.9, the labels at 0.1; shifted images, 2 views) over one of the same student with no teacher at
         all, in alternating pairs in one process; beside it the same with the frozen teacher itself. The store is opened, and every byte of it verified, before
         the clock starts. `ratio` is cached / alone (1 = free), its median over pairs with a 95% bootstrap interval, by the clock and of the processor.
`size`   bytes per kept class and example, every file of a store counted: header, ids, sketches of inputs.
`store`  synthetic records of the 16 likeliest of 1,000 classes, float16: records per second, softmax and selection included, and of writing alone; then two
         processes at a time read random batches of 256, page cache warm: milliseconds by the clock and of the processor, and resident memory by
         /proc/self/smaps_rollup. Mapped pages are shared with the system's cache and with each other; `private` is what the process alone holds. Readers come
         with numpy alone, and as `Cached`, with torch, whose import is in `before`.
`language`  (LIMBECK_DATA) what a GPT says of tiny Shakespeare, with the models and data of recipes/shakespeare.yaml, the teacher as it begins or that of
         --teacher FOLDER, an artifact: bytes a token of whole stores, every file counted; errors in nats on a sample; the largest difference of exact states
         from the teacher's own; and the time of a training step of the student with each store (the divergence and half the labels in one pass), and with
         the teacher itself, over one with no teacher, in turns within a round: medians over rounds, 95% bootstrap intervals, of the processor and by the
         clock. `--size DIM DEPTH HEADS` is the student's, 80 4 4 where it is not given.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from limbeck.core.events import silent
from limbeck.core.knowledge import Dense, Knowledge, Reads
from limbeck.core.objective import Term
from limbeck.engine.loop import fit
from limbeck.engine.plan import ConstantRate, Sgd, Training
from limbeck.engine.runtime import Runtime
from limbeck.measure.statistics import bootstrap_ratio
from limbeck.models.cnn import CNN
from limbeck.models.gpt import GPT
from limbeck.models.mlp import MLP
from limbeck.objectives.response.divergence import DivergenceKD
from limbeck.objectives.response.kd import KD
from limbeck.objectives.supervised import Supervised
from limbeck.pipeline.modules import load
from limbeck.pipeline.recorded import record
from limbeck.schemes.offline import Offline
from limbeck.tasks._tokens import BPE
from limbeck.tasks.image import Image
from limbeck.tasks.language import Language
from limbeck.teachers._store_columns import Recording, columns
from limbeck.teachers._store_writer import writing
from limbeck.teachers.cached import Cached
from limbeck.teachers.frozen import Frozen

SHAPE, CLASSES = (1, 28, 28), 10
PLACE = Path("runs") / "benchmark-cache"
STUDENTS = {
    "cnn": {"batch": 256, "steps": 40, "make": lambda: CNN(SHAPE, CLASSES, width=8)},
    "wide": {"batch": 256, "steps": 8, "make": lambda: CNN(SHAPE, CLASSES, width=32)},
    "mlp": {"batch": 256, "steps": 40, "make": lambda: MLP(SHAPE, CLASSES, widths=(128,))},
}
POOL = 16
"""Batches of synthetic answers that are shown again and again."""
READER = """
import json, sys, time
from pathlib import Path
with_torch = sys.argv[2] == "torch"
if with_torch:
    import torch
    torch.set_num_threads(1)  # as each of several processes on these cores has; with more they wait for each other
    from limbeck.core.knowledge import Reads
    from limbeck.core.task import default_task
    from limbeck.teachers.cached import Cached
import numpy as np
from limbeck.teachers._store import Store

def resident():
    told = dict(line.split(":") for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:])
    mib = {name: int(told[name].split()[0]) / 1024 for name in ("Rss", "Private_Clean", "Private_Dirty")}
    return {"resident": mib["Rss"], "private": mib["Private_Clean"] + mib["Private_Dirty"]}

before = resident()
folder, seed = Path(sys.argv[1]), int(sys.argv[3])
opened = time.perf_counter()
if with_torch:
    teacher = Cached(folder)
    teacher.prepare(Reads(), default_task())
    store = teacher._store
else:
    store = Store.open(folder)
opened = time.perf_counter() - opened
rng = np.random.default_rng(seed)
def batch():
    ids, views = rng.integers(0, store.examples, 256), rng.integers(0, store.views, 256)
    if not with_torch:
        return lambda: [store.read(name, store.rows(ids, views)) for name in store.header["columns"] if name != "witness"]
    told = {"id": torch.from_numpy(ids), "view": torch.from_numpy(views), "input": torch.zeros(256, 784)}
    return lambda: teacher(told)
peak, took, worked = resident(), [], []
for step in range(2500):
    ask = batch()
    start, cpu = time.perf_counter(), time.process_time()
    ask()
    took.append(1000 * (time.perf_counter() - start))
    worked.append(1000 * (time.process_time() - cpu))
    if step % 20 == 0:
        peak = max(peak, resident(), key=lambda one: one["resident"])
took = took[500:]
print(json.dumps({
    "reader": sys.argv[2], "median_ms": float(np.median(took)), "p99_ms": float(np.quantile(took, 0.99)), "cpu_ms": float(np.median(worked[500:])),
    "open_and_verify_s": opened,
    "before_mib": before, "peak_mib": peak,
}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", choices=["epoch", "size", "store", "language", []])
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--teacher", type=Path)
    parser.add_argument("--size", type=int, nargs=3, default=[80, 4, 4], metavar=("DIM", "DEPTH", "HEADS"))
    parser.add_argument("--student", choices=sorted(STUDENTS), action="append")
    arguments = parser.parse_args()
    shutil.rmtree(PLACE, ignore_errors=True)
    PLACE.mkdir(parents=True)
    wanted = arguments.what or ["epoch", "size", "store"]
    for name in (arguments.student or sorted(STUDENTS)) if "epoch" in wanted else ():
        say(epoch(name, arguments.pairs))
    for k in (1, 2, 4, 16) if "size" in wanted else ():
        say(size(k))
    if "store" in wanted:
        say(store(arguments.records))
    if "language" in wanted:
        language(arguments.pairs, arguments.teacher, arguments.size)
    shutil.rmtree(PLACE)


def say(found: dict[str, Any]) -> None:
    print(json.dumps(found), flush=True)


def epoch(name: str, pairs: int) -> dict[str, Any]:
    job: dict[str, Any] = STUDENTS[name]
    batch, steps = job["batch"], job["steps"]
    task = synthetic(batch * steps)
    torch.manual_seed(0)
    teacher = CNN(SHAPE, CLASSES, width=48)
    folder = record(teacher, task, PLACE / f"store-{name}", views=2)
    topk = record(teacher, task, PLACE / f"topk-{name}", views=2, keep={"kind": "topk", "k": 4, "temperature": 4.0})
    plan = Training(epochs=1, batch_size=batch, optimizer=Sgd(lr=0.01), schedule=ConstantRate())
    loader = task.loader("train", batch_size=batch, views=2)
    example = next(iter(loader.batches(0)))

    def train(taught: Any) -> tuple[float, float]:
        torch.manual_seed(1)
        terms = [Term(Supervised())] if taught is None else [Term(KD(temperature=4.0), 0.9), Term(Supervised(), 0.1)]
        scheme = Offline(job["make"](), taught, terms, task, example)
        start, cpu = time.perf_counter(), time.process_time()
        fit(scheme, task, loader, plan, Runtime(), listener=silent)
        return time.perf_counter() - start, time.process_time() - cpu

    ways = {
        "alone": lambda: train(None),
        "cached": lambda: train(Cached(folder)),
        "topk": lambda: train(Cached(topk)),
        "frozen": lambda: train(Frozen(teacher)),
    }
    for way, run in ways.items():
        if way != "frozen":
            run()  # warm
    took: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    for pair in range(pairs):
        for way in ways if pair % 2 else reversed(ways):
            if way != "frozen" or pair == 0:
                took[way].append(ways[way]())
    found: dict[str, Any] = {
        "benchmark": "epoch",
        "student": name,
        "batch": batch,
        "steps": steps,
        "pairs": pairs,
        "threads": torch.get_num_threads(),
        "bar": 1.05,
    }
    for place, clock in enumerate(("wall", "cpu")):
        for way in ("cached", "topk"):
            ratio = bootstrap_ratio([one[place] for one in took[way]], [one[place] for one in took["alone"]])
            found[f"{way}_{clock}"] = {"ratio": ratio.ratio, "low": ratio.low, "high": ratio.high}
    steps_ms = {f"{way}_step_cpu_ms": 1000 * statistics.median(one[1] for one in times) / steps for way, times in took.items()}
    return found | {"loadavg": os.getloadavg()[0]} | steps_ms


def synthetic(count: int) -> Image:
    rng = np.random.default_rng(0)
    np.savez(
        PLACE / "images.npz",
        x_train=rng.integers(0, 256, (count, *SHAPE[1:]), dtype=np.uint8), y_train=np.arange(count) % CLASSES,
        x_test=rng.integers(0, 256, (2 * CLASSES, *SHAPE[1:]), dtype=np.uint8), y_test=np.arange(2 * CLASSES) % CLASSES,
    )  # fmt: skip
    return Image(data="npz", root=str(PLACE / "images.npz"), validation=0.0, augment=[{"kind": "shift", "pixels": 2}])  # pyright: ignore[reportArgumentType]


def answers(classes: int, batch: int = 256) -> Iterator[Knowledge]:
    """Logits without end, from a pool: drawing them is nobody's cost here."""
    draw = torch.Generator().manual_seed(0)
    pool = [Knowledge({"main": Dense(4 * torch.randn(batch, classes, generator=draw))}) for _ in range(POOL)]
    while True:
        yield from pool


def written(folder: Path, records: int, recording: Recording, classes: int, *, reduced: bool) -> tuple[float, float]:
    """Write records of one view; how many seconds by the clock and of the processor.

    With the softmax and the choice of classes, unless they were `reduced` before.
    """
    said = answers(classes)
    ids = np.arange(256)
    pool = [columns(next(said), ids, recording) for _ in range(POOL)] if reduced else []
    start, cpu = time.perf_counter(), time.process_time()
    with writing(folder, {"made_of": {}, "recording": recording.told}) as writer:
        for number, first in enumerate(range(0, records, 256)):
            count = min(256, records - first)
            values, about = pool[number % POOL] if reduced else columns(next(said), ids, recording)
            cut = {name: value[:count] for name, value in values.items()} | {"witness": np.zeros(count, np.float32)}
            writer.add(ids[:count] + first, np.zeros(count, np.int64), cut, about, every={"witness": 16})
        writer.seal()
    return time.perf_counter() - start, time.process_time() - cpu


def total(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def size(k: int, records: int = 100_000) -> dict[str, Any]:
    found: dict[str, Any] = {"benchmark": "size", "k": k, "records": records, "bar": 8.0}
    for name, classes, dtype in (("float16", 1000, "float16"), ("float32", 1000, "float32"), ("float16_of_70000_classes", 70_000, "float16")):
        folder = PLACE / f"size-{name}-{k}"
        recording = Recording.model_validate({"keep": {"kind": "topk", "k": k, "temperature": 4.0}, "dtype": dtype})
        written(folder, records, recording, classes, reduced=True)
        found[f"bytes_{name}"] = total(folder) / records / k
    return found


def store(records: int) -> dict[str, Any]:
    recording = Recording.model_validate({"keep": {"kind": "topk", "k": 16, "temperature": 4.0}})
    seconds = {way: written(PLACE / way, records, recording, 1000, reduced=way == "reduced") for way in ("reduced", "whole")}
    found: dict[str, Any] = {
        "benchmark": "store", "records": records, "k": 16, "classes": 1000, "threads": torch.get_num_threads(),
        "records_per_s": records / seconds["whole"][0], "records_per_cpu_s": records / seconds["whole"][1],
        "records_per_s_writing_alone": records / seconds["reduced"][0], "loadavg": os.getloadavg()[0],
        "mib": total(PLACE / "whole") / 2**20, "bytes_per_class": total(PLACE / "whole") / records / 16,
        "bars": {"records_per_s": 50_000, "resident_mib": 200, "batch_ms": 5, "processes": 2},
    }  # fmt: skip
    for kind in ("numpy", "torch"):
        readers = [
            subprocess.Popen([sys.executable, "-c", READER, str(PLACE / "whole"), kind, str(seed)], stdout=subprocess.PIPE, text=True) for seed in range(2)
        ]
        found[f"readers_{kind}"] = [json.loads(reader.communicate()[0]) for reader in readers]
    return found


def language(rounds: int, teacher: Path | None, size: list[int]) -> None:
    task = Language(data="tinyshakespeare", root=os.environ["LIMBECK_DATA"], tokenizer=BPE(size=1024), context=128)
    torch.manual_seed(0)
    body = GPT((128,), 1024, dim=192, depth=6, heads=6).eval() if teacher is None else load(teacher).eval()
    ways: dict[str, Any] = {
        "hidden float32": {"kind": "hidden", "dtype": "float32"}, "hidden bfloat16": {"kind": "hidden"}, "hidden int8": {"kind": "hidden", "dtype": "int8"},
        "top 64": {"kind": "topk", "k": 64, "temperature": 1.0}, "50 samples": {"kind": "samples", "count": 50},
    }  # fmt: skip
    stores = {name: record(body, task, PLACE / name.replace(" ", "-"), keep=keep) for name, keep in ways.items()}
    for name, folder in stores.items():
        header = json.loads((folder / "store.json").read_text())
        held = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        found = {
            "benchmark": "language",
            "kept": name,
            "tokens": header["records"],
            "bytes_a_token": held / header["records"],
            "nats": header["measured"]["nats"],
        }
        say(found | {"bar": {"top 64": 400}.get(name)})
    frozen, cached = Frozen(body), Cached(stores["hidden float32"])
    for one in (frozen, cached):
        one.prepare(Reads(), task)
    shown = list(task.loader("train", batch_size=7, seed=5, views=1).batches(0))[:40]
    gaps = [float((cached(one).answer.states - frozen(one).answer.states).abs().max()) for one in shown]  # pyright: ignore[reportAttributeAccessIssue]
    say({"benchmark": "language", "kept": "hidden float32", "largest_difference_of_a_state": max(gaps), "tokens": sum(one["input"].numel() for one in shown)})
    say(steps(rounds, task, {name: stores[name] for name in ("hidden bfloat16", "top 64", "50 samples")}, body, size))


def steps(rounds: int, task: Language, stores: dict[str, Path], body: torch.nn.Module, size: list[int]) -> dict[str, Any]:
    made_of = dict(zip(("dim", "depth", "heads"), size, strict=True))

    def made(teacher: Any, terms: list[Term]) -> Any:
        torch.manual_seed(1)
        loader = task.loader("train", batch_size=16, views=None if teacher is None else 1)
        scheme = Offline(GPT((128,), 1024, **made_of), teacher, terms, task, next(loader.batches(0)))
        step = torch.optim.AdamW(scheme.parameters(), lr=1e-3)
        shown = (batch for number in range(1000) for batch in loader.batches(number))

        def run() -> tuple[float, float]:
            batch = next(shown)
            start, cpu = time.perf_counter(), time.process_time()
            step.zero_grad()
            scheme(batch).loss.backward()
            step.step()
            return time.perf_counter() - start, time.process_time() - cpu

        return run

    ways = {"alone": made(None, [Term(Supervised())])}
    ways |= {name: made(Cached(folder), [Term(DivergenceKD(hard=0.5))]) for name, folder in stores.items()}
    ways["the teacher itself"] = made(Frozen(body), [Term(DivergenceKD(hard=0.5))])
    took: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    for number in range(rounds + 2):
        for way in ways if number % 2 else reversed(ways):
            one = ways[way]()
            if number > 1:  # warm
                took[way].append(one)
    found: dict[str, Any] = {"benchmark": "language", "student": made_of, "rounds": rounds, "threads": torch.get_num_threads(), "bar": 1.05}
    for way in [way for way in ways if way != "alone"]:
        for place, clock in enumerate(("wall", "cpu")):
            ratio = bootstrap_ratio([one[place] for one in took[way]], [one[place] for one in took["alone"]])
            found[f"{way}, {clock}"] = {"ratio": ratio.ratio, "low": ratio.low, "high": ratio.high}
    return found | {"step_cpu_ms": {way: 1000 * statistics.median(one[1] for one in times) for way, times in took.items()}, "loadavg": os.getloadavg()[0]}


if __name__ == "__main__":
    main()
