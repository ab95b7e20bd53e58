"""Steps per second of limbeck's loop over torchdistill's on the same job, in alternating rounds.

    python benchmarks/torchdistill_loop.py [--rounds 12] [--job cnn|mlp]

It runs wherever both can be imported, with torchdistill 1.1.5. That needs torchvision; where torchvision was built for another torch than the one installed
(a CUDA build beside a CPU torch, say), its import fails with `operator torchvision::nms does not exist`. `define_missing_operators` then declares the two
operators that the import asks for, with torch.library; nothing here calls them:

    nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor      and `qnms`, with the same arguments

A broken torchvision also breaks other libraries, so it belongs in an environment of its own: one that sees limbeck and its dependencies (a `.pth` file
that says `import site; site.addsitedir("...")`, say), then `pip install --no-deps torchdistill==1.1.5 "torchvision==0.28.*"` (0.28 for torch 2.13).

The job is that of `loop.py`: the same synthetic images in memory, the same teacher and student (plain modules), 0.9 T^2 KL + 0.1 cross-entropy at T = 4, SGD
with Nesterov momentum in float32, no validation and no checkpoint in the timed part; building models, data sets and torchdistill's box is not timed. That both
compute the same loss from the same weights and batch is checked first (`loss_apart`, relative). One round is one run of each; the order turns from round to
round.

What torchdistill does otherwise:
- Its data come through a DataLoader, here over a TensorDataset with `num_workers=0`, as a configuration of it would say for data in memory: the examples of a
  batch are fetched one by one, wrapped with an empty dictionary each, and collated. limbeck batches one tensor by index.
- It leaves the steps of an epoch to the caller. `example` is the loop of its example scripts: its MetricLogger, `loss.item()` and a check for NaN at every
  step, a line of log every 100. `minimal` is the least that trains, forward_process and post_forward_process alone, which logs nothing and notices no NaN.
  limbeck's side is the loop that users get: every loss is logged, and checked every 10 steps.
- It does not put the teacher in evaluation mode; that is done for it here, or its batch norm would move.

The ratio is limbeck / torchdistill (above 1: limbeck is faster), of medians over rounds, with a 95% bootstrap interval over rounds. Rounds are recorded as they
end: give the command again to go on.
"""

import argparse
import copy
import importlib
import importlib.util
import json
import logging
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import RandomSampler, TensorDataset

from limbeck.core.events import silent
from limbeck.core.objective import Term
from limbeck.engine.loop import fit
from limbeck.engine.plan import ConstantRate, Sgd, Training
from limbeck.engine.runtime import Runtime
from limbeck.measure.statistics import bootstrap_ratio
from limbeck.objectives.response.kd import KD
from limbeck.objectives.supervised import Supervised
from limbeck.schemes.offline import Offline
from limbeck.tasks.image import Image
from limbeck.teachers.frozen import Frozen
from loop import JOBS, synthetic
from records import folder, kept, tell

TEMPERATURE, SOFT, LR, LOG_EVERY = 4.0, 0.9, 0.01, 100
ARMS = ("limbeck", "example", "minimal")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--job", choices=sorted(JOBS), default="cnn")
    parser.add_argument("--steps", type=int, help="of a run; the job's own unless given")
    arguments = parser.parse_args()
    if arguments.rounds < 2 or (arguments.steps is not None and arguments.steps < 1):
        parser.error("--rounds is 2 or more, --steps 1 or more")
    define_missing_operators()
    print(json.dumps(measure(arguments.job, arguments.rounds, arguments.steps)))


def define_missing_operators() -> None:
    """Declare the operators that importing torchvision asks for, where its own library cannot be loaded by this torch."""
    found = importlib.util.find_spec("torchvision")
    if found is None or found.origin is None:
        raise SystemExit('torchdistill needs torchvision, and it is not installed: pip install --no-deps "torchvision==0.28.*"')
    for built in Path(found.origin).parent.glob("_C*.so"):
        try:
            torch.ops.load_library(built)
            return
        except OSError:
            tell(f"torchvision {version('torchvision')} was built for another torch than {torch.__version__}: its operators are declared, not usable")
    _DECLARED.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _DECLARED.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


_DECLARED = torch.library.Library("torchvision", "FRAGMENT")  # the operators live as long as this does


def measure(name: str, rounds: int, asked: int | None) -> dict[str, Any]:
    job: dict[str, Any] = JOBS[name]
    batch: int = job["batch"]
    steps: int = job["steps"] if asked is None else asked
    place = folder(__file__, {"job": name, "batch": batch, "steps": steps, "threads": torch.get_num_threads()})
    task, x, y = synthetic(place / "data.npz", batch * steps)
    torch.manual_seed(0)
    teacher = job["teacher"]()
    own = copy.deepcopy(teacher)  # torchdistill's box freezes its teacher's parameters, and thaws them in the end
    runs = {"limbeck": ours(job, task, own, batch), **{arm: theirs(arm, job, teacher, x, y, batch) for arm in ARMS[1:]}}
    apart = same_loss(job, task, teacher, x, y, batch)
    for run in runs.values():
        run()
    times: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for number in range(rounds):
        order = ARMS[number % 3 :] + ARMS[: number % 3]
        found = kept(place, f"round-{number:03d}", lambda order=order: {arm: runs[arm]() for arm in order})
        for arm in ARMS:
            times[arm].append(found[arm])
        tell(f"round {number + 1}/{rounds}: " + ", ".join(f"{arm} {steps / found[arm]:.2f} steps/s" for arm in ARMS))
    return {
        "benchmark": "torchdistill_loop", "job": name, "batch": batch, "steps": steps, "rounds": rounds, "threads": torch.get_num_threads(),
        "torch": torch.__version__, "torchdistill": version("torchdistill"), "loss_apart": apart,
        "steps_per_s": {arm: steps / statistics.median(found) for arm, found in times.items()},
        "ratio_over_example": asdict(bootstrap_ratio(times["example"], times["limbeck"])),
        "ratio_over_minimal": asdict(bootstrap_ratio(times["minimal"], times["limbeck"])),
    }  # fmt: skip


