"""Kill -9 at random moments of a run, then the same command again: does it finish, and with the same bytes?

    python benchmarks/kill.py [--kills 20] [--row 1] [--epochs 6] [--seed 0]

A small run (the built-in recipe, fewer epochs) is made once unkilled, and once more as a control: two runs that nobody killed must agree, or the rest means
nothing. Then, for each trial, the same command starts in a fresh folder and in a process group of its own, the whole group is killed with SIGKILL at a seeded
moment, uniform between 0.5 s and the unkilled run's duration, and the command is given again. With `--row R` a trial is killed R times in a row before it may
finish. A run that ends before its moment was not killed: the trial is made again with the next moment (`missed`).

`finished`   trials whose last command ended with exit code 0
`identical`  trials whose artifacts all verify and equal the unkilled run's byte for byte: weights (model, best, last), exported and quantized files,
             predictions, golden answers, history, optimizer and generator states. Left out are times (latency and its kin in metrics.json, `seconds` in a
             checkpoint's state.json) and the checksums of that file.
`whole`      kills after which everything that stood under its final name was whole: artifacts and checkpoints verified against their manifests, JSON,
             safetensors and ONNX parsed. Checked right after the kill, before limbeck looks at the folder again.
`hit`        the stage that a kill interrupted; `start` is before the run's folder had its recipe, `measurement` and `report` come after the last stage

`source_unchanged` is false where limbeck's files were edited meanwhile: then the figures mean nothing. Intervals are Wilson's, 95%.
Trials are recorded as they end: give the command again to go on. A trial that fails leaves its folder and log to look at.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError
from safetensors import SafetensorError, safe_open

from limbeck.core.artifact import Artifact
from limbeck.core.errors import LimbeckError
from limbeck.core.files import digest, read_json
from limbeck.engine import checkpoint
from limbeck.measure.statistics import wilson
from limbeck.pipeline.recipe import TrainStage, load_recipe
from records import folder, kept, source, tell

EARLIEST = 0.5
"""Seconds after which the first kill may come: before it only the interpreter is starting."""
TIMES = ("train_seconds", "steps_per_s", "latency_", "throughput_", "peak_memory_", "energy_")
"""What the names of metrics begin with that say how long something took, or what a process used meanwhile."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="trials")
    parser.add_argument("--row", type=int, default=1, help="kills in a row before a trial may finish")
    parser.add_argument("--recipe", default="digits", help="a built-in recipe, or a .yaml file")
    parser.add_argument("--epochs", type=int, default=6, help="of every training stage")
    parser.add_argument("--seconds", type=float, default=0.1, help="of measurement for each model")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    arguments = parser.parse_args()
    if arguments.kills < 1 or arguments.row < 1:
        parser.error("--kills and --row are 1 or more")
    trained = [name for name, stage in load_recipe(arguments.recipe, ()).stages.items() if isinstance(stage, TrainStage)]
    sets = [*(f"stages.{name}.epochs={arguments.epochs}" for name in trained), f"measure.seconds={arguments.seconds}"]
    print(json.dumps(measure(arguments.recipe, sets, arguments.kills, arguments.row, arguments.seed)))


def measure(recipe: str, sets: list[str], kills: int, row: int, seed: int) -> dict[str, Any]:
    whole = load_recipe(recipe, sets)
    place = folder(__file__, {"recipe": whole.as_yaml(), "row": row, "seed": seed, "threads": os.environ.get("OMP_NUM_THREADS")})
    stages, code = list(whole.stages), source()
    start = [sys.executable, "-m", "limbeck", "run", recipe, "--quiet", *(word for one in sets for word in ("--set", one))]
    reference = kept(place, "reference", lambda: unkilled(start, place / "reference"))
    tell(f"unkilled: {reference['seconds']:.1f} s, {len(reference['content'])} pieces to compare")
    control = kept(place, "control", lambda: unkilled(start, place / "control"))
    twin = not differences(reference["content"], control["content"])
    tell(f"control: {'identical' if twin else 'DIFFERS without a kill'}")
    trials: list[dict[str, Any]] = []
    for number in range(kills):
        trials.append(kept(place, f"trial-{number:03d}", lambda number=number: trial(start, place, number, row, seed, reference, stages)))
        one = trials[-1]
        struck = ", ".join(f"{kill['at']:.2f} s in {kill['hit']}" for kill in one["kills"])
        tell(f"trial {number + 1}/{kills}: killed at {struck}; {'finished' if one['finished'] else 'FAILED'}, {one['differs'][:5] or 'identical'}")
    struck = [kill for one in trials for kill in one["kills"]]
    finished, identical = sum(one["finished"] for one in trials), sum(one["finished"] and not one["differs"] for one in trials)
    unbroken = sum(not kill["torn"] for kill in struck)
    return {
        "benchmark": "kill", "recipe": recipe, "sets": sets, "trials": len(trials), "kills": len(struck),
        "finished": finished, "finished_95": wilson(finished, len(trials)),
        "identical": identical, "identical_95": wilson(identical, len(trials)),
        "whole": unbroken, "whole_95": wilson(unbroken, len(struck)),
        "missed": sum(one["missed"] for one in trials), "hit": dict(Counter(kill["hit"] for kill in struck)),
        "control_identical": twin, "source_unchanged": source() == code,
        "seconds_unkilled": reference["seconds"], "pieces": len(reference["content"]), "stages": stages,
    }  # fmt: skip


