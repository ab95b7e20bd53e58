"""MUNGE: an ensemble of trees into one small network, on Adult and Covertype.

    LIMBECK_DATA=... python benchmarks/munge.py [--data adult,covertype] [--seeds 5]

Ensemble: seven models (`bridges.scikit_learn.tree_library`: random forests and extremely randomised trees of 250 trees each, gradient boosting) are fitted on
the training split; ensemble selection with bags (Caruana et al. 2004) weighs them on the validation split.
Network: `models.tabular`. `plain` learns from the training split's labels; `student` from pseudo-examples of `transfer.munge` and the ensemble's probabilities
alone, and never sees a label. Both have the same shape, first weights (by seed), optimizer and number of steps; each keeps the epoch of its best validation
accuracy. `calm` is `plain` again, but keeps the epoch of its least validation cross-entropy, as one that goes on learning labels by heart grows too sure:
the student's cross-entropy is compared with that one's. All settings were chosen on the validation split with seed 0; the test split is opened once.

`share`     (student - plain) / (ensemble - plain) of each seed, for test accuracy, and with `calm` for test cross-entropy: the mean over seeds with Student's
            95% interval; `gain` is student - plain.
            The ensemble is one, so that the interval holds the luck of training the networks alone.
`file`      bytes of the ensemble as joblib writes it, uncompressed and compressed (3), and as one ONNX file; of the student as an ONNX file
`latency`   one row, one thread, medians of calls in alternation: the ensemble by scikit-learn in Python; by onnxruntime from its ONNX file; the student by
            onnxruntime. Ratios with a 95% bootstrap interval.

The labels of the pseudo-examples, and the figures of each seed, are kept under `runs/`: a killed benchmark goes on.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from limbeck.bridges import onnx_runtime
from limbeck.bridges.scikit_learn import Probabilities, choose, tree_library
from limbeck.core import lookup
from limbeck.core.events import silent
from limbeck.core.files import digest
from limbeck.core.knowledge import Dense, Knowledge, Reads
from limbeck.core.task import Batch, Loader, Split, Task
from limbeck.core.teacher import Teacher
from limbeck.core.transfer import Transfer
from limbeck.engine.checkpoint import seed_everything
from limbeck.engine.loop import fit
from limbeck.engine.plan import Training
from limbeck.engine.runtime import Runtime
from limbeck.measure.size import parameters
from limbeck.measure.statistics import bootstrap_ratio, paired_t
from records import folder, tell

TREES, ROUNDS = 250, 60
SETTINGS: dict[str, dict[str, Any]] = {
    "adult": {
        "model": {"widths": [128, 128], "numbers": 6, "scale": 0.1},
        "munge": {"p": 0.2, "s": 2.0, "passes": 8},
        "training": {"epochs": 30, "batch_size": 256, "optimizer": {"kind": "adamw", "lr": 0.003, "weight_decay": 0.01}},
    },
    "covertype": {
        "model": {"widths": [256, 256], "numbers": 10, "scale": 0.2},
        "munge": {"p": 0.2, "s": 2.0, "passes": 10},
        "training": {"epochs": 60, "batch_size": 256, "optimizer": {"kind": "adamw", "lr": 0.005, "weight_decay": 0.01}},
    },
}
"""Chosen on the validation split with seed 0."""
PLAIN = {"accuracy": "plain", "cross_entropy": "calm"}
"""Which plainly trained network a figure of the student is compared with: the one that was stopped for it."""


class Shuffled(Loader):
    """Pseudo-examples of one seed, in the order of the epochs of another: the ensemble labels one pool for all seeds."""

    def __init__(self, loader: Loader, seed: int) -> None:
        self._loader, self._seed = loader, seed

    def __len__(self) -> int:
        return len(self._loader)

    def batches(self, epoch: int, *, skip: int = 0) -> Iterator[Batch]:
        return self._loader.batches(epoch + 1000 * self._seed, skip=skip)


class Recorded(Teacher):
    """What the ensemble said of each pseudo-example, `[passes, n, C]` log-probabilities, found again by its id; `ids [n]` are the training rows' in order."""

    def __init__(self, ids: Tensor, said: Tensor) -> None:
        super().__init__()
        self._ids, self._said = ids, said

    def prepare(self, reads: Reads, task: Task) -> None:
        pass

    def forward(self, batch: Batch, student: Knowledge | None = None) -> Knowledge:
        number, row = (batch["id"] >> 32) - 1, torch.searchsorted(self._ids, batch["id"] & 0xFFFFFFFF)
        return Knowledge({"main": Dense(self._said[number, row])})

    def after_step(self, student: nn.Module) -> None:
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="adult,covertype")
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(json.dumps({"benchmark": "munge", "seeds": arguments.seeds, **{data: measure(data, arguments.seeds) for data in arguments.data.split(",")}}))


