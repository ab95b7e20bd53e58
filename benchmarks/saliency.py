"""Which saliency tells what a weight costs? Its rank correlation with the true rise of the loss, and the damage at equal sparsity.

    python benchmarks/saliency.py [--seeds 5] [--weights 400] [--nets lenet mlp] [--jobs 1]

Nets: `lenet` (models.lenet of half width) and `mlp`, 64-300-100-10 as LeNet-300-100 has it, trained on the digits that scikit-learn packs (1,437 for training,
360 for testing) in float64; each seed has a split, a start and an order of its own. SGD with momentum and weight decay 1e-3, 30 epochs.

`correlation`  Spearman's, between what the saliency says of a weight and by how much the loss over all training data rises when that weight alone is set to
               zero: of a sample of weights, as many of each layer; `within`: of those of one layer at a time, the mean over layers.
`rise`         of the training loss when the cheapest share of all weights is removed, in one go unless steps are named, and `accuracy` on the test data
               then. Nothing is trained after pruning; OBS changes the weights that stay.

Each as a mean over the seeds with Student's 95% interval; `over magnitude` is that of the paired difference, `above` in how many seeds it is above zero.
"""

import argparse
import copy
import json
import math
import os
import statistics
from concurrent.futures import ProcessPoolExecutor
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from torch import Tensor, nn

from limbeck.compress import Bench
from limbeck.compress.prune._target import Ratio
from limbeck.compress.prune.saliency._named import named
from limbeck.compress.prune.weights import Weights
from limbeck.measure.statistics import paired_t
from limbeck.models.lenet import LeNet
from limbeck.models.mlp import MLP
from limbeck.tasks.classify import Classify
from limbeck.tasks.image import Image
from records import tell

