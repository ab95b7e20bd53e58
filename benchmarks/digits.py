"""Every one of the 1,797 digits, out of fold: what distillation gains over the same student alone, what it loses to the teacher, what INT8 changes.

    python benchmarks/digits.py [--folds 5] [--seeds 2]

The built-in recipe `digits` runs for each fold and seed (`task.fold=K`, `task.split_seed=S`, `seed=S`, no latency). A seed's folds are disjoint and cover the
data, so each image is answered once per seed by models that never saw it; this is checked. All models of a run have the same split, seed, epochs and optimizer.

`accuracy`          of each model: by seed with Wilson's interval (n images), and over seeds with the interval `by_image`
`difference`        accuracy of one model minus another's on the same images, in points, three ways:
    `by_image`      Student's interval over images of the mean over seeds of (right a - right b): an image counts once, however many seeds asked about it.
                    It holds for these trained models and new images.
    `by_run`        Student's interval over the folds x seeds runs of the difference of their accuracies: it also holds the luck of training.
                    Runs share training images, so they are not quite independent.
    `mcnemar`       McNemar's exact test on the answers of all seeds pooled, with Newcombe's interval: two seeds' answers to one image count as two
`int8_agreement`    the quantized file names the same class as the float file it was made of, and as the trained student, with Wilson's interval

Finished runs are reused: give the command again to go on. A change of limbeck's source starts anew.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

import limbeck
from limbeck.core.events import Event, StageDone
from limbeck.measure.statistics import mcnemar, paired_t, wilson
from limbeck.pipeline.recipe import TrainStage, load_recipe
from records import folder, tell

RECIPE = "digits"
STAGES = ("teacher", "alone", "student", "shipped", "int8")
IMAGES = 1797


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--epochs", type=int, help="of every training stage; the recipe's own unless given (figures of other epochs prove nothing)")
    arguments = parser.parse_args()
    if arguments.folds < 2 or arguments.seeds < 1:
        parser.error("--folds is 2 or more, --seeds 1 or more")
    print(json.dumps(measure(arguments.folds, arguments.seeds, arguments.epochs)))


def measure(folds: int, seeds: int, epochs: int | None) -> dict[str, Any]:
    trained = [name for name, stage in load_recipe(RECIPE, ()).stages.items() if isinstance(stage, TrainStage)]
    sets = ["measure.latency=false", f"task.folds={folds}", *(f"stages.{name}.epochs={epochs}" for name in trained if epochs is not None)]
    place = folder(__file__, {"recipe": load_recipe(RECIPE, sets).as_yaml()})
    answers: dict[str, np.ndarray] = {name: np.full((seeds, IMAGES), -1) for name in STAGES}  # the class that a model names, [seeds, N]
    labels, runs = np.full(IMAGES, -1), np.full((seeds, IMAGES), -1)  # an image's class [N]; the run that tested it [seeds, N]
    parameters: dict[str, set[int]] = {name: set() for name in STAGES}
    for seed in range(seeds):
        for fold in range(folds):
            tell(f"seed {seed}, fold {fold}")
            out = place / f"seed{seed}-fold{fold}"
            done = limbeck.run(RECIPE, sets=[*sets, f"task.fold={fold}", f"task.split_seed={seed}", f"seed={seed}"], out=out, listener=heard)
            for name in STAGES:
                said = load_file(Path(done.stages[name]["artifact"]) / "predictions.safetensors")
                ids = said["ids"]
                if name == STAGES[0]:
                    assert (runs[seed, ids] == -1).all(), f"fold {fold} of seed {seed} tests images that another fold tested"
                    runs[seed, ids] = seed * folds + fold
                    labels[ids] = said["labels"]
                assert (runs[seed, ids] == seed * folds + fold).all() and (labels[ids] == said["labels"]).all(), f"{out}: {name} answered other images"
                answers[name][seed, ids] = said["logits"].argmax(axis=1)
                parameters[name].add(int(done.stages[name]["metrics"]["parameters"]))
    assert (runs >= 0).all(), f"{(runs < 0).sum()} images were never tested"
    return figures(answers, labels, runs, parameters) | {"recipe": RECIPE, "sets": sets, "folds": folds, "seeds": seeds, "runs": folds * seeds}


def heard(event: Event) -> None:
    if isinstance(event, StageDone):
        accuracy = f"  accuracy {event.metrics['accuracy']:.4f}" if "accuracy" in event.metrics else ""
        tell(f"  {event.stage:<8} {'reused' if event.reused else f'{event.seconds:.1f} s'}{accuracy}")


def figures(answers: dict[str, np.ndarray], labels: np.ndarray, runs: np.ndarray, parameters: dict[str, set[int]]) -> dict[str, Any]:
    """Everything that is printed, from the classes named `[seeds, N]`, the labels `[N]` and the run that tested each `[seeds, N]`."""
    right = {name: answers[name] == labels for name in STAGES}
    gain, gap = difference(right["student"], right["alone"], runs), difference(right["student"], right["teacher"], runs)
    agreement = {of: same(answers["int8"], answers[of]) for of in ("shipped", "student")}
    sizes = {name: sorted(found) for name, found in parameters.items()}
    ratio = sizes["teacher"][0] / sizes["student"][-1]
    return {
        "benchmark": "digits", "images": len(labels), "predictions": labels.size * len(runs),
        "accuracy": {name: accuracy(right[name]) for name in STAGES},
        "parameters": sizes, "parameter_ratio": ratio,
        "student_minus_alone_points": gain, "student_minus_teacher_points": gap,
        "int8_minus_student_points": difference(right["int8"], right["student"], runs),
        "int8_agreement": agreement,
        "bars": {
            "at least 10x fewer parameters": ratio >= 10,
            "above the same student alone, 95% interval by image above zero": gain["by_image"]["low"] > 0,
            "above the same student alone, 95% interval by run above zero": gain["by_run"]["low"] > 0,
            "under the teacher by less than 1.5 points": gap["by_image"]["mean"] > -1.5,
            "under the teacher by less than 1.5 points, whole 95% interval by image": gap["by_image"]["low"] > -1.5,
            "INT8 agrees with its float file on 99.5%": agreement["shipped"]["share"] >= 0.995,
        },
    }  # fmt: skip


def accuracy(right: np.ndarray) -> dict[str, Any]:
    seeds = [{"accuracy": float(one.mean()), "wilson_95": wilson(int(one.sum()), one.size), "n": one.size} for one in right]
    return {"over_seeds": asdict(paired_t(right.mean(axis=0))), "by_seed": seeds}


def difference(a: np.ndarray, b: np.ndarray, runs: np.ndarray) -> dict[str, Any]:
    """Accuracy of a minus accuracy of b, in points, from who was right `[seeds, N]`."""
    each = 100 * (a.astype(float) - b.astype(float))
    tested = mcnemar(a.ravel(), b.ravel())
    return {
        "by_image": asdict(paired_t(each.mean(axis=0))),
        "by_run": asdict(paired_t([each[runs == run].mean() for run in np.unique(runs)])),
        "mcnemar": {
            "a_only": tested.a_only, "b_only": tested.b_only, "p": tested.p,
            "mean": 100 * tested.difference, "low": 100 * tested.low, "high": 100 * tested.high, "n": a.size,
        },
    }  # fmt: skip


def same(a: np.ndarray, b: np.ndarray) -> dict[str, Any]:
    agreed = int((a == b).sum())
    return {"share": agreed / a.size, "wilson_95": wilson(agreed, a.size), "agreed": agreed, "n": a.size}


if __name__ == "__main__":
    main()
