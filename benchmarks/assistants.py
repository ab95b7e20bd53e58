"""Did the gap matter? A student taught by a teacher directly, and through assistants, for students of several widths: Fashion-MNIST at full size.

    LIMBECK_DATA=... python benchmarks/assistants.py [--widths 4 6 8] [--seeds 5] [--epochs N] [--jobs 1]

One run for each seed: the teacher of the recipe `takd`, and for each width a student alone, taught directly (`direct`), through the assistant of `takd`
(`chain`) and by those of `dgkd` (`dense`). Of each it says the test accuracy's mean over the seeds, by how many points it is above the student alone and
above direct teaching, with Student's 95% interval of the paired differences. A gap is there where direct teaching is not above the student alone; it mattered
where a way through assistants is above direct teaching. A run that stands is reused, a killed one goes on.
"""

import argparse
import json
import os
import statistics
from pathlib import Path
from typing import Any

import yaml

from limbeck.pipeline.recipe import builtin
from paired import difference, every
from records import tell

Figures = dict[str, dict[str, Any]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=[4, 6, 8])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, help="of every model, in place of the recipes'")
    parser.add_argument("--jobs", type=int, default=1, help="seeds at a time, one thread each")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark-assistants"))
    arguments = parser.parse_args()
    if arguments.seeds < 2:
        parser.error("an interval needs two seeds or more")
    calls = [(recipe(arguments.widths, seed, arguments.epochs), arguments.out / f"seed{seed}") for seed in range(arguments.seeds)]
    runs = every(one_seed, calls, arguments.jobs)
    rows = [row(width, runs) for width in arguments.widths]
    print(json.dumps({"benchmark": "assistants", "epochs": arguments.epochs, "seeds": arguments.seeds, "widths": rows}), flush=True)
    tell(table(rows))


def recipe(widths: list[int], seed: int, epochs: int | None) -> dict[str, Any]:
    """One recipe of all widths: the stages of `takd` and `dgkd`, once for each."""
    chain, dense = (yaml.safe_load(builtin()[name].read_text()) for name in ("takd", "dgkd"))
    stages = {"teacher": chain["stages"]["teacher"]}
    for width in widths:
        ways = {"alone": chain["stages"]["alone"], "direct": chain["stages"]["direct"]}
        ways |= {"chain": chain["stages"]["student"], "dense": dense["stages"]["student"]}
        stages |= {f"{way}{width}": {**stage, "model": {**stage["model"], "width": width}} for way, stage in ways.items()}
    if epochs is not None:
        stages = {name: {**stage, "epochs": epochs} for name, stage in stages.items()}
    return {**chain, "name": "assistants", "seed": seed, "runtime": {"threads": 1}, "stages": stages}


def one_seed(call: tuple[dict[str, Any], Path]) -> Figures:
    """Run it and return each stage's figures."""
    told, out = call
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import limbeck

    done = limbeck.run(told, out=out)
    tell(f"seed {told['seed']}: " + ", ".join(f"{name} {stage['metrics']['accuracy']:.4f}" for name, stage in done.stages.items()))
    return {name: stage["metrics"] for name, stage in done.stages.items()}


def row(width: int, runs: list[Figures]) -> dict[str, Any]:
    """What every way came to with students of one width."""
    reached = {way: [run[f"{way}{width}"]["accuracy"] for run in runs] for way in ("alone", "direct", "chain", "dense")}
    told: dict[str, Any] = {"width": width, "parameters": runs[0][f"alone{width}"]["parameters"]}
    told["means"] = {way: statistics.mean(values) for way, values in reached.items()}
    pairs = [("direct", "alone"), ("chain", "direct"), ("dense", "direct"), ("chain", "alone"), ("dense", "alone")]
    return {**told, "pairs": {f"{a} - {b}": difference(reached[a], reached[b]) for a, b in pairs}}


def table(rows: list[dict[str, Any]]) -> str:
    """The figures as a table of Markdown, in points."""
    pairs = list(rows[0]["pairs"])
    head = [f"| width | parameters | alone | {' | '.join(pairs)} |", "|---" * (3 + len(pairs)) + "|"]
    gaps = [[f"{100 * one['mean']:+.2f} [{100 * one['low']:+.2f}, {100 * one['high']:+.2f}]" for one in told["pairs"].values()] for told in rows]
    lines = [
        f"| {told['width']} | {told['parameters']:,} | {100 * told['means']['alone']:.2f} | {' | '.join(gap)} |" for told, gap in zip(rows, gaps, strict=True)
    ]
    return "\n".join([*head, *lines])


if __name__ == "__main__":
    main()
