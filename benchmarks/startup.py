"""How long the command line takes to answer: `limbeck --help`, and a run whose every stage is reused.

    python benchmarks/startup.py [--help-runs 10] [--reused-runs 5]

Each time is the wall time of a fresh process, from its start to its end, after one that is not counted. `python -c pass` runs beside each `--help`, in
alternating order, and says how much of it is the interpreter. The first `limbeck run digits` makes what the others reuse (it is not timed, and stays for the
next time); that each of them reused every stage is checked. A median's interval is the percentile bootstrap, 95%.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from limbeck.measure.statistics import bootstrap_ratio
from limbeck.pipeline.recipe import load_recipe
from records import folder, tell


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--help-runs", type=int, default=10)
    parser.add_argument("--reused-runs", type=int, default=5)
    parser.add_argument("--recipe", default="digits")
    parser.add_argument("--set", action="append", default=[], dest="sets", metavar="A.B=C", help="as for limbeck run; may be given again")
    arguments = parser.parse_args()
    if arguments.help_runs < 2 or arguments.reused_runs < 2:
        parser.error("--help-runs and --reused-runs are 2 or more")
    answer = {"benchmark": "startup", **helped(arguments.help_runs), **reused(arguments.recipe, arguments.sets, arguments.reused_runs)}
    print(json.dumps(answer))


def helped(runs: int) -> dict[str, Any]:
    script = Path(sys.executable).with_name("limbeck")
    commands = {
        "help_s": [str(script), "--help"] if script.is_file() else [sys.executable, "-m", "limbeck", "--help"],
        "python_s": [sys.executable, "-c", "pass"],
    }
    times: dict[str, list[float]] = {name: [] for name in commands}
    for turn in range(-1, runs):
        for name in sorted(commands, reverse=bool(turn % 2)):
            seconds, _ = timed(commands[name])
            if turn >= 0:
                times[name].append(seconds)
    tell(f"limbeck --help: {sorted(times['help_s'])}")
    return {name: median(found) for name, found in times.items()}


def reused(recipe: str, sets: list[str], runs: int) -> dict[str, Any]:
    out = folder(__file__, {"recipe": load_recipe(recipe, sets).as_yaml()}) / "run"
    settings = [word for one in sets for word in ("--set", one)]
    command = [sys.executable, "-m", "limbeck", "run", recipe, "--out", str(out), "--json", "--quiet", *settings]
    tell(f"making {out}")
    timed(command)
    times: list[float] = []
    for turn in range(-1, runs):
        seconds, said = timed(command)
        again = [name for name, stage in json.loads(said)["stages"].items() if not stage["reused"]]
        assert not again, f"{', '.join(again)} ran again: nothing had changed"
        if turn >= 0:
            times.append(seconds)
            tell(f"all reused: {seconds:.2f} s")
    return {"recipe": recipe, "sets": sets, "reused_s": median(times)}


def timed(command: list[str]) -> tuple[float, bytes]:
    """Run a command; its wall time and what it said."""
    start = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    return time.perf_counter() - start, done.stdout


def median(times: list[float]) -> dict[str, Any]:
    found = bootstrap_ratio(times, [1.0] * len(times))
    return {"median": found.ratio, "low": found.low, "high": found.high, "n": found.n, "least": min(times), "most": max(times)}


if __name__ == "__main__":
    main()