_OBD = {"kind": "obd", "examples": 1437}
WAYS: dict[str, tuple[Any, int]] = {
    "random": ("random", 1),
    "magnitude": ("magnitude", 1),
    "lamp": ("lamp", 1),
    "movement": ("movement", 1),
    "wanda": ("wanda", 1),
    "taylor": ("taylor", 1),
    "fisher": ({"kind": "fisher", "examples": 1437}, 1),
    "obd": (_OBD, 1),
    "obd, hutchinson": ({**_OBD, "hessian": {"kind": "hutchinson", "draws": 16}}, 1),
    "obd, 10 steps": (_OBD, 10),
    "obs": ({"kind": "obs", "block": 128}, 1),
}
"""Name -> the saliency, and in how many steps it prunes."""
RATIOS = (0.5, 0.8, 0.9)
Data = tuple[Tensor, Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--weights", type=int, default=400, help="how many are deleted, one by one")
    parser.add_argument("--nets", nargs="+", default=["lenet", "mlp"])
    parser.add_argument("--jobs", type=int, default=1, help="seeds at a time, one thread each")
    arguments = parser.parse_args()
    if arguments.seeds < 2:
        parser.error("an interval needs two seeds or more")
    for kind in arguments.nets:
        with ProcessPoolExecutor(arguments.jobs) as pool:
            runs = list(pool.map(one_seed, [(kind, seed, arguments.weights) for seed in range(arguments.seeds)]))
        told = {"benchmark": "saliency", "net": kind, "seeds": arguments.seeds, "weights": arguments.weights, "dense": [run["dense"] for run in runs]}
        told["saliencies"] = {name: summary(name, runs) for name in WAYS}
        print(json.dumps(told), flush=True)
        tell(table(told))


def one_seed(call: tuple[str, int, int]) -> dict[str, Any]:
    kind, seed, count = call
    torch.set_num_threads(1)
    train, test = digits(seed)
    torch.manual_seed(seed)
    model = (MLP((1, 8, 8), 10, widths=(300, 100)) if kind == "mlp" else LeNet((1, 8, 8), 10, width=0.5)).double()
    fit(model, train)
    task = Classify({"train": list(zip(train[0].split(240), train[1].split(240), strict=True))}, classes=10)
    bench = Bench(task, macs=lambda _: 1, latency_ms=lambda _: math.nan, score=lambda _: math.nan, seed=seed)
    names = [name for name, p in model.named_parameters() if p.ndim > 1]
    places = {name: torch.randperm(model.get_parameter(name).numel(), generator=torch.Generator().manual_seed(seed))[: count // len(names)] for name in names}
    start = loss(model, train)
    rises = {name: torch.tensor([deleted(model, name, place, train) - start for place in places[name].tolist()]) for name in names}
    found: dict[str, Any] = {"dense": {"loss": start, "accuracy": accuracy(model, test)}}
    for name, (given, steps) in WAYS.items():
        saliency = named(given)
        said = {key: saliency.total(value.reshape(-1, 1))[places[key]] for key, value in saliency.contributions(model, names, bench).items()}
        whole = rank(torch.cat(list(said.values())), torch.cat(list(rises.values())))
        found[name] = {"correlation": whole, "within": statistics.mean(rank(said[key], rises[key]) for key in names)}
        for ratio in RATIOS:
            pruned = copy.deepcopy(model)
            Weights(target=Ratio(ratio=ratio), saliency=given, steps=steps).operate(pruned, bench)
            found[name][f"rise {ratio:g}"], found[name][f"accuracy {ratio:g}"] = loss(pruned, train) - start, accuracy(pruned, test)
        tell(f"{kind}, seed {seed}, {name}: correlation {found[name]['correlation']:.3f}, rise at 80% {found[name]['rise 0.8']:.3f}")
    return found


def digits(seed: int) -> tuple[Data, Data]:
    task = Image(data="digits", validation=0.0, split_seed=seed)
    whole = [list(task.loader(split, batch_size=256, whole=True).batches(0)) for split in ("train", "test")]
    train, test = ((torch.cat([b["input"] for b in batches]).double(), torch.cat([b["label"] for b in batches])) for batches in whole)
    return train, test


def fit(model: nn.Module, data: Data) -> None:
    x, y = data
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 30)
    for _ in range(30):
        for rows in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
        schedule.step()


@torch.no_grad()
def loss(model: nn.Module, data: Data) -> float:
    return F.cross_entropy(model(data[0]), data[1]).item()


@torch.no_grad()
def accuracy(model: nn.Module, data: Data) -> float:
    return (model(data[0]).argmax(1) == data[1]).double().mean().item()


@torch.no_grad()
def deleted(model: nn.Module, name: str, place: int, data: Data) -> float:
    """The loss without one weight."""
    flat = model.get_parameter(name).view(-1)
    kept = flat[place].item()
    flat[place] = 0
    found = loss(model, data)
    flat[place] = kept
    return found


def rank(said: Tensor, true: Tensor) -> float:
    return float(spearmanr(said.double().numpy(), true.numpy()).statistic)


def summary(name: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Each figure's mean over the seeds with its interval, and that of the difference from magnitude."""
    found: dict[str, Any] = {}
    for figure in runs[0][name]:
        mine, other = ([run[one][figure] for run in runs] for one in (name, "magnitude"))
        gaps = [a - b for a, b in zip(mine, other, strict=True)]
        found[figure] = {**interval(mine), "over magnitude": {**interval(gaps), "above": sum(gap > 0 for gap in gaps)}}
    return found


def interval(values: list[float]) -> dict[str, float]:
    told = paired_t(values)
    return {"mean": told.mean, "low": told.low, "high": told.high}


def table(told: dict[str, Any]) -> str:
    """The figures as a table of Markdown."""
    rises = " | ".join(f"rise at {ratio:.0%}" for ratio in RATIOS)
    lines = [f"| {told['net']} | correlation | within layers | {rises} |", "|---" * (3 + len(RATIOS)) + "|"]
    for name, found in told["saliencies"].items():
        cells = [f"{found[figure]['mean']:.2f} [{found[figure]['low']:.2f}, {found[figure]['high']:.2f}]" for figure in ("correlation", "within")]
        cells += [f"{found[f'rise {ratio:g}']['mean']:.3g}" for ratio in RATIOS]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