def measure(data: str, seeds: int) -> dict[str, Any]:
    task: Task = lookup.build("tasks", "table", {"data": data, "root": os.environ["LIMBECK_DATA"]})
    settings, facts = SETTINGS[data], task.facts()
    place = folder(__file__, {"data": data, "fingerprint": task.fingerprint()})
    ensemble, chosen = fitted(task, place / "ensemble.joblib")
    graph = ensemble.graph(facts.in_shape[0])
    session = onnx_runtime.session(graph, threads=1)

    def ask(rows: Tensor) -> Tensor:
        return onnx_runtime.run(session, rows, batch=4096).clamp(min=1e-6).log()

    teacher = recorded(task, settings, ask, place)
    models: dict[str, list[nn.Module]] = {"plain": [], "calm": [], "student": []}
    for seed in range(seeds):
        for kind, found in models.items():
            started = time.perf_counter()
            found.append(network(kind, task, settings, seed, teacher, place))
            accuracy = scores(found[-1], task, "validation")["accuracy"]
            tell(f"{data}, {kind}, seed {seed}: validation accuracy {accuracy:.4f}, {time.perf_counter() - started:.0f} s")
    validated = {kind: [scores(model, task, "validation") for model in found] for kind, found in models.items()}
    tested = {kind: [scores(model, task, "test") for model in found] for kind, found in models.items()}
    whole = {split: scores(ask, task, split) for split in ("validation", "test")}
    return {
        "examples": facts.examples, "settings": settings, "parameters": parameters(models["student"][0]), "ensemble": {**chosen, **whole},
        "validation": summaries(validated), "test": summaries(tested),
        "share": {name: summary([(s[name] - p[name]) / (whole["test"][name] - p[name]) for p, s in pairs(tested, name)]) for name in PLAIN},
        "gain": {name: summary([s[name] - p[name] for p, s in pairs(tested, name)]) for name in PLAIN},
        **cost(models["student"][0], ensemble, graph, task),
    }  # fmt: skip


def pairs(found: dict[str, list[dict[str, float]]], name: str) -> list[tuple[dict[str, float], dict[str, float]]]:
    return list(zip(found[PLAIN[name]], found["student"], strict=True))


