"""Optimal Brain Surgeon on the MONK's problems and on XOR, with Optimal Brain Damage and magnitude beside it.

    python benchmarks/monks.py [--seeds 3] [--starts 3] [--xor 20] [--jobs 1]

The problems are made from their definitions (Thrun et al., "The MONK's Problems: A Performance Comparison of Different Learning Algorithms", CMU-CS-91-197,
1991): 432 examples of six attributes, an input for each value, 17 in all. `seed` draws 124, 169 or 122 of them for training; in problem 3 six of
these (5%) have the wrong label. All 432 are the test set, and choose nothing. The nets are those of Hassibi and Stork (NIPS 1992, table 1): 17-3-1, 17-2-1 and
17-2-1, that is 58, 39 and 39 weights, biases counted as weights and pruned as such; sigmoid hidden units, one logit, cross-entropy, L-BFGS with weight decay.

The loop is the paper's: delete the weight that costs least, let the saliency make up for it (OBS alone does), and train again what is left, zeros held at
zero. Where the training accuracy then falls the deletion is undone. `left` is what remains when any other deletion, from the cheapest on, has been tried as
well and fails (`own`: when the first fails; `untrained`: the same without training again). Accuracy falls when it is below the dense net's by more than two
standard errors, sqrt(p (1 - p) / n): on problems 1 and 2, whose dense nets fit, by one example. For each seed the smallest net of its starts is `chosen`.

XOR is a 2-2-1 net of 9 weights, tanh hidden units, from every start that solves it (each answer within 0.2 of the truth); the least number of weights that
solve it is found by training every net with 4, 5, 6 or 7 of the 9 weights.
"""

import argparse
import copy
import itertools
import json
import math
import os
import statistics
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.compress import Bench, Compensating, Saliency
from limbeck.compress.prune._target import Keep
from limbeck.compress.prune.saliency._named import named
from limbeck.compress.prune.weights import Weights
from limbeck.tasks.multilabel import MultiLabel
from records import tell

