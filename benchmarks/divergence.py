"""The streamed divergence of two heads beside dense torch and liger-kernel: time, memory and error of one forward and backward.

    OMP_NUM_THREADS=1 python benchmarks/divergence.py [--rows 1024] [--width 768] [--vocabulary 50257] [--rounds 5] [--only forward_kl,jsd,errors]

States `[N, D]` and a head `[V, D]` of student and teacher, float32, with gradients to the student's states and head, the loss a mean over rows:

`streamed` as `response.divergence` computes it when nothing is said; `tight` with `--budget` bytes of buffers (20 MB); `dense` as a user writes it, by
`F.kl_div` of two log-softmaxes (the JSD as two of these), differentiated by autograd; `in_place` by hand, the least that whole logits allow (forward KL);
`liger` liger-kernel's chunked JSD, not compiled, in chunks of 256 rows (it takes all 1,024 at once otherwise), if it can be imported.

`time_over_dense` and so on: each contestant once a round, in an order drawn for each round; (median) / (median of the other), with the 95% bootstrap
interval over paired rounds. Seconds are of the processor (`time.process_time`) with one thread, which a busy machine disturbs least, of the wall otherwise.
`peak_bytes`: the most that torch's allocator held at once beyond what was there before, every allocation counted by torch's profiler in a pass of its own:
the same every time. `beyond_bytes` is the most without the gradients that come back: without one array of the size of each while there is one.
`rss_bytes`, with `--rss`: the same told by the operating system, each contestant in a process of its own.

`errors`: of bfloat16 states and heads, 64 rows, D 256, V 8,192: the relative error of the gradients (Frobenius norm) against float64 on the same numbers,
ours and that of logits rounded to bfloat16 with their softmax in float32, far from the teacher and near it (logits 0.1 apart, a tenth as far as their spread).
"""

import argparse
import importlib
import importlib.util
import json
import random
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from limbeck.core.knowledge import Hidden
from limbeck.measure.statistics import bootstrap_ratio
from limbeck.measure.step import allocations
from limbeck.objectives.response._divergences import named
from limbeck.objectives.response._streaming import planned, streamed
from records import tell

Step = Callable[["Heads"], Tensor]


class Heads:
    """States and heads of both sides; leaves of the student's."""

    def __init__(self, rows: int, width: int, vocabulary: int) -> None:
        draw = torch.Generator().manual_seed(0)
        self.h, self.theirs = torch.randn(2, rows, width, generator=draw).unbind()
        self.w, self.head = torch.randn(2, vocabulary, width, generator=draw).mul_(2 * width**-0.5).unbind()
        self.w, self.head = self.w.clone().requires_grad_(), self.head.clone()
        self.h = self.h.clone().requires_grad_()

    def forget(self) -> None:
        self.h.grad = self.w.grad = None


def ours(divergence: str, budget: int | None = None) -> Step:
    def step(on: Heads) -> Tensor:
        loss = streamed(Hidden(on.h, on.w), Hidden(on.theirs, on.head), divergence=named(divergence), budget=budget).mean()
        loss.backward()
        return loss.detach()

    return step


def dense_forward_kl(on: Heads) -> Tensor:
    with torch.no_grad():
        log_p = F.log_softmax(F.linear(on.theirs, on.head), -1)
    loss = F.kl_div(F.log_softmax(F.linear(on.h, on.w), -1), log_p, reduction="batchmean", log_target=True)
    loss.backward()
    return loss.detach()


@torch.no_grad()
def in_place_forward_kl(on: Heads) -> Tensor:
    z, y = F.linear(on.h, on.w), F.linear(on.theirs, on.head)
    z -= z.logsumexp(-1, keepdim=True)
    y -= y.logsumexp(-1, keepdim=True)
    p = y.exp()
    loss = y.sub_(z).mul_(p).sum() / len(z)
    del y
    z.exp_().sub_(p).div_(len(z))
    on.h.grad, on.w.grad = z @ on.w, z.t() @ on.h
    return loss


def dense_jsd(on: Heads) -> Tensor:
    with torch.no_grad():
        log_p = F.log_softmax(F.linear(on.theirs, on.head), -1)
    log_q = F.log_softmax(F.linear(on.h, on.w), -1)
    log_m = ((log_p.exp() + log_q.exp()) / 2).log()
    loss = (F.kl_div(log_m, log_p, reduction="batchmean", log_target=True) + F.kl_div(log_m, log_q, reduction="batchmean", log_target=True)) / 2
    loss.backward()
    return loss.detach()


