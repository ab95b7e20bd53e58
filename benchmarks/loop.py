"""Steps per second of limbeck's loop over a bare one, in alternating pairs: `python benchmarks/loop.py [--pairs 12] [--job cnn|mlp]`.

Both hold the same synthetic images as one tensor and batch them by index; both ask the same frozen teacher, optimise with the same SGD in float32, and see no
validation and no checkpoint in the timed part. The ratio is limbeck / bare (1 = no overhead), its median over pairs with a 95% bootstrap interval.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bare_loop import train
from limbeck.core.events import silent
from limbeck.core.objective import Term
from limbeck.engine.loop import fit
from limbeck.engine.plan import ConstantRate, Sgd, Training
from limbeck.engine.runtime import Runtime
from limbeck.measure.statistics import bootstrap_ratio
from limbeck.models.cnn import CNN
from limbeck.models.mlp import MLP
from limbeck.objectives.response.kd import KD
from limbeck.objectives.supervised import Supervised
from limbeck.schemes.offline import Offline
from limbeck.tasks.image import Image
from limbeck.teachers.frozen import Frozen

SHAPE, CLASSES = (1, 28, 28), 10
JOBS = {
    "cnn": {"batch": 256, "steps": 40, "teacher": lambda: CNN(SHAPE, CLASSES, width=32), "student": lambda: CNN(SHAPE, CLASSES, width=32), "bar": 0.97},
    "mlp": {
        "batch": 64,
        "steps": 150,
        "teacher": lambda: MLP(SHAPE, CLASSES, widths=(1200, 1200)),
        "student": lambda: MLP(SHAPE, CLASSES, widths=(1200, 1200)),
        "bar": 0.95,
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--job", choices=sorted(JOBS), action="append")
    arguments = parser.parse_args()
    for name in arguments.job or sorted(JOBS):
        print(json.dumps(measure(name, arguments.pairs)), flush=True)


def measure(name: str, pairs: int) -> dict[str, object]:
    job = JOBS[name]
    batch, steps = job["batch"], job["steps"]
    folder = Path("runs") / "benchmark-loop"
    folder.mkdir(parents=True, exist_ok=True)
    task, x, y = synthetic(folder / f"{name}.npz", batch * steps)
    loader = task.loader("train", batch_size=batch)
    example = next(iter(loader.batches(0)))
    plan = Training(epochs=1, batch_size=batch, optimizer=Sgd(lr=0.01), schedule=ConstantRate())
    torch.manual_seed(0)
    teacher = job["teacher"]()

    def ours() -> float:
        torch.manual_seed(1)
        scheme = Offline(job["student"](), Frozen(teacher), [Term(KD(temperature=4.0), 0.9), Term(Supervised(), 0.1)], task, example)
        runtime = Runtime()
        start = time.perf_counter()
        fit(scheme, task, loader, plan, runtime, listener=silent)
        return time.perf_counter() - start

    def bare() -> float:
        torch.manual_seed(1)
        student = job["student"]()
        start = time.perf_counter()
        train(student, teacher, x, y, steps=steps, batch=batch, lr=0.01)
        return time.perf_counter() - start

    for warm in (ours, bare):
        warm()
    a, b = [], []
    for pair in range(pairs):
        for which in (ours, bare) if pair % 2 else (bare, ours):
            (a if which is ours else b).append(which())
    ratio = bootstrap_ratio(b, a)
    return {
        "job": name, "batch": batch, "steps": steps, "pairs": pairs, "threads": torch.get_num_threads(), "bar": job["bar"],
        "steps_per_s_ratio": ratio.ratio, "low": ratio.low, "high": ratio.high,
        "median_of_pair_ratios": statistics.median(two / one for one, two in zip(a, b, strict=True)),
    }  # fmt: skip


def synthetic(file: Path, n: int) -> tuple[Image, Tensor, Tensor]:
    """Make n random images; the task that holds them, and the same as plain tensors: images `[n, 1, 28, 28]`, labels `[n]`."""
    rng = np.random.default_rng(0)
    np.savez(
        file,
        x_train=rng.integers(0, 256, (n, *SHAPE[1:]), dtype=np.uint8),
        y_train=np.arange(n) % CLASSES,
        x_test=rng.integers(0, 256, (2 * CLASSES, *SHAPE[1:]), dtype=np.uint8),
        y_test=np.arange(2 * CLASSES) % CLASSES,
    )
    task = Image(data="npz", root=str(file), validation=0.0)
    held = next(iter(task.loader("train", batch_size=n).batches(0)))
    return task, held["input"].clone(), held["label"].clone()


if __name__ == "__main__":
    main()