def unkilled(start: list[str], out: Path) -> dict[str, Any]:
    """Run to the end in a fresh folder; how long it took, and what came of it."""
    shutil.rmtree(out, ignore_errors=True)
    began = time.perf_counter()
    code = started(start, out, None)
    seconds = time.perf_counter() - began
    if code:
        raise SystemExit(f"the unkilled run failed with exit code {code}: see {log_of(out)}")
    found = {"seconds": seconds, "content": content(out)}
    shutil.rmtree(out)
    return found


def trial(start: list[str], place: Path, number: int, row: int, seed: int, reference: dict[str, Any], stages: list[str]) -> dict[str, Any]:
    """Kill a fresh run `row` times, then let it finish."""
    rng = random.Random(f"{seed} {number}")
    out = place / f"trial-{number:03d}"
    kills: list[dict[str, Any]] = []
    missed = 0
    while len(kills) < row:
        if not kills:
            shutil.rmtree(out, ignore_errors=True)
        at = rng.uniform(EARLIEST, reference["seconds"])
        code = started(start, out, at)
        if code == -signal.SIGKILL:
            kills.append({"at": at, "hit": where(out, stages), "torn": torn(out)})
        elif code:  # it failed by itself
            return {"kills": kills, "missed": missed, "finished": False, "code": code, "differs": ["exit code"]}
        else:
            missed += 1
            if kills:  # what is left of the run is shorter than the moment: it has been killed often enough
                break
    code = started(start, out, None)
    differs = ["exit code"] if code else differences(reference["content"], content(out))
    if not code and not differs:
        shutil.rmtree(out)
        log_of(out).unlink()
    return {"kills": kills, "missed": missed, "finished": code == 0, "code": code, "differs": differs}


def started(start: list[str], out: Path, seconds: float | None) -> int:
    """Run the command into `out`, for so many seconds at most; return its exit code, minus SIGKILL where its process group had to be killed."""
    with log_of(out).open("ab") as log:
        process = subprocess.Popen([*start, "--out", str(out)], stdout=log, stderr=log, start_new_session=True)
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return process.wait()
        except BaseException:  # Ctrl-C here must not leave a run behind that is in a session of its own
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise


def log_of(out: Path) -> Path:
    return out.with_suffix(".log")


def where(out: Path, stages: list[str]) -> str:
    """Say what a killed run was about, by what stands in its folder."""
    if not (out / "recipe.yaml").is_file():
        return "start"
    for name in stages:
        if not (out / "stages" / name).is_dir():
            return name
    return "report" if (out / "measurement.json").is_file() else "measurement"


def torn(out: Path) -> list[str]:
    """List what stands under its final name in a killed run's folder and is not whole."""
    found: list[str] = []
    for path in sorted(out.rglob("*")):
        inside = path.relative_to(out)
        if any(part.startswith(".") for part in inside.parts):  # scratch, which nobody reads
            continue
        try:
            if path.is_dir() and inside.parts[0] in ("stages", "cache") and len(inside.parts) == 2 and path.name != "measured":
                Artifact.open(path)
            elif path.name == "checkpoints":
                checkpoint.latest(path)
            elif path.suffix == ".json":
                read_json(path)
            elif path.suffix == ".safetensors":
                with safe_open(path, "np") as tensors:
                    tensors.keys()
            elif path.suffix == ".onnx":
                onnx.checker.check_model(onnx.load(path))
        except (LimbeckError, SafetensorError, DecodeError, onnx.checker.ValidationError) as error:
            found.append(f"{inside}: {error}")
    return found


def content(out: Path) -> dict[str, str]:
    """Return what a finished run holds, piece by piece, every artifact verified: path -> digest, times left out."""
    found: dict[str, str] = {}
    for path in sorted((out / "stages").iterdir()):
        artifact = Artifact.open(path)
        for name, told in artifact.manifest["files"].items():
            inside = Path(name)
            if inside.parts[0] == "checkpoint" and inside.name == "state.json":
                state = read_json(path / name)
                del state["position"]["seconds"]
                found[f"{path.name}/{name}"] = digest(state)
            elif inside.parts[0] != "checkpoint" or inside.name != "manifest.json":
                found[f"{path.name}/{name}"] = told["sha256"]
        found[f"{path.name}/metrics.json"] = digest({key: value for key, value in artifact.metrics.items() if not key.startswith(TIMES)})
    return found


def differences(one: dict[str, str], other: dict[str, str]) -> list[str]:
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


if __name__ == "__main__":
    main()
