"""Each way of distilling against its own baseline: the same recipe with several seeds, and the paired difference of two of its stages.

    LIMBECK_DATA=... python benchmarks/schemes.py RECIPE [RECIPE ...] [--seeds 5] [--pairs student:alone] [--metric accuracy] [--set a.b=c] [--jobs 1]
        [--reseed STAGE ...]

A built-in recipe, or a file, runs once for each seed, from the teacher on, without latency; a run that stands is reused, a killed one goes on. With `--reseed`
only these stages have a seed of their own each time, and all others, the teacher for one, are made once. A pair `a:b`
asks by how much stage a is above stage b in a metric of the test split, in points where it is a share: the mean over the seeds with Student's 95% interval of
the paired differences, and how many seeds agree. The settings of a recipe were chosen on its validation split with one seed.
"""

import argparse
import json
import os
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from paired import difference, every
from records import tell


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="+")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--pairs", default="student:alone")
    parser.add_argument("--metric", default="accuracy")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--reseed", nargs="+", default=[])
    parser.add_argument("--jobs", type=int, default=1, help="seeds at a time, one thread each")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark-schemes"))
    arguments = parser.parse_args()
    if arguments.seeds < 2:
        parser.error("an interval needs two seeds or more")
    if arguments.reseed and arguments.jobs > 1:
        parser.error("what is made once is made by one job: leave --jobs out beside --reseed")
    for recipe in arguments.recipes:
        place = arguments.out / Path(recipe).stem
        if arguments.reseed:
            own = [[f"stages.{stage}.reseed={seed}" for stage in arguments.reseed] for seed in range(arguments.seeds)]
            calls = [(recipe, 0, [*arguments.set, *sets], place / "shared") for sets in own]
        else:
            calls = [(recipe, seed, arguments.set, place / f"seed{seed}") for seed in range(arguments.seeds)]
        runs = every(one_seed, calls, arguments.jobs)
        pairs = [pair.split(":") for pair in arguments.pairs.split(",")]
        stages = {stage: [run[stage][arguments.metric] for run in runs] for stage in runs[0] if all(arguments.metric in run[stage] for run in runs)}
        found = {
            "benchmark": "schemes", "recipe": recipe, "set": arguments.set, "metric": arguments.metric, "seeds": arguments.seeds,
            "stages": {stage: {"mean": statistics.mean(values), "values": values} for stage, values in stages.items()},
            "pairs": {f"{a} - {b}": difference(stages[a], stages[b]) for a, b in pairs},
        }  # fmt: skip
        print(json.dumps(found), flush=True)


def one_seed(call: tuple[str, int, Iterable[str], Path]) -> dict[str, dict[str, Any]]:
    """Run a recipe with one seed and return each stage's figures."""
    recipe, seed, sets, out = call
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import limbeck

    done = limbeck.run(recipe, sets=[f"seed={seed}", "runtime.threads=1", "measure.latency=false", *sets], out=out)
    tell(f"{recipe}, seed {seed}: " + ", ".join(f"{name} {stage['metrics'].get('accuracy', float('nan')):.4f}" for name, stage in done.stages.items()))
    return {name: stage["metrics"] for name, stage in done.stages.items()}


if __name__ == "__main__":
    main()
