"""Quantization-aware training at 4 bits, with the float model as the teacher: against rounding after training, and against training without it.

    LIMBECK_DATA=... python benchmarks/qat.py [--seeds 5] [--out runs/benchmark-qat]

The built-in recipe `qat-4bit` runs once for each seed (no latency); a run that stands is reused, a killed one goes on. Seeds are paired: within one, every
stage starts from the same float model. `accuracy` is in points (per cent of the 10,000 test images), `mean` over seeds with Student's 95% interval;
`differences` are of the taught model, stored as integers (`int4`), from the others: `nearest`, `rounded` (biases corrected) and `gptq` are not trained,
`untaught` is trained on the same 2,000 images without the teacher. `better` says whether an interval lies above zero.
"""

import argparse
import json
from pathlib import Path

import limbeck
from limbeck.core.events import Event, StageDone
from limbeck.measure.statistics import paired_t
from records import tell

STAGES = ("float", "nearest", "rounded", "gptq", "untaught", "int4", "shipped")
OTHERS = ("nearest", "rounded", "gptq", "untaught", "float")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark-qat"))
    arguments = parser.parse_args()
    points: dict[str, list[float]] = {stage: [] for stage in STAGES}
    sizes: dict[str, int] = {}
    for seed in range(arguments.seeds):
        done = limbeck.run("qat-4bit", sets=[f"seed={seed}", "measure.latency=false"], out=arguments.out / f"seed{seed}", listener=hear)
        for stage, found in points.items():
            found.append(100 * done.stages[stage]["metrics"]["accuracy"])
        metrics = done.stages["int4"]["metrics"]
        sizes = {"weight_bytes": metrics["weight_bytes"], "float_bytes": 4 * done.stages["float"]["metrics"]["parameters"]}
    differences = {other: [a - b for a, b in zip(points["int4"], points[other], strict=True)] for other in OTHERS}
    print(
        json.dumps(
            {
                "benchmark": "qat",
                "seeds": arguments.seeds,
                "accuracy": {stage: {"each": [round(one, 2) for one in found], **mean(found)} for stage, found in points.items()},
                "differences": {other: mean(found) | {"better": mean(found)["low"] > 0} for other, found in differences.items()},
                "bytes": sizes,
            }
        )
    )


def mean(found: list[float]) -> dict[str, float]:
    """The mean over seeds with its interval."""
    interval = paired_t(found)
    return {"mean": round(interval.mean, 3), "low": round(interval.low, 3), "high": round(interval.high, 3)}


def hear(event: Event) -> None:
    if isinstance(event, StageDone):
        tell(f"{event.stage}: {event.metrics.get('accuracy', float('nan')):.4f}{' (reused)' if event.reused else ''}")


if __name__ == "__main__":
    main()
