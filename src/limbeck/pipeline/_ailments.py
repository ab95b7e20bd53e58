"""What silently ruins a distillation, each found in what was recorded of one batch; a finding is a line with the way out.

Shapes: N examples, C classes.
"""

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from limbeck.core.knowledge import Dense, Knowledge
from limbeck.core.objective import Objective
from limbeck.core.task import Batch

__all__ = ["Finding", "Level", "constant", "disordered", "form", "in_training", "shares", "skill", "steady", "temperature", "unheld"]

Level = Literal["fault", "warning", "fine"]
WEAK, STRONG = 0.01, 100.0
"""Shares of the supervised gradient below which an objective teaches nothing, and above which nothing else does."""
_SHOWN = 3


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: `fault` for what ruins the training, `warning` for what may be meant, `fine`."""

    level: Level
    about: str
    text: str

    def __str__(self) -> str:
        return f"{self.level}: {self.text}"


@torch.no_grad()
def form(side: str, said: Dense, *, mixed: bool = False) -> Iterator[Finding]:
    """Logits that are probabilities already, their logarithms (as those of a mixture are by nature, `mixed`), or no numbers; `said.logits [..., C]`."""
    logits = said.logits.float()
    if not torch.isfinite(logits).all():
        yield Finding("fault", "logits", f"the {side}'s logits are not all finite: its weights or its inputs are broken, or its precision is too low")
    elif said.link == "softmax" and logits.min() >= 0 and logits.max() <= 1 and torch.allclose(logits.sum(-1), torch.ones(()).to(logits), atol=1e-3):
        yield Finding("fault", "logits", f"the {side}'s logits are probabilities, each row sums to one: take the softmax off the end of its forward pass")
    elif said.link == "softmax" and not mixed and logits.max() <= 0 and logits.logsumexp(-1).abs().max() < 1e-3:
        yield Finding(
            "warning", "logits",
            f"the {side}'s logits are log-probabilities: a softmax of them is the same, but not what matches logits themselves; take the log_softmax off",
        )  # fmt: skip
    else:
        yield Finding("fine", "logits", f"the {side}'s logits look like logits, from {logits.min():.3g} to {logits.max():.3g}")


def in_training(seen: Sequence[tuple[str, nn.Module]]) -> Iterator[Finding]:
    """Layers of a teacher that were in training mode when it was asked; `seen` are those, by path."""
    if not seen:
        yield Finding("fine", "teacher's mode", "every layer of the teacher answers in eval mode")
        return
    telling = [one for one in seen if isinstance(one[1], (nn.modules.dropout._DropoutNd, nn.modules.batchnorm._BatchNorm))] or list(seen)
    told = ", ".join(f"{path or 'the whole'} ({type(module).__name__})" for path, module in telling[:_SHOWN])
    more = f" and {len(seen) - len(telling[:_SHOWN])} more" if len(seen) > len(telling[:_SHOWN]) else ""
    yield Finding("fault", "teacher's mode", f"the teacher answers in train mode: {told}{more}; call teacher.eval(), and let no train() of its own undo it")


@torch.no_grad()
def steady(first: Tensor, again: Tensor, half: Tensor | None) -> Iterator[Finding]:
    """A teacher that answers otherwise when it is asked twice, or in other company; `half` are the first rows, asked alone."""
    scale = first.abs().max().clamp(min=1e-6)
    if (first - again).abs().max() > 1e-4 * scale:
        yield Finding(
            "fault", "teacher's mode", "the teacher answers differently when it is asked twice: something random is on, such as F.dropout(training=True)"
        )
    elif half is not None and (first[: len(half)] - half).abs().max() > 1e-2 * scale:
        yield Finding(
            "warning", "teacher's mode", "the teacher's answer depends on which examples share a batch: a norm of its own takes the batch's statistics"
        )


def skill(teacher: Tensor, student: Tensor, labels: Tensor | None, metric: str, higher: bool) -> Iterator[Finding]:
    """A teacher that is worse than its student, or knows nothing; each one's scores `[N]` on the same examples, `labels [N]` for an accuracy."""
    count, theirs, ours = len(teacher), teacher.mean().item(), student.mean().item()
    told = f"{metric} of the teacher {theirs:.4g}, of the student {ours:.4g} before training ({count} examples)"
    if metric == "accuracy" and labels is not None:
        chance = labels.bincount().max().item() / count
        if theirs <= chance + 2 * math.sqrt(chance * (1 - chance) / count):
            text = (
                f"{told}: the teacher is no better than naming the commonest class ({chance:.4g}); load its weights, and give it the inputs it was trained on"
            )
            yield Finding("fault", "teacher's skill", text)
            return
    lead = (ours - theirs) * (1 if higher else -1)
    noise = 2 * math.sqrt((teacher.var(correction=0).item() + student.var(correction=0).item()) / count)
    if lead > 0:
        level: Level = "fault" if lead > noise else "warning"
        yield Finding(level, "teacher's skill", f"{told}: the student is better; exchange the two, or give the teacher the inputs it was trained on")
    else:
        yield Finding("fine", "teacher's skill", told)


