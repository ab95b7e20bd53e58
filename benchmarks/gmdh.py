"""GMDH beside a linear model on tables that come with scikit-learn, every row out of fold.

    python benchmarks/gmdh.py [--folds 10] [--seeds 3] [--teacher]

diabetes (442 rows, 10 inputs) and friedman1 (400 rows, 10 inputs, of which 5 matter, noise 1; made as in Friedman 1991): squared error against ridge
regression, its strength chosen within the training folds. breast cancer (569 rows, 30 inputs): error and negative log-likelihood against logistic
regression, likewise. A seed shuffles the folds, and is the estimator's own. `difference` is GMDH minus the other, of the mean over seeds of each row's loss,
with Student's interval over rows: below zero GMDH is better.

`--teacher`: breast cancer as a recipe, a perceptron of one hidden layer alone, and taught by GMDH as a black box, over the folds of one seed.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from safetensors.numpy import load_file
from sklearn.datasets import load_breast_cancer, load_diabetes, make_friedman1
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.model_selection import GridSearchCV, KFold, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import limbeck
from limbeck.compress.grow import GMDHClassifier, GMDHRegressor
from limbeck.measure.statistics import paired_t, wilson
from records import folder, kept, tell

STRENGTHS = np.logspace(-3, 3, 13)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folds", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--teacher", action="store_true")
    given = parser.parse_args()
    if given.folds < 2 or given.seeds < 1:
        parser.error("--folds is 2 or more, --seeds 1 or more")
    place = folder(__file__, {"folds": given.folds, "seeds": given.seeds})
    found: dict[str, Any] = {"benchmark": "gmdh", "folds": given.folds, "seeds": given.seeds}
    if given.teacher:
        found["teacher"] = kept(place, "teacher", lambda: taught(place, given.folds))
    else:
        for name in ("diabetes", "friedman1"):
            found[name] = kept(place, name, lambda name=name: numbers(name, given.folds, given.seeds))
        found["breast cancer"] = kept(place, "breast-cancer", lambda: classes(given.folds, given.seeds))
    print(json.dumps(found))


def numbers(name: str, folds: int, seeds: int) -> dict[str, Any]:
    x, y = load_diabetes(return_X_y=True) if name == "diabetes" else make_friedman1(400, 10, noise=1.0, random_state=100)
    losses = {one: np.zeros((seeds, len(y))) for one in ("gmdh", "linear")}
    depths, units, inputs = list[int](), list[int](), list[int]()
    for seed in range(seeds):
        tell(f"{name}, seed {seed}")
        for train, test in KFold(folds, shuffle=True, random_state=seed).split(x):
            grown = GMDHRegressor(random_state=seed).fit(x[train], y[train])
            linear = make_pipeline(StandardScaler(), RidgeCV(STRENGTHS)).fit(x[train], y[train])
            losses["gmdh"][seed, test] = (grown.predict(x[test]) - y[test]) ** 2
            losses["linear"][seed, test] = (linear.predict(x[test]) - y[test]) ** 2
            depths.append(grown.depth_)
            units.append(grown.network_.units)
            inputs.append(len(grown.inputs_))
    spread = float(np.var(y))
    return {
        "rows": len(y), "inputs": x.shape[1],
        "r2": {one: 1 - float(loss.mean()) / spread for one, loss in losses.items()},
        "squared error, difference": asdict(paired_t((losses["gmdh"] - losses["linear"]).mean(axis=0))),
        "depth": float(np.mean(depths)), "units": float(np.mean(units)), "inputs read": float(np.mean(inputs)),
    }  # fmt: skip


def classes(folds: int, seeds: int) -> dict[str, Any]:
    x, y = load_breast_cancer(return_X_y=True)
    wrong, nll = ({one: np.zeros((seeds, len(y))) for one in ("gmdh", "linear")} for _ in range(2))
    inputs = list[int]()
    for seed in range(seeds):
        tell(f"breast cancer, seed {seed}")
        for train, test in StratifiedKFold(folds, shuffle=True, random_state=seed).split(x, y):
            search = GridSearchCV(LogisticRegression(max_iter=2000), {"C": STRENGTHS}, scoring="neg_log_loss", cv=5)
            models = {"gmdh": GMDHClassifier(random_state=seed), "linear": make_pipeline(StandardScaler(), search)}
            for one, model in models.items():
                p = model.fit(x[train], y[train]).predict_proba(x[test])
                wrong[one][seed, test] = p.argmax(axis=1) != y[test]
                nll[one][seed, test] = -np.log(np.maximum(p[np.arange(len(test)), y[test]], 1e-12))
            inputs.append(len(models["gmdh"].inputs_))
    return {
        "rows": len(y), "inputs": x.shape[1],
        "accuracy": {one: float(1 - found.mean()) for one, found in wrong.items()},
        "wilson_95 of the first seed": {one: wilson(int((1 - found[0]).sum()), len(y)) for one, found in wrong.items()},
        "nll": {one: float(found.mean()) for one, found in nll.items()},
        "error in points, difference": asdict(paired_t(100 * (wrong["gmdh"] - wrong["linear"]).mean(axis=0))),
        "nll, difference": asdict(paired_t((nll["gmdh"] - nll["linear"]).mean(axis=0))),
        "inputs read": float(np.mean(inputs)),
    }  # fmt: skip


def taught(place: Path, folds: int) -> dict[str, Any]:
    """Breast cancer as a recipe: who was right about each row, alone and taught."""
    x, y = load_breast_cancer(return_X_y=True)
    lines = [",".join([*map(repr, row.tolist()), "mb"[label]]) for row, label in zip(x, y, strict=True)]
    (place / "cancer.csv").write_text("\n".join([",".join([*(f"x{number}" for number in range(x.shape[1])), "class"]), *lines]))
    training: dict[str, Any] = {
        "model": {"kind": "mlp", "widths": [8]}, "epochs": 60, "select": "last", "batch_size": 32, "optimizer": {"kind": "adam", "lr": 0.01},
    }  # fmt: skip
    source = {"kind": "fitted", "estimator": "python:limbeck.compress.grow:GMDHClassifier"}
    recipe = {
        "name": "gmdh-teacher", "seed": 0, "runtime": {"threads": 1}, "measure": {"latency": False},
        "task": {"kind": "table", "data": "csv", "root": str((place / "cancer.csv").resolve()), "target": "class", "folds": folds},
        "stages": {
            "alone": {"kind": "train", **training},
            "taught": {
                "kind": "distill", "teacher": {"kind": "blackbox", "source": source, "keep": "memory"}, **training,
                "objectives": [{"kind": "response.kd", "temperature": 1.0, "weight": 0.5}, {"kind": "supervised", "weight": 0.5}],
            },
        },
    }  # fmt: skip
    file = place / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe, sort_keys=False))
    right = {name: np.full(len(y), -1) for name in ("alone", "taught")}
    for fold in range(folds):
        tell(f"teacher, fold {fold}")
        done = limbeck.run(str(file), sets=[f"task.fold={fold}"], out=place / f"fold{fold}")
        for name, found in right.items():
            said = load_file(Path(done.stages[name]["artifact"]) / "predictions.safetensors")
            found[said["ids"]] = said["logits"].argmax(axis=1) == said["labels"]
    assert all((found >= 0).all() for found in right.values()), "a row was never tested"
    return {
        "rows": len(y), "accuracy": {name: float(found.mean()) for name, found in right.items()},
        "taught minus alone, points": asdict(paired_t(100.0 * (right["taught"] - right["alone"]))),
    }  # fmt: skip


if __name__ == "__main__":
    main()
