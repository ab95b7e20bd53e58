"""What a teacher gives a small language model: the student alone, and taught in several ways, on equal tokens, over paired seeds.

    LIMBECK_DATA=... python benchmarks/language.py [--data tinyshakespeare] [--methods alone forward_kl ...] [--seeds 5] [--rates 0.0005 0.001 0.002]
        [--epochs 2] [--teacher ARTIFACT] [--out runs/benchmark-language]

A GPT of 6.0 million parameters (13 blocks of width 192) learns from the text once, seed 0; every student (2 blocks of the same width, 1.1 million parameters)
learns from the same tokens, in the same order for each seed, with half its loss from the text and half from the teacher, who is recorded once and not asked
again:

`alone`       the text alone.
`forward_kl`  KL(teacher || student) from recorded hidden states, bfloat16.
`reverse_kl`  KL(student || teacher), likewise.
`jsd`         the generalised Jensen-Shannon divergence, beta 0.5, likewise.
`top64`       forward KL from the 64 likeliest tokens and the mass of all others.
`layers`      forward KL, the student beginning with the teacher's first and last block, embedding and norm.

Each method's learning rate is the best of `--rates` by validation loss on seed 0; the test split is opened by each run once and looked at here alone, after
that choice. Printed: test loss and perplexity, mean over seeds, and the difference to `alone` over paired seeds, nats a token, with Student's 95% interval. A
run that stands is not made again.
"""

import argparse
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import limbeck
from limbeck.core.artifact import Artifact
from limbeck.measure.statistics import paired_t
from records import tell

STUDENT = {"kind": "gpt", "dim": 192, "depth": 2, "heads": 6}
TEACHER = {"kind": "gpt", "dim": 192, "depth": 13, "heads": 6, "dropout": 0.1}
HIDDEN, TOP = {"kind": "hidden", "dtype": "bfloat16"}, {"kind": "topk", "k": 64, "temperature": 1.0}
METHODS: dict[str, tuple[Mapping[str, Any], Mapping[str, Any]] | None] = {
    "alone": None,
    "forward_kl": ({"divergence": "forward_kl"}, HIDDEN),
    "jsd": ({"divergence": "jsd"}, HIDDEN),
    "top64": ({"divergence": "forward_kl"}, TOP),
    "layers": ({"divergence": "forward_kl"}, HIDDEN),
    "reverse_kl": ({"divergence": "reverse_kl"}, HIDDEN),
}


def fit(rate: float, epochs: int) -> dict[str, Any]:
    return {
        "epochs": epochs, "batch_size": 4, "optimizer": {"kind": "adamw", "lr": rate, "betas": [0.9, 0.95]},
        "schedule": {"kind": "cosine", "warmup_epochs": 0.2}, "clip": 1.0,
    }  # fmt: skip


def recipe(method: str, rate: float, seed: int, task: Mapping[str, Any], epochs: int, teacher: Path) -> dict[str, Any]:
    stages: dict[str, Any] = {"teacher": {"kind": "given", "path": str(teacher)}}
    how = METHODS[method]
    if how is None:
        stages["student"] = {"kind": "train", "model": STUDENT, **fit(rate, epochs)}
    else:
        objective, keep = how
        start: dict[str, Any] = {"model": STUDENT}
        if method == "layers":
            stages["dropped"] = {
                "kind": "compress",
                "of": "teacher",
                "method": {"kind": "prune.layers", "keep": [0, 12]},
            }
            start = {"init": "dropped"}
        stages["student"] = {
            "kind": "distill", **start, **fit(rate, epochs), "teacher": {"kind": "cached", "of": "teacher", "keep": keep},
            "objectives": [{"kind": "response.divergence", "weight": 0.5, **objective}, {"kind": "supervised", "weight": 0.5}],
        }  # fmt: skip
    return {"name": f"language-{method}", "seed": seed, "task": task, "stages": stages, "measure": {"latency": False}}


def student(args: argparse.Namespace, method: str, rate: float, seed: int, task: Mapping[str, Any]) -> dict[str, Any]:
    """One run's figures; its record of the teacher is shared by all seeds of one form, for the tokens are the same."""
    out = args.out / f"{method}-{rate:g}-{seed}"
    if not (out / "knowledge").exists():
        (args.out / "knowledge").mkdir(exist_ok=True)
        out.mkdir(exist_ok=True)
        (out / "knowledge").symlink_to((args.out / "knowledge").resolve())
    done = limbeck.run(recipe(method, rate, seed, task, args.epochs, args.teacher.resolve()), out=out)
    found = done.stages["student"]["metrics"]
    tell(f"{method}, rate {rate:g}, seed {seed}: validation {found['validation_loss']:.4f}, {found['train_seconds']:.0f} s")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="tinyshakespeare")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rates", type=float, nargs="+", default=[0.0005, 0.001, 0.002])
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--teacher-epochs", type=int, default=4)
    parser.add_argument("--teacher", type=Path, help="one that stands already; the rest of its training was as here")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark-language"))
    args = parser.parse_args()
    task = {"kind": "language", "data": args.data, "root": "${LIMBECK_DATA}", "tokenizer": {"kind": "bpe", "size": 1024}, "context": 128}
    stages = {"teacher": {"kind": "train", "model": TEACHER, **fit(0.001, args.teacher_epochs)}}
    if args.teacher is None:
        limbeck.run({"name": "language-teacher", "seed": 0, "task": task, "stages": stages, "measure": {"latency": False}}, out=args.out / "teacher")
        args.teacher = args.out / "teacher" / "stages" / "teacher"
    teacher = Artifact.open(args.teacher).metrics
    tell(f"teacher: {teacher['parameters']:,} parameters, validation {teacher['validation_loss']:.4f}, {teacher['train_seconds']:.0f} s")
    found: dict[str, dict[str, Any]] = {}
    for method in args.methods:
        first = {rate: student(args, method, rate, 0, task) for rate in args.rates}
        rate = min(args.rates, key=lambda one: first[one]["validation_loss"])
        runs = [first[rate], *(student(args, method, rate, seed, task) for seed in range(1, args.seeds))]
        found[method] = {"rate": rate, "parameters": runs[0]["parameters"], "test_loss": [run["test_loss"] for run in runs]}
    table: dict[str, Any] = {"teacher": {name: teacher[name] for name in ("parameters", "test_loss", "test_perplexity")}}
    for method, told in found.items():
        losses = told["test_loss"]
        table[method] = told | {"perplexity": math.exp(sum(losses) / len(losses))}
        if "alone" in found and method != "alone" and len(losses) > 1:
            against = paired_t([ours - theirs for ours, theirs in zip(losses, found["alone"]["test_loss"], strict=True)])
            table[method] |= {"against_alone": [against.mean, against.low, against.high], "seeds": against.n}
    print(json.dumps({"benchmark": "language", "torch": torch.__version__, "data": args.data, "epochs": args.epochs, "methods": table}))


if __name__ == "__main__":
    main()
