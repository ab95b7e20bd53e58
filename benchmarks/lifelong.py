"""Ways of learning one task after another, side by side: the same recipe with several seeds.

    LIMBECK_DATA=... python benchmarks/lifelong.py [split-fashion] [--seeds 5] [--pairs lwf:finetune,replay:lwf,...] [--set a.b=c] [--jobs 1]

The recipe runs once for each seed; a run that stands is reused, a killed one goes on. For every method, the last stage of its course (and its player, such as
`icarl.nearest_mean`): average accuracy and forgetting on the test split after the last task, class-incremental and, `task_`, with the task told; the mean over
the seeds with Student's 95% interval. A pair `a:b` asks by how much a's average accuracy is above b's: the mean of the paired differences with Student's 95%
interval, and in how many seeds it is above. The settings of the recipe were chosen on its validation split with one seed.
"""

import argparse
import json
import os
from collections.abc import Iterable
from pathlib import Path

from limbeck.core.files import read_json
from paired import difference, every, interval
from records import tell

FIGURES = ("average_accuracy", "forgetting", "task_average_accuracy", "task_forgetting")
PAIRS = "lwf:finetune,lwf:finetune_heads,lwf_single:finetune,replay:lwf,der:replay,icarl.nearest_mean:icarl,icarl.nearest_mean:replay,joint:der"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", default="split-fashion")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--pairs", default=PAIRS)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--jobs", type=int, default=1, help="seeds at a time, one thread each")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark-lifelong"))
    arguments = parser.parse_args()
    if arguments.seeds < 2:
        parser.error("an interval needs two seeds or more")
    calls = [(arguments.recipe, seed, arguments.set, arguments.out / Path(arguments.recipe).stem / f"seed{seed}") for seed in range(arguments.seeds)]
    runs = every(one_seed, calls, arguments.jobs)
    methods = {method: {figure: interval([run[method][figure] for run in runs]) for figure in FIGURES if figure in runs[0][method]} for method in runs[0]}
    average = {method: [run[method]["average_accuracy"] for run in runs] for method in runs[0]}
    pairs = [pair.split(":") for pair in arguments.pairs.split(",")]
    found = {
        "benchmark": "lifelong", "recipe": arguments.recipe, "set": arguments.set, "seeds": arguments.seeds, "methods": methods,
        "pairs": {f"{a} - {b}": difference(average[a], average[b]) for a, b in pairs},
    }  # fmt: skip
    for method, figures in methods.items():
        tell(f"{method}: " + ", ".join(f"{name} {100 * one['mean']:.1f} ({100 * one['low']:.1f} to {100 * one['high']:.1f})" for name, one in figures.items()))
    print(json.dumps(found), flush=True)


def one_seed(call: tuple[str, int, Iterable[str], Path]) -> dict[str, dict[str, float]]:
    """Run the recipe with one seed and return the figures of each method's last stage."""
    recipe, seed, sets, out = call
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import limbeck

    limbeck.run(recipe, sets=[f"seed={seed}", "runtime.threads=1", "measure.latency=false", *sets], out=out)
    stages = read_json(out / "lifelong.json")["stages"]
    went_on = {told["before"] for told in stages.values()}
    last = {name: told["figures"] for name, told in stages.items() if name not in went_on}
    tell(f"{recipe}, seed {seed}: " + ", ".join(f"{name} {figures['average_accuracy']:.4f}" for name, figures in last.items()))
    return last


if __name__ == "__main__":
    main()
