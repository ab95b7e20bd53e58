"""Hinton et al. 2015 on MNIST: the mean test errors of several seeds, against the paper's figures.

    LIMBECK_DATA=... python benchmarks/hinton.py [--seeds 3] [--threads 1] [--out runs/benchmark-hinton]

The built-in recipe `hinton-mnist` runs once for each seed (no latency); a run that stands is reused, a killed one goes on. `errors` are wrong answers
among the 10,000 test images; `mean` is over seeds, with Student's 95% interval. `paper` is the paper's count and `interval` its 95% binomial interval,
within which the mean must lie.
"""

import argparse
import json
from pathlib import Path

import limbeck
from limbeck.core.events import Event, StageDone
from limbeck.measure.statistics import paired_t
from records import tell

PAPER = {"teacher": (67, (51, 83)), "alone": (146, (122, 170)), "student": (74, (57, 91))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark-hinton"))
    arguments = parser.parse_args()
    errors: dict[str, list[int]] = {stage: [] for stage in (*PAPER, "int8")}
    for seed in range(arguments.seeds):
        sets = [f"seed={seed}", f"runtime.threads={arguments.threads}", "measure.latency=false"]
        done = limbeck.run("hinton-mnist", sets=sets, out=arguments.out / f"seed{seed}", listener=hear)
        for stage, found in errors.items():
            found.append(int(done.stages[stage]["metrics"]["errors"]))
    stages = {stage: {"errors": found, **mean(found)} for stage, found in errors.items()}
    for stage, (paper, (low, high)) in PAPER.items():
        stages[stage] |= {"paper": paper, "interval": [low, high], "inside": low <= stages[stage]["mean"] <= high}
    gain = [alone - student for alone, student in zip(errors["alone"], errors["student"], strict=True)]
    print(json.dumps({"benchmark": "hinton", "seeds": arguments.seeds, "stages": stages, "alone_minus_student": mean(gain)}))


def mean(found: list[int]) -> dict[str, float]:
    """The mean over seeds, with its interval where there is more than one."""
    if len(found) < 2:
        return {"mean": float(found[0])}
    interval = paired_t(found)
    return {"mean": interval.mean, "low": interval.low, "high": interval.high}


def hear(event: Event) -> None:
    if isinstance(event, StageDone):
        tell(f"{event.stage}: {event.metrics.get('errors', 0):.0f} errors{' (reused)' if event.reused else ''}")


if __name__ == "__main__":
    main()