def disordered(predictions: Tensor, labels: Tensor, classes: int, names: Sequence[str]) -> Iterator[Finding]:
    """Classes that the teacher has in another order: a permutation found on half the examples makes it right on the other half; `[N]` each."""
    from scipy.optimize import linear_sum_assignment

    if len(labels) < 2:
        return
    half, rest = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0)).chunk(2)
    counts = torch.zeros(classes, classes, dtype=torch.long)
    counts.index_put_((labels[half], predictions[half]), torch.ones(len(half), dtype=torch.long), accumulate=True)
    order = torch.as_tensor(linear_sum_assignment(counts.numpy(), maximize=True)[1])
    said, true = predictions[rest], labels[rest]
    now, then = (said == true).double().mean().item(), (said == order[true]).double().mean().item()
    if then - now > max(0.05, 3 * math.sqrt((now * (1 - now) + then * (1 - then)) / len(true))):
        moved = [one for one in range(classes) if order[one] != one and counts[one, order[one]] > 0]
        told = ", ".join(f"{names[one]} as {names[int(order[one])]}" for one in moved[:_SHOWN])
        yield Finding(
            "fault", "class order",
            f"the teacher has the classes in another order: it answers {told}{', ...' if len(moved) > _SHOWN else ''}; with them exchanged its accuracy is "
            f"{then:.4g} instead of {now:.4g}: reorder its last layer's rows, or the labels",
        )  # fmt: skip
    else:
        yield Finding("fine", "class order", "teacher and labels agree on the order of the classes")


@torch.no_grad()
def constant(side: str, features: Mapping[str, Tensor]) -> Iterator[Finding]:
    """Features `[N, ...]` that are the same for every example, or no numbers."""
    for path, value in features.items():
        spread = (value.float() - value[:1].float()).abs().max()
        if not torch.isfinite(value).all():
            yield Finding("fault", "features", f"the {side}'s {path!r} gives values that are not finite")
        elif len(value) > 1 and spread <= 1e-6 * value.float().abs().max():
            text = f"the {side}'s {path!r} gives the same for every example of the batch: it is dead, or not what sees the input; name another layer"
            yield Finding("fault" if side == "teacher" else "warning", "features", text)
        else:
            yield Finding("fine", "features", f"the {side}'s {path!r} differs between examples")


def shares(norms: Mapping[str, tuple[float, float]], supervised: str | None) -> Iterator[Finding]:
    """Objectives whose weighted gradient is nothing, or drowned, beside the supervised one; name -> its weight and the norm of the gradient unweighted."""
    whole = norms[supervised][0] * norms[supervised][1] if supervised is not None else 0.0
    for name, (weight, norm) in norms.items():
        if norm == 0:
            text = f"{name} gives the student no gradient: what it reads is cut off from the student (detach, no_grad, frozen layers), or matched already"
            yield Finding("fault", "gradient", text)
        elif weight == 0:
            yield Finding("warning", "gradient", f"{name} has a weight of zero through all of training: leave it out")
        elif name == supervised or whole == 0:
            yield Finding("fine", "gradient", f"{name} gives the student a gradient of norm {weight * norm:.3g} at weight {weight:g}")
        else:
            share = weight * norm / whole
            told, sound = f"the gradient of {name} is {share:.3g} of the supervised one", WEAK <= share <= STRONG
            way = f"{told}: a weight of {weight / share:.3g} makes them equal, and balance: gradient_norm keeps it at a share"
            yield Finding("fine", "gradient", told) if sound else Finding("warning", "gradient", way)


