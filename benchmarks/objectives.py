"""What each objective costs on top of the student's own step: `python benchmarks/objectives.py [--rounds 9] [--only response.kd,...]`.

The student is resnet8x4, the teacher's records are those of a resnet32x4, for 128 images of 3x32x32 and 100 classes; objectives of token models are
timed on a ViT of 6 blocks of 192 taught by one of 256. What is timed, in alternating pairs: the student's forward, cross-entropy and backward; and
the same with the objective added. The teacher's forward is not in it: it is paid once whatever is matched. Before the timing every objective is bound
as a scheme binds it, its layers paired by themselves; the optimizer's step over its own parameters is left out. `share` is (with - without) /
without, the median over rounds of pairs, with a 95% bootstrap interval. The bar is 10% for objectives that compare maps or batches, 40% for CRD,
ReviewKD, SemCKD, MGD and the adversarial ones (the opponent's phase is a step of its own and is not in it).

With `--memory`: the peak of resident memory of forward and backward on a batch of 2,048 vectors of 1,024 for the objectives that compare all pairs,
each in a process of its own, over what was resident before it, in multiples of N^2 float32 (16 MiB); N^2 D would be 1,024 multiples.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.core import lookup
from limbeck.core.errors import LimbeckError
from limbeck.core.knowledge import Dense, Knowledge
from limbeck.core.objective import Objective
from limbeck.core.task import Facts, Task
from limbeck.measure.statistics import bootstrap_ratio
from limbeck.schemes.offline import Offline
from limbeck.tasks.classify import Classify
from limbeck.teachers.frozen import Frozen
from records import folder, kept, tell

CLASSES, BATCH, SHAPE = 100, 128, (3, 32, 32)
FACTS = Facts(SHAPE, CLASSES, tuple(str(label) for label in range(CLASSES)), 50_000)
DEAR = {"feature.crd", "feature.reviewkd", "feature.semckd", "feature.mgd", "adversarial.logit_discriminator", "adversarial.feature_discriminator"}
TOKENS: dict[str, dict[str, Any]] = {
    "attention.transformer": {"hidden": {"blocks.*": "blocks.*"}},
    "attention.minilm": {"relations": {f"blocks.5.attention.{one}": f"blocks.5.attention.{one}" for one in ("query", "key", "value")}, "heads": 4},
    "feature.patient": {},
    "feature.cosine": {},
}
"""Objectives of token models, with the options that such a pair of models needs."""
MORE: dict[str, dict[str, Any]] = {"response.standardized": {"of": {"kind": "response.kd"}}}
PAIRWISE = ("relation.pkt", "relation.sp", "relation.rkd_distance", "relation.cc")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", help="objectives, with commas between them")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        print(peak(arguments.peak))
    elif arguments.memory:
        print(
            json.dumps(
                {
                    name: float(subprocess.run([sys.executable, __file__, "--peak", name], check=True, capture_output=True, text=True).stdout)
                    for name in PAIRWISE
                }
            )
        )
    else:
        names = arguments.only.split(",") if arguments.only else [name for name in lookup.names("objectives") if name != "supervised"]
        print(json.dumps(measure(names, arguments.rounds)))


def measure(names: list[str], rounds: int) -> dict[str, Any]:
    place = folder(__file__, {"rounds": rounds, "threads": torch.get_num_threads()})
    found: dict[str, Any] = {}
    for name in names:
        try:
            told = kept(place, name, lambda name=name: cost(name, rounds))
        except LimbeckError as error:
            tell(f"{name}: left out, {error}")
            continue
        found[name] = told
        mark = "" if told["share"] <= told["bar"] else "  OVER THE BAR"
        tell(f"{name}: {100 * told['share']:+.1f}% ({100 * told['low']:+.1f} to {100 * told['high']:+.1f}) of {told['bare_ms']:.0f} ms{mark}")
    return {"benchmark": "objectives", "batch": BATCH, "rounds": rounds, "threads": torch.get_num_threads(), "torch": torch.__version__, "objectives": found}


def models(name: str) -> tuple[nn.Module, nn.Module]:
    def make(kind: str, **options: Any) -> nn.Module:
        return lookup.build("models", kind, options, in_shape=SHAPE, classes=CLASSES)

    if name in TOKENS:
        return make("vit", patch=4, dim=192, depth=6, heads=3), make("vit", patch=4, dim=256, depth=6, heads=4)
    return make("resnet", depth=8, width=4), make("resnet", depth=32, width=4)


class _Recorded(Frozen):
    """A teacher that is asked once and then says it again: its own time is not what is measured."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self._said: Knowledge | None = None
        self.keeps = False

    def forward(self, batch: Any, student: Knowledge | None = None) -> Knowledge:
        if not self.keeps:
            return super().forward(batch, student)
        self._said = super().forward(batch, student) if self._said is None else self._said
        return self._said


