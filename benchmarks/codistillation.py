"""Two processes that codistil against the same network alone: the paired difference over seeds, of both processes.

    LIMBECK_DATA=... python benchmarks/codistillation.py [--recipe codistillation] [--seeds 5] [--set a.b=c]

For each seed s two runs of the recipe begin together, one thread each: `a` with seed s and `b` with seed 100 + s, which share a fresh folder. Each trains its
own baseline first. The differences are those of `a`, as `benchmarks/schemes.py` has them, and of `b` beside them. A pair of runs that stands is reused.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from paired import difference
from records import tell


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="codistillation")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--metric", default="accuracy")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark-codistillation"))
    arguments = parser.parse_args()
    if arguments.seeds < 2:
        parser.error("an interval needs two seeds or more")
    runs = [pair(arguments.recipe, seed, arguments.set, arguments.out / f"seed{seed}") for seed in range(arguments.seeds)]
    stages = {f"{who}.{stage}": [run[who][stage][arguments.metric] for run in runs] for who in ("a", "b") for stage in ("student", "alone")}
    found = {
        "benchmark": "codistillation", "recipe": arguments.recipe, "set": arguments.set, "metric": arguments.metric, "seeds": arguments.seeds,
        "stages": {stage: {"mean": sum(values) / len(values), "values": values} for stage, values in stages.items()},
        "pairs": {f"{who}: student - alone": difference(stages[f"{who}.student"], stages[f"{who}.alone"]) for who in ("a", "b")},
    }  # fmt: skip
    print(json.dumps(found), flush=True)


def pair(recipe: str, seed: int, sets: list[str], out: Path) -> dict[str, dict[str, Any]]:
    """Run both processes of a seed and return each one's figures by stage."""
    started = {}
    for who, peer, own in (("a", "b", seed), ("b", "a", 100 + seed)):
        scheme = "stages.student.scheme"
        told = [
            f"seed={own}",
            f"{scheme}.name={who}",
            f"{scheme}.peers=[{peer}]",
            f"{scheme}.folder={out / 'shared'}",
            f"{scheme}.wait=600",
            "runtime.threads=1",
            *sets,
        ]
        call = [
            sys.executable,
            "-m",
            "limbeck",
            "run",
            recipe,
            "--json",
            "--quiet",
            "--out",
            str(out / who),
            *(word for one in told for word in ("--set", one)),
        ]
        started[who] = subprocess.Popen(call, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    said = {who: process.communicate()[0] for who, process in started.items()}
    for who, process in started.items():
        if process.returncode:
            sys.exit(f"{recipe}, seed {seed}: process {who} ended with {process.returncode}")
    found = {who: {name: stage["metrics"] for name, stage in json.loads(text)["stages"].items()} for who, text in said.items()}
    tell(f"{recipe}, seed {seed}: " + ", ".join(f"{who}.{name} {each['accuracy']:.4f}" for who, run in found.items() for name, each in run.items()))
    return found


if __name__ == "__main__":
    main()