def temperature(name: str, objective: Objective, student: Knowledge, teacher: Knowledge | None, batch: Batch) -> Iterator[Finding]:
    """An objective whose gradient falls as its temperature rises: T^2 is missing. Small logits, for which the closed form of KD has one gradient at every T."""
    option = next((one for one in ("temperature", "tau", "T") if one in vars(objective)), None)
    if option is None or type(objective).__module__.startswith("limbeck."):
        return  # ours are held to their papers by their tests
    found: list[float] = []
    for value in (4.0, 8.0):
        probe = copy.deepcopy(objective)
        setattr(probe, option, value)
        draw = torch.Generator().manual_seed(0)
        leaf, *others = (
            {label: Dense(0.05 * torch.randn((one := side.whole(label)).logits.shape, generator=draw).to(one.logits), one.link) for label in side.outputs}
            for side in (student, teacher or student)
        )
        logits = leaf["main"].logits.requires_grad_()
        with torch.enable_grad():
            ours = Knowledge(leaf, student.features, student.mask, student.modules, student.input_gradient)
            theirs = None if teacher is None else Knowledge(others[0], teacher.features, teacher.mask, teacher.modules, teacher.input_gradient)
            loss = probe(ours, theirs, batch).sum()
            gradient = torch.autograd.grad(loss, logits, allow_unused=True)[0] if loss.requires_grad else None
        found.append(0.0 if gradient is None else gradient.norm().item())
    if found[0] > 0:
        ratio = found[1] / found[0]
        text = f"the gradient of {name} keeps {ratio:.0%} of its size when its {option} doubles"
        missing = f"{text}: multiply the loss by T^2 (Hinton et al. 2015, sec. 2), as response.kd does, or its weight means something else at every temperature"
        yield Finding("warning", "temperature", missing) if ratio < 0.7 else Finding("fine", "temperature", text)


def unheld(parameters: Mapping[str, nn.Parameter], losses: Mapping[str, Tensor], held: set[int], x: Tensor | None) -> Iterator[Finding]:
    """Parameters that learn and that no optimizer holds: those of the scheme, by name, and those that a loss depends on and no module knows.

    `held`: ids; `x`: the batch's input, which may have a gradient of its own.
    """
    way = "make the optimizer of the scheme's parameters(), projectors included, after it is bound (example=)"
    lost = [name for name, value in parameters.items() if value.requires_grad and id(value) not in held]
    known = held | {id(value) for value in parameters.values()}
    for name, loss in losses.items():
        strangers = [list(leaf.shape) for leaf in _leaves(loss) if id(leaf) not in known and (x is None or leaf.shape != x.shape)]
        if strangers:
            text = f"{name} learns a parameter {strangers[0]} that no module holds, so that no optimizer can: keep it as an nn.Parameter of the objective"
            yield Finding("fault", "parameters", f"{text}, and layers in an nn.ModuleList")
    if lost:
        yield Finding("fault", "parameters", f"no optimizer holds {lost[0]}{f' and {len(lost) - 1} more' if len(lost) > 1 else ''}: {way}")
    else:
        yield Finding("fine", "parameters", "every parameter that the scheme knows has an optimizer")


def _leaves(loss: Tensor) -> list[Tensor]:
    """What a loss was computed from that has a gradient of its own."""
    found: list[Tensor] = []
    waiting, seen = [loss.grad_fn], set[Any]()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        waiting.extend(before for before, _ in node.next_functions)
        if isinstance(leaf := getattr(node, "variable", None), Tensor):
            found.append(leaf)
    return found