def cost(name: str, rounds: int) -> dict[str, Any]:
    torch.manual_seed(0)
    student, model = models(name)
    teacher, task = _Recorded(model), Classify(classes=CLASSES)
    batch = {"input": torch.randn(BATCH, *SHAPE), "label": torch.randint(0, CLASSES, (BATCH,)), "id": torch.arange(BATCH)}
    supervised: Objective = lookup.build("objectives", "supervised", {})
    objective: Objective = lookup.build("objectives", name, TOKENS.get(name, MORE.get(name, {})))
    bare = Offline(student, None, [supervised], task, batch, FACTS)
    scheme = Offline(
        student,
        None if not objective.undecided and objective.needs.teacher is None else teacher,
        [lookup.build("objectives", "supervised", {}), objective],
        task,
        batch,
        FACTS,
    )
    teacher.keeps = True

    def step(scheme: Offline) -> Callable[[], float]:
        def once() -> float:
            start = time.perf_counter()
            scheme(batch).loss.backward()
            seconds = time.perf_counter() - start
            scheme.zero_grad(set_to_none=True)
            scheme.after_step()
            return seconds

        return once

    scheme.train()
    without, with_ = step(bare), step(scheme)
    for one in (with_, without):
        one()
    times: dict[str, list[float]] = {"without": [], "with": []}
    for number in range(rounds):
        pair = [("without", without), ("with", with_)]
        for key, run in pair if number % 2 else reversed(pair):
            times[key].append(run())
    ratio = asdict(bootstrap_ratio(times["with"], times["without"]))
    return {
        "share": ratio["ratio"] - 1, "low": ratio["low"] - 1, "high": ratio["high"] - 1, "n": rounds, "bar": 0.4 if name in DEAR else 0.1,
        "bare_ms": 1000 * statistics.median(times["without"]), "layers": list(objective.said),
    }  # fmt: skip


def peak(name: str) -> float:
    """Return the peak memory of one forward and backward over what was resident before, in multiples of N^2 float32."""
    count, width = 2048, 1024
    torch.set_num_threads(1)
    objective: Objective = lookup.build("objectives", name, {"layers": {"s": "t"}})
    draw = torch.Generator().manual_seed(0)

    def said(path: str) -> Knowledge:
        return Knowledge({"main": Dense(torch.zeros(count, 2))}, {path: torch.randn(count, width, generator=draw)})

    student, teacher = said("s"), said("t")
    feature = student.features["s"].requires_grad_()
    small = Knowledge({"main": Dense(torch.zeros(8, 2))}, {"s": feature[:8].detach().requires_grad_()})
    other = Knowledge({"main": Dense(torch.zeros(8, 2))}, {"t": teacher.features["t"][:8]})
    task: Task = Classify(classes=2)
    objective.bind(small, other, task, None)
    objective(small, other, {}).backward()  # what torch loads at the first use
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    loss: Tensor = objective(student, teacher, {})
    loss.backward()
    assert loss.isfinite()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / (count * count * 4)


if __name__ == "__main__":
    main()