def liger_jsd(on: Heads) -> Tensor:
    liger: Any = importlib.import_module("liger_kernel.chunked_loss.jsd_loss")
    loss = liger.LigerFusedLinearJSDLoss(0.0, 1.0, compiled=False, chunk_size=256)(on.h, on.w, on.theirs, on.head, torch.zeros(len(on.h), dtype=torch.int64))
    loss.backward()
    return loss.detach()


def contestants(divergence: str, budget: int) -> dict[str, Step]:
    if divergence == "forward_kl":
        return {"streamed": ours(divergence), "tight": ours(divergence, budget), "dense": dense_forward_kl, "in_place": in_place_forward_kl}
    found: dict[str, Step] = {"streamed": ours(divergence), "tight": ours(divergence, budget), "dense": dense_jsd}
    if importlib.util.find_spec("liger_kernel") is None or importlib.util.find_spec("triton") is None:
        tell("liger-kernel is left out: it needs `pip install liger-kernel==0.8.5` and triton")
        return found
    return {**found, "liger": liger_jsd}


def allocated(step: Step, on: Heads) -> dict[str, Any]:
    """One pass under torch's profiler: the loss, and the most that its allocator held at once."""
    losses: list[Tensor] = []
    changes = allocations(lambda: losses.append(step(on)))
    assert on.h.grad is not None and on.w.grad is not None
    gradients = {on.h.grad.nbytes: 0, on.w.grad.nbytes: 0}  # alive of each size
    live = top = beyond = 0
    for change in changes:
        live += change
        if abs(change) in gradients:
            gradients[abs(change)] += 1 if change > 0 else -1
        top = max(top, live)
        beyond = max(beyond, live - sum(size for size, count in gradients.items() if count > 0))
    on.forget()
    return {"loss": losses[0].item(), "peak_bytes": top, "beyond_bytes": beyond}


def raced(divergence: str, arguments: argparse.Namespace) -> dict[str, Any]:
    on, steps = Heads(arguments.rows, arguments.width, arguments.vocabulary), contestants(divergence, arguments.budget)
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    found: dict[str, Any] = {name: allocated(step, on) for name, step in steps.items()}
    for name, row in found.items():
        tell(f"{divergence} {name}: loss {row['loss']:.6f}, {row['beyond_bytes'] / 1e6:.1f} MB beyond inputs and gradients")
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    order, draw = list(steps), random.Random(0)
    for number in range(arguments.rounds):
        draw.shuffle(order)
        for name in order:
            start = clock()
            steps[name](on)
            seconds[name].append(clock() - start)
            on.forget()
        tell(f"{divergence} round {number + 1}: " + ", ".join(f"{name} {took[-1]:.2f} s" for name, took in seconds.items()))
    for name, row in found.items():
        row |= {"seconds": statistics.median(seconds[name])}
        for other in steps:
            if name in ("streamed", "tight") and other not in ("streamed", "tight"):
                row[f"time_over_{other}"] = asdict(bootstrap_ratio(seconds[name], seconds[other])) if arguments.rounds > 1 else None
                row[f"memory_over_{other}"] = row["beyond_bytes"] / found[other]["beyond_bytes"]
        if arguments.rss:
            row["rss_bytes"] = resident(divergence, name, arguments)
    found["streamed"]["plan"] = str(planned(arguments.rows, arguments.vocabulary))
    found["tight"]["plan"] = str(planned(arguments.rows, arguments.vocabulary, budget=arguments.budget))
    return found


def resident(divergence: str, name: str, arguments: argparse.Namespace) -> int:
    """The most that a process of its own held beyond what it held before the pass."""
    options = [f"--{option}={getattr(arguments, option)}" for option in ("rows", "width", "vocabulary", "budget")]
    done = subprocess.run([sys.executable, __file__, *options, "--peak", f"{divergence}:{name}"], check=True, capture_output=True, text=True)
    return int(done.stdout)


def peak(asked: str, arguments: argparse.Namespace) -> int:
    divergence, _, name = asked.partition(":")
    on, step = Heads(arguments.rows, arguments.width, arguments.vocabulary), contestants(divergence, arguments.budget)[name]
    step(Heads(2, arguments.width, 64))  # libraries make room for themselves
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step(on)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024