def summaries(found: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    return {kind: {name: summary([one[name] for one in each]) for name in each[0]} for kind, each in found.items()}


def summary(values: list[float]) -> dict[str, Any]:
    return {"each": values, **(asdict(paired_t(values)) if len(values) > 1 else {"mean": values[0], "n": 1})}


def whole_split(task: Task, split: Split) -> tuple[Tensor, Tensor]:
    batches = list(task.loader(split, batch_size=4096, whole=True).batches(0))
    return torch.cat([batch["input"] for batch in batches]), torch.cat([batch["label"] for batch in batches])


@torch.no_grad()
def scores(model: Callable[[Tensor], Tensor], task: Task, split: Split) -> dict[str, float]:
    rows, labels = whole_split(task, split)
    logits = model(rows)
    return {"accuracy": float((logits.argmax(1) == labels).double().mean()), "cross_entropy": float(F.cross_entropy(logits, labels))}


def fitted(task: Task, file: Path) -> tuple[Probabilities, dict[str, Any]]:
    """Fit the library, and select; an ensemble that this very version wrote is read again."""
    if not file.is_file():
        rows, labels = whole_split(task, "train")
        library = tree_library(TREES, seed=0)
        for name, model in library.items():
            started = time.perf_counter()
            model.fit(rows.numpy(), labels.numpy())
            tell(f"{name}: fitted in {time.perf_counter() - started:.0f} s")
        ensemble, found = choose(list(library.values()), *whole_split(task, "validation"), task.facts().classes)
        joblib.dump((ensemble, dict(zip(library, found.weights, strict=True))), file)
    ensemble, weights = joblib.load(file)
    return ensemble, {"weights": weights, "trees": sum(map(trees_of, ensemble.models))}


def trees_of(model: Any) -> int:
    return len(model.estimators_) if "estimators_" in vars(model) else sum(map(len, model._predictors))


def recorded(task: Task, settings: dict[str, Any], ask: Callable[[Tensor], Tensor], place: Path) -> Recorded:
    """Label every pass of pseudo-examples once."""
    file = place / f"labels-{digest(settings['munge'])[:12]}.safetensors"
    if not file.is_file():
        started = time.perf_counter()
        loader: Loader = lookup.build("transfer", "munge", settings["munge"]).loader(task, batch_size=4096, seed=0, whole=True)
        passes = [list(loader.batches(number)) for number in range(settings["munge"]["passes"])]
        said = torch.stack([torch.cat([ask(batch["input"]) for batch in batches]) for batches in passes])
        save_file({"ids": torch.cat([batch["id"] for batch in passes[0]]) & 0xFFFFFFFF, "said": said}, file)
        tell(f"{said.shape[0] * said.shape[1]:,} pseudo-examples made and labelled in {time.perf_counter() - started:.0f} s")
    found = load_file(file)
    return Recorded(found["ids"], found["said"])


def network(kind: str, task: Task, settings: dict[str, Any], seed: int, teacher: Recorded, place: Path) -> nn.Module:
    """Train one network, or read the one that stands."""
    facts, plan = task.facts(), Training.model_validate(settings["training"])
    seed_everything(seed)
    model: nn.Module = lookup.build("models", "tabular", settings["model"], in_shape=facts.in_shape, classes=facts.classes)
    file = place / f"{kind}-{seed}-{digest(settings)[:12]}.safetensors"
    if not file.is_file():
        if kind != "student":
            loader = task.loader("train", batch_size=plan.batch_size, seed=seed)
            told = (None, [lookup.build("objectives", "supervised", {})])
        else:
            munge: Transfer = lookup.build("transfer", "munge", settings["munge"])
            loader = Shuffled(munge.loader(task, batch_size=plan.batch_size, seed=0), seed)
            told = (teacher, [lookup.build("objectives", "response.kd", {"temperature": 1.0})])
        task.metric, task.higher_is_better = ("loss", False) if kind == "calm" else ("accuracy", True)
        scheme = lookup.build("schemes", "offline", {}, model, *told, task, next(iter(loader.batches(0))), facts)
        done = fit(scheme, task, loader, plan, Runtime(), listener=silent)
        save_file(done.best["student"], file)
    model.load_state_dict(load_file(file))
    return model.eval()


def cost(student: nn.Module, ensemble: Probabilities, graph: bytes, task: Task) -> dict[str, Any]:
    """Bytes of both, and how long one row takes, in alternation."""
    rows = whole_split(task, "test")[0]
    with tempfile.TemporaryDirectory() as name:
        path = Path(name)
        lookup.build("export", "onnx", {}).export(student, rows[:2], path / "student.onnx")
        files = {"student_onnx": (path / "student.onnx").stat().st_size, "ensemble_onnx": len(graph)}
        for key, how in (("ensemble", 0), ("ensemble_compressed", 3)):
            joblib.dump(ensemble, path / key, compress=how)
            files[key] = (path / key).stat().st_size
        small = onnx_runtime.session(path / "student.onnx", threads=1)
    native = onnx_runtime.session(graph, threads=1)
    singles = [rows[number : number + 1] for number in range(64)]
    ways: dict[str, tuple[Callable[[Tensor], Any], int]] = {
        "ensemble_python": (ensemble, 1),
        "ensemble_onnxruntime": (lambda row: native.run(None, {"rows": row.numpy()}), 20),
        "student_onnxruntime": (lambda row: small.run(None, {small.get_inputs()[0].name: row.numpy()}), 200),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(-2, ROUNDS):  # the first two only warm up
        for way, (call, times) in ways.items():
            started = time.perf_counter()
            for turn in range(times):
                call(singles[(number + turn) % len(singles)])
            if number >= 0:
                seconds[way].append((time.perf_counter() - started) / times)
    return {
        "files": files,
        "file_ratio": {key: files[key] / files["student_onnx"] for key in files if key != "student_onnx"},
        "latency_ms": {way: 1000 * float(np.median(found)) for way, found in seconds.items()},
        "latency_ratio": {way: asdict(bootstrap_ratio(seconds[way], seconds["student_onnxruntime"])) for way in ways if way != "student_onnxruntime"},
    }


if __name__ == "__main__":
    main()