def scheme_of(student: nn.Module, teacher: nn.Module, task: Image) -> Offline:
    """Make limbeck's scheme, bound by an example now, as a recipe's is: else the first step would ask both models twice."""
    example = next(iter(task.loader("test", batch_size=2).batches(0)))
    return Offline(student, Frozen(teacher), [Term(KD(temperature=TEMPERATURE), SOFT), Term(Supervised(), 1 - SOFT)], task, example)


def ours(job: dict[str, Any], task: Image, teacher: nn.Module, batch: int) -> Callable[[], float]:
    loader = task.loader("train", batch_size=batch)
    plan = Training(epochs=1, batch_size=batch, optimizer=Sgd(lr=LR), schedule=ConstantRate())

    def run() -> float:
        torch.manual_seed(1)
        scheme, runtime = scheme_of(job["student"](), teacher, task), Runtime()
        start = time.perf_counter()
        fit(scheme, task, loader, plan, runtime, listener=silent)
        return time.perf_counter() - start

    return run


def box_of(student: nn.Module, teacher: nn.Module, data: TensorDataset, batch: int) -> Any:
    """Make torchdistill's box, from such a configuration as its YAML files hold."""
    read = {"student_module_path": ".", "student_module_io": "output", "teacher_module_path": ".", "teacher_module_io": "output"}
    terms = {"kd": {"criterion": {"key": "KDLoss", "kwargs": {**read, "temperature": TEMPERATURE, "alpha": 1 - SOFT, "beta": SOFT}}, "weight": 1.0}}
    configuration = {
        "num_epochs": 1,
        "train_data_loader": {
            "dataset_id": "train",
            "sampler": {"class_or_func": RandomSampler},
            "kwargs": {"batch_size": batch, "num_workers": 0, "drop_last": True},
        },
        "teacher": {"forward_proc": "forward_batch_only", "requires_grad": False},
        "student": {"forward_proc": "forward_batch_only"},
        "optimizer": {"key": "SGD", "kwargs": {"lr": LR, "momentum": 0.9, "nesterov": True}},
        "criterion": {"key": "WeightedSumLoss", "kwargs": {"sub_terms": terms}},
    }
    distillation = importlib.import_module("torchdistill.core.distillation")
    importlib.import_module("torchdistill.losses.mid_level")
    logging.getLogger().setLevel(logging.WARNING)
    box = distillation.get_distillation_box(teacher, student, {"train": data}, configuration, torch.device("cpu"), None, False, 1)
    teacher.eval()
    return box


def theirs(arm: str, job: dict[str, Any], teacher: nn.Module, x: Tensor, y: Tensor, batch: int) -> Callable[[], float]:
    data = TensorDataset(x, y)
    log = importlib.import_module("torchdistill.misc.log")

    def example(box: Any) -> None:
        meters = log.MetricLogger(delimiter="  ")
        meters.add_meter("lr", log.SmoothedValue(window_size=1, fmt="{value}"))
        meters.add_meter("img/s", log.SmoothedValue(window_size=10, fmt="{value}"))
        for inputs, labels, more in meters.log_every(box.train_data_loader, LOG_EVERY, "Epoch: [0]"):
            began = time.time()
            loss = box.forward_process(inputs, labels, more)
            box.post_forward_process(loss=loss)
            meters.update(loss=loss.item(), lr=box.optimizer.param_groups[0]["lr"])
            meters.meters["img/s"].update(len(inputs) / (time.time() - began))
            if not math.isfinite(loss.item()):
                raise FloatingPointError(f"the loss is {loss.item()}")

    def minimal(box: Any) -> None:
        for inputs, labels, more in box.train_data_loader:
            box.post_forward_process(loss=box.forward_process(inputs, labels, more))

    steps = {"example": example, "minimal": minimal}[arm]

    def run() -> float:
        torch.manual_seed(1)
        box = box_of(job["student"](), teacher, data, batch)
        start = time.perf_counter()
        box.pre_epoch_process(epoch=0)
        steps(box)
        box.post_epoch_process()
        seconds = time.perf_counter() - start
        box.clean_modules()
        return seconds

    return run


def same_loss(job: dict[str, Any], task: Image, teacher: nn.Module, x: Tensor, y: Tensor, batch: int) -> float:
    """Ask both for the loss of one batch, from the same weights; how far apart they are, relative to it."""
    torch.manual_seed(1)
    box = box_of(job["student"](), teacher, TensorDataset(x, y), batch)
    box.pre_epoch_process(epoch=0)
    torch.manual_seed(1)
    scheme = scheme_of(job["student"](), teacher, task)
    scheme.train()
    a, b = box.forward_process(x[:batch], y[:batch], {}).item(), scheme({"input": x[:batch], "label": y[:batch]}).loss.item()
    box.clean_modules()
    if not math.isclose(a, b, rel_tol=1e-4):
        raise SystemExit(f"torchdistill's loss is {a:.6f} and limbeck's {b:.6f} for the same batch and weights: they do not do the same job")
    return abs(a - b) / abs(b)


if __name__ == "__main__":
    main()