def errors() -> dict[str, Any]:
    """Relative errors of gradients by bfloat16 states and heads."""
    found = {}
    for name, gap in (("far", None), ("near", 0.1)):
        draw = torch.Generator().manual_seed(0)
        h, w = torch.randn(64, 256, generator=draw).bfloat16(), torch.randn(8192, 256, generator=draw).mul_(256**-0.5).bfloat16()
        theirs = torch.randn(64, 256, generator=draw) if gap is None else h.float() + gap * torch.randn(64, 256, generator=draw)
        teacher = Hidden(theirs.bfloat16(), w)
        for divergence in ("forward_kl", "reverse_kl", "jsd"):
            exact = gradients(h.double(), w.double(), Hidden(teacher.states.double(), w.double()), divergence)
            rows = {
                "streamed": gradients(h, w, teacher, divergence, dtype=torch.float32),
                "streamed_returned": gradients(h, w, teacher, divergence),
                "dense_bf16": rounded(h, w, teacher, divergence),
            }
            found[f"{divergence} {name}"] = {
                way: [((one.double() - right).norm() / right.norm()).item() for one, right in zip(grads, exact, strict=True)] for way, grads in rows.items()
            }
    return found


def gradients(h: Tensor, w: Tensor, teacher: Hidden, divergence: str, dtype: torch.dtype | None = None) -> list[Tensor]:
    """The gradients of states and head by the streamed loss, as their own type or, of leaves in `dtype` with the same numbers, as that."""
    h, w = (one.to(dtype or one.dtype).detach().requires_grad_() for one in (h, w))
    streamed(Hidden(h, w), teacher, divergence=named(divergence)).sum().backward()
    return [one.grad for one in (h, w) if one.grad is not None]


def rounded(h: Tensor, w: Tensor, teacher: Hidden, divergence: str) -> list[Tensor]:
    """The same where logits come out of their product in bfloat16, and softmax and loss are float32."""
    h, w = (one.detach().requires_grad_() for one in (h, w))
    log_p, log_q = teacher.logits.float().log_softmax(-1), (h @ w.t()).float().log_softmax(-1)
    p, q = log_p.exp(), log_q.exp()
    log_m = ((p + q) / 2).log()
    terms = {"forward_kl": p * (log_p - log_q), "reverse_kl": q * (log_q - log_p), "jsd": (p * (log_p - log_m) + q * (log_q - log_m)) / 2}
    terms[divergence].sum().backward()
    return [one.grad for one in (h, w) if one.grad is not None]


def table(found: dict[str, Any]) -> str:
    lines = [f"{'':24}{'seconds':>9}{'beyond MB':>11}  over others: time (interval), memory"]
    for divergence, rows in found.items():
        for name, row in rows.items():
            ratios = ", ".join(
                f"{key.removeprefix('time_over_')} {value['ratio']:.2f} ({value['low']:.2f}-{value['high']:.2f}), "
                f"{row['memory_over_' + key.removeprefix('time_over_')]:.3f}"
                for key, value in row.items() if key.startswith("time_over_") and value
            )  # fmt: skip
            lines.append(f"{divergence + ' ' + name:24}{row['seconds']:9.2f}{row['beyond_bytes'] / 1e6:11.1f}  {ratios}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for option, default in (("rows", 1024), ("width", 768), ("vocabulary", 50257), ("rounds", 5), ("budget", 20_000_000)):
        parser.add_argument(f"--{option}", type=int, default=default)
    parser.add_argument("--only", default="forward_kl,jsd,errors", help="what is measured, with commas between")
    parser.add_argument("--rss", action="store_true", help="resident memory too")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        print(peak(arguments.peak, arguments))
        return
    asked = arguments.only.split(",")
    if unknown := set(asked) - {"forward_kl", "jsd", "errors"}:
        parser.error(f"nothing is measured by the name {', '.join(sorted(unknown))}: forward_kl, jsd, errors")
    setting = {option: getattr(arguments, option) for option in ("rows", "width", "vocabulary", "rounds", "budget")}
    found = {divergence: raced(divergence, arguments) for divergence in asked if divergence != "errors"}
    tell(table(found))
    told = {"benchmark": "divergence", "torch": torch.__version__, "threads": torch.get_num_threads(), **setting, **found}
    print(json.dumps(told | ({"errors": errors()} if "errors" in asked else {})))


if __name__ == "__main__":
    main()