VALUES = (3, 3, 2, 3, 4, 2)
PROBLEMS = {
    1: {"train": 124, "hidden": 3, "decay": (1e-3, 1e-4), "bar": {"left": 14, "test": 1.0}},
    2: {"train": 169, "hidden": 2, "decay": (1e-3, 1e-4), "bar": {"left": 15, "test": 1.0}},
    3: {"train": 122, "hidden": 2, "decay": (3e-3, 3e-3), "bar": {"left": 4, "test": 0.972}},
}
METHODS: dict[str, Any] = {"obs": {"kind": "obs", "order": "alone", "damping": 1e-4}, "obd": "obd", "magnitude": "magnitude"}
Data = tuple[Tensor, Tensor]
Holds = Callable[[nn.Module], bool]
"""Whether a net still does on the training data what it must."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="draws of the training data")
    parser.add_argument("--starts", type=int, default=3, help="nets of each draw")
    parser.add_argument("--xor", type=int, default=20, help="starts of the XOR net")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one thread each")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    calls = list(itertools.product(PROBLEMS, METHODS, range(arguments.seeds), range(arguments.starts)))
    with ProcessPoolExecutor(arguments.jobs) as pool:
        runs = list(pool.map(one_run, calls))
        xor = list(pool.map(xor_run, itertools.product(METHODS, range(arguments.xor))))
    problems = [
        row(problem, method, [run for run in runs if (run["problem"], run["method"]) == (problem, method)]) for problem in PROBLEMS for method in METHODS
    ]
    minimal = least_for_xor()
    told = [
        {"method": method, "starts": len(mine), "minimal": sum(run["left"] == minimal for run in mine),
         **{way: dict(sorted(Counter(run[way] for run in mine).items())) for way in ("left", "own", "untrained")}}
        for method in METHODS if (mine := [run for run in xor if run and run["method"] == method])
    ]  # fmt: skip
    print(json.dumps({"benchmark": "monks", "problems": problems, "xor": {"least": minimal, "methods": told}}), flush=True)
    tell(table(problems))


def monk(problem: int, seed: int) -> tuple[Data, Data]:
    """Return the training and the test set of a problem: inputs `[N, 17]`, labels `[N, 1]`."""
    a = torch.tensor(list(itertools.product(*(range(1, count + 1) for count in VALUES))))
    truth = {
        1: (a[:, 0] == a[:, 1]) | (a[:, 4] == 1),
        2: (a == 1).sum(1) == 2,
        3: ((a[:, 4] == 3) & (a[:, 3] == 1)) | ((a[:, 4] != 4) & (a[:, 1] != 3)),
    }[problem]
    x = torch.cat([F.one_hot(a[:, place] - 1, count) for place, count in enumerate(VALUES)], 1).double()
    y = truth.double().unsqueeze(1)
    rows = torch.randperm(len(a), generator=torch.Generator().manual_seed(seed))[: PROBLEMS[problem]["train"]]
    labels = y[rows].clone()
    if problem == 3:
        labels[:6] = 1 - labels[:6]
    return (x[rows], labels), (x, y)


def net(inputs: int, hidden: int, activation: nn.Module, start: int) -> nn.Module:
    torch.manual_seed(start)
    return nn.Sequential(nn.Linear(inputs, hidden), activation, nn.Linear(hidden, 1)).double()


def fit(model: nn.Module, data: Data, decay: float, steps: int, rest: float = 1e-9) -> None:
    """Train until the loss moves by less than `rest`: the mean cross-entropy and half the squared weights times `decay`, by L-BFGS."""
    x, y = data
    how = {"max_iter": steps, "history_size": 20, "line_search_fn": "strong_wolfe", "tolerance_grad": 1e-6, "tolerance_change": rest}
    optimizer = torch.optim.LBFGS(model.parameters(), **how)

    def loss() -> Tensor:
        optimizer.zero_grad()
        found = F.binary_cross_entropy_with_logits(model(x), y) + decay / 2 * torch.stack([p.square().sum() for p in model.parameters()]).sum()
        found.backward()
        return found

    optimizer.step(loss)


@torch.no_grad()
def accuracy(model: nn.Module, data: Data) -> float:
    return ((model(data[0]) > 0) == (data[1] > 0.5)).double().mean().item()


@torch.no_grad()
def solved(model: nn.Module, data: Data) -> bool:
    return bool(((model(data[0]).sigmoid() - data[1]).abs() < 0.2).all())


def left(model: nn.Module) -> int:
    return sum(int(p.count_nonzero()) for p in model.parameters())


def bench_of(data: Data) -> Bench:
    return Bench(MultiLabel({"train": [data]}), macs=lambda _: 1, latency_ms=lambda _: math.nan, score=lambda _: math.nan)


def deletions(model: nn.Module, saliency: Saliency, bench: Bench) -> Iterator[nn.Module]:
    """Give the net without one weight, made up for, the cheapest first."""
    names = [name for name, _ in model.named_parameters()]
    found = saliency.contributions(model, names, bench)
    cost = torch.cat([saliency.total(found[name].reshape(-1, 1)) for name in names])
    live = torch.cat([p.detach().flatten() for p in model.parameters()]) != 0
    for index in cost.masked_fill(~live, math.inf).argsort()[: int(live.sum())].tolist():
        made = copy.deepcopy(model)
        flags = (torch.arange(len(live)) == index).split([p.numel() for p in made.parameters()])
        masks = {name: flag.reshape(p.shape) for (name, p), flag in zip(made.named_parameters(), flags, strict=True)}
        if isinstance(saliency, Compensating):
            saliency.compensate(made, masks, bench)
        with torch.no_grad():
            for name, p in made.named_parameters():
                p.masked_fill_(masks[name], 0)
        Weights.hold(made, {"parameters": names})
        yield made


def shrink(model: nn.Module, saliency: Saliency, data: Data, decay: float, holds: Holds, tries: int | None) -> nn.Module:
    """Delete weights one by one, training again after each, until none of the `tries` cheapest (of all, without) can go."""
    bench, smaller = bench_of(data), True
    while smaller:
        smaller = False
        for made in itertools.islice(deletions(model, saliency, bench), tries):
            fit(made, data, decay, 200)
            if holds(made):
                model, smaller = made, True
                break
    return model


def untrained(model: nn.Module, saliency: Any, data: Data, holds: Holds) -> int:
    """How many weights are left when deletion after deletion without training between them comes to one that does not hold."""
    model, bench = copy.deepcopy(model), bench_of(data)
    while left(model) > 1:
        Weights(target=Keep(keep=left(model) - 1), saliency=saliency, biases=True).operate(model, bench)
        if not holds(model):
            return left(model) + 1
    return left(model)


def one_run(call: tuple[int, str, int, int]) -> dict[str, Any]:
    problem, method, seed, start = call
    torch.set_num_threads(1)
    train, test = monk(problem, seed)
    told = PROBLEMS[problem]
    dense = net(17, told["hidden"], nn.Sigmoid(), start)
    fit(dense, train, told["decay"][0], 1000, rest=1e-12)
    share = accuracy(dense, train)
    floor = share - 2 * math.sqrt(share * (1 - share) / len(train[0]))
    holds = lambda model: accuracy(model, train) >= floor  # noqa: E731
    small = shrink(dense, named(METHODS[method]), train, told["decay"][1], holds, None)
    found = {
        "problem": problem, "method": method, "seed": seed, "start": start, "dense": {"train": share, "test": accuracy(dense, test)},
        "left": left(small), "train": accuracy(small, train), "test": accuracy(small, test),
        "own": left(shrink(dense, named(METHODS[method]), train, told["decay"][1], holds, 1)), "untrained": untrained(dense, METHODS[method], train, holds),
    }  # fmt: skip
    tell(f"problem {problem}, {method}, seed {seed}, start {start}: {found['left']} weights, test {100 * found['test']:.1f}")
    return found


def row(problem: int, method: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """What a method came to on a problem."""
    seeds = sorted({run["seed"] for run in runs})
    chosen = [min((run for run in runs if run["seed"] == seed), key=lambda run: (run["left"], -run["train"], run["start"])) for seed in seeds]
    bar = PROBLEMS[problem]["bar"]
    met = sum(run["left"] <= bar["left"] and round(run["test"], 3) >= bar["test"] for run in chosen)
    medians = {way: statistics.median(run[way] for run in runs) for way in ("left", "own", "untrained")}
    return {"problem": problem, "method": method, "bar": bar, "seeds": len(seeds), "met": met, "medians": medians, "chosen": chosen, "runs": runs}


def xor_run(call: tuple[str, int]) -> dict[str, Any] | None:
    """What is left of one XOR net; None where the start does not solve it."""
    method, start = call
    torch.set_num_threads(1)
    x = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]], dtype=torch.float64)
    data = (x, x.sum(1, keepdim=True) % 2)
    dense = net(2, 2, nn.Tanh(), start)
    fit(dense, data, 1e-4, 1000, rest=1e-12)
    if not solved(dense, data):
        return None
    holds = partial(solved, data=data)
    reached = {way: left(shrink(dense, named(METHODS[method]), data, 1e-5, holds, tries)) for way, tries in (("left", None), ("own", 1))}
    return {"method": method, "start": start, **reached, "untrained": untrained(dense, METHODS[method], data, holds)}


def least_for_xor(starts: int = 48) -> int:
    """Return the least number of weights of a 2-2-1 tanh net that solve XOR: every choice of them is trained, from many starts at once, by Adam."""
    x = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]], dtype=torch.float32)
    y = x.sum(1) % 2
    for count in range(4, 10):
        masks = torch.tensor([[float(place in chosen) for place in range(9)] for chosen in itertools.combinations(range(9), count)]).repeat_interleave(
            starts, 0
        )
        weights = (3 * torch.randn(masks.shape, generator=torch.Generator().manual_seed(0))).requires_grad_()
        optimizer = torch.optim.Adam([weights], lr=0.1)
        logits = torch.zeros(())
        for _ in range(1200):
            w = weights * masks
            hidden = torch.tanh(torch.einsum("bhi,ni->bnh", w[:, :4].view(-1, 2, 2), x) + w[:, None, 4:6])
            logits = (hidden * w[:, None, 6:8]).sum(2) + w[:, 8:]
            optimizer.zero_grad()
            (F.binary_cross_entropy_with_logits(logits, y.expand_as(logits), reduction="none").mean(1).sum() + 1e-5 * w.square().sum()).backward()
            optimizer.step()
        if bool(((logits.sigmoid() - y).abs() < 0.2).all(1).any()):
            return count
    raise AssertionError("a 2-2-1 net solves XOR")


def table(problems: list[dict[str, Any]]) -> str:
    """The figures as a table of Markdown."""
    lines = [
        "| problem | method | weights left, by seed | test accuracy | median of all runs | own choice | without training |",
        "|---|---|---|---|---|---|---|",
    ]
    for told in problems:
        sizes = ", ".join(str(run["left"]) for run in told["chosen"])
        tests = ", ".join(f"{100 * run['test']:.1f}" for run in told["chosen"])
        medians = " | ".join(f"{told['medians'][way]:g}" for way in ("left", "own", "untrained"))
        lines.append(f"| {told['problem']} | {told['method']} | {sizes} | {tests} | {medians} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
