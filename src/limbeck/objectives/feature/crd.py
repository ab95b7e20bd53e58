"""Contrastive representation distillation: tell which teacher's embedding belongs to a student's, among many from memory, and the other way round.

Tian, Krishnan and Isola, "Contrastive Representation Distillation", ICLR 2020, arXiv:1910.10699, eq. 10 and 19, sec. 3.2.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional as F

from limbeck.core.errors import MismatchError, RecipeError, TrainingError
from limbeck.core.gather import gathered
from limbeck.core.knowledge import Knowledge, Needs, Reads
from limbeck.core.schedule import check_number
from limbeck.core.task import Batch, Facts
from limbeck.objectives._layered import Layered, Layers
from limbeck.objectives._options import check_choice
from limbeck.objectives._precision import at_least_float32, place

from ._bank import DTYPES, Bank, Precision, bank_bytes, check_room, uniform_kernel
from ._journal import Journal

__all__ = ["CRD", "crd_loss"]

_FORGOTTEN = 1024
"""Forward passes of training with no step after them: nobody calls `after_step`."""


def crd_loss(
    anchor: Tensor, positive: Tensor, negatives: Tensor, *, excluded: Tensor | None = None, temperature: float = 0.07, noise: float | None = None
) -> Tensor:
    """Return -log h(positive) - sum_k log(1 - h(negative_k)) of each anchor, h = e / (e + noise), e = exp(anchor.other / T).

    Tian et al. 2020, eq. 10 and 19: the authors' noise is K Z / M, their Z / M being the mean of e where nothing is known, over unit vectors spread evenly;
    None takes that. Unit embeddings: `anchor`, `positive [N, E]`, `negatives [K, E]`; `excluded [N, K]`: which are no negatives of an anchor: the sum over
    the others is scaled up to K of them, and is zero where there is none. Gives `[N]`, in nats.

    Raises:
        MismatchError: embeddings of unequal widths.
        RecipeError: a temperature or a noise of zero or less.

    >>> here, there = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    >>> crd_loss(here, here, there, temperature=1.0, noise=1.0)  # log(1 + 1 / e) + log 2
    tensor([1.0064])
    """
    check_number("temperature", temperature, positive=True)
    if anchor.shape != positive.shape or anchor.shape[1:] != negatives.shape[1:]:
        raise MismatchError(
            f"anchors are {list(anchor.shape)}, positives {list(positive.shape)} and negatives {list(negatives.shape)}: one width, a positive for each anchor"
        )
    count = len(negatives)
    if noise is None:
        noise = max(count, 1) * uniform_kernel(anchor.shape[1], temperature)
    check_number("noise", noise, positive=True)
    anchor, positive, negatives = at_least_float32(anchor), at_least_float32(positive), at_least_float32(negatives)
    with torch.autocast(anchor.device.type, enabled=False):
        alike, unlike = (anchor * positive).sum(1) / temperature, (anchor / temperature) @ negatives.T
    against = F.softplus(unlike - math.log(noise))  # [N, K]
    if excluded is None:
        pushed = against.sum(1)
    else:
        others = (count - excluded.sum(1)).clamp(min=1).to(against.dtype)
        pushed = torch.where(excluded, 0.0, against).sum(1) * (count / others)
    return F.softplus(math.log(noise) - alike) + pushed


class CRD(Layered):
    """Contrast embeddings of student and teacher: -log h(s_i, t_i) - sum_k log(1 - h(s_i, t_k)) and the same from the teacher's side, one number per example.

    Tian et al. 2020, arXiv:1910.10699, eq. 10 and 19: s and t are linear maps of the two features, learnt along, of unit length; h(s, t) = e / (e + K Z / M),
    e = exp(s.t / T). The K negatives of a step are drawn from a bank of earlier embeddings (row <- momentum row + (1 - momentum) new, normalised), which is
    keyed by example id and changed after each step, by all processes alike. Masked examples are not remembered.

    Where it differs from the authors' code: the positive is the other side's present embedding of the same input, as the paper has it (theirs comes from the
    bank, an epoch old); all examples of a step share one draw of K, of which an anchor's own and, with `others: classes`, those of its class do not count, the
    rest scaled up to K (theirs draw K for each anchor, and K times N embeddings are gathered); rows hold nothing until their example was seen (theirs start at
    random). Z is what theirs estimates from the first batch against random rows, in expectation: M E[exp(u.v / T)] in closed form, 2.21 M at 128 and 0.07.

    The bank is no parameter and never shipped. In memory it is part of the checkpoint. On disk only its count of changes is, and a journal rolls the files back
    on resume, to one of the last three checkpoints; with it they take up to four times the bank. A loop of one's own calls `after_step()` of the scheme after
    each optimizer's step.

    Args:
        layers: one student's layer -> one teacher's layer, such as {pool: pool}, of any shapes; auto takes the vector that the classifier reads.
        embedding: the width E of the embeddings.
        temperature: T, above zero.
        negatives: K, capped by the rows of the bank.
        momentum: how much of a row stays when its example is seen again, from 0 to below 1.
        others: negatives are examples of other classes, as in the paper's main results, or all other examples, which needs no labels.
        normalizer: estimated (Z as above), or paper, eq. 19 as printed: Z = 1, with which a random pair is taken for a true one and the loss begins K-fold.
        dtype: precision of the bank, float32 or float16.
        bank: how many examples have a row, those that training meets first; all of them where it is not given.
        disk: a folder that holds the bank in place of memory, one for each run; for a single process.

    Raises:
        RecipeError: options that cannot be meant.
        MismatchError: no teacher; no labels for `others: classes`; it is not known how many examples there are, or memory does not hold them; a disk with
            several processes.
        StorageError: a disk without room for the bank.

    Example:
        {kind: feature.crd, layers: {pool: pool}, weight: 0.8}
    """

    wish = "vector"
    perfect = "no"
    usual = 0.8

    def __init__(
        self,
        *,
        layers: Layers = "auto",
        embedding: int = 128,
        temperature: float = 0.07,
        negatives: int = 16384,
        momentum: float = 0.5,
        others: Literal["classes", "examples"] = "classes",
        normalizer: Literal["estimated", "paper"] = "estimated",
        dtype: Precision = "float32",
        bank: int | None = None,
        disk: str | None = None,
    ) -> None:
        super().__init__(layers)
        check_number("temperature", temperature, positive=True)
        if isinstance(layers, dict) and len(layers) != 1:
            raise RecipeError(f"CRD has one bank, for one pair of layers, and layers names {len(layers)}: name one, or give two objectives")
        for name, value, least in (("embedding", embedding, 1), ("negatives", negatives, 1), ("bank", bank, 2)):
            if value is not None and value < least:
                raise RecipeError(f"{name} is {value}; it must be {least} or more")
        if not 0 <= momentum < 1:
            raise RecipeError(f"momentum is {momentum:g}; it must be 0 or more and below 1")
        check_choice(self, "others", others, ("classes", "examples"))
        check_choice(self, "normalizer", normalizer, ("estimated", "paper"))
        check_choice(self, "dtype", dtype, DTYPES)
        self.embedding, self.temperature, self.negatives, self.momentum = embedding, temperature, negatives, momentum
        self.others, self.normalizer, self.rows, self.disk = others, normalizer, bank, disk
        self.dtype: Precision = dtype
        self.embed_student, self.embed_teacher = nn.Identity(), nn.Identity()
        self.noise = math.nan
        self._bank: Bank | None = None
        self._pending: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        self.register_state_dict_post_hook(_save_bank)
        self.register_load_state_dict_pre_hook(_load_bank)

    def reading(self, student: Reads, teacher: Reads) -> Needs:
        return Needs(student, teacher, ids=True, labels=self.others == "classes")

    def bound(self, student: Knowledge, teacher: Knowledge, facts: Facts | None) -> None:
        if facts is None and self.rows is None:
            raise MismatchError("CRD remembers every example and was not told how many there are: give the scheme facts=task.facts(), or CRD(bank=...)")
        if facts is not None and not facts.labelled and self.others == "classes":
            raise MismatchError("CRD draws its negatives from other classes and the data carry no labels: take others: examples")
        if self._bank is None:
            sizes = [size for size in (self.rows, None if facts is None else facts.examples) if size is not None]
            self._remember(min(sizes), next(self.embed_student.parameters()).device)

    def fit(self, features: Sequence[tuple[Tensor, Tensor]]) -> None:
        made: list[nn.Linear] = []
        for feature in features[0]:
            if feature.ndim < 2:
                raise MismatchError(f"CRD wants features [N, ...] and was given {list(feature.shape)}: name another layer")
            made.append(nn.Linear(feature[0].numel(), self.embedding, **place(feature)))
        self.embed_student, self.embed_teacher = made

    def _remember(self, rows: int, device: torch.device) -> None:
        """Make the bank, and say what it takes."""
        draws = min(self.negatives, rows)
        self.noise = draws * (uniform_kernel(self.embedding, self.temperature) if self.normalizer == "estimated" else 1 / rows)
        journal = None
        if self.disk is not None:
            if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
                raise MismatchError(
                    f"CRD's bank on disk is for one process, and there are {dist.get_world_size()}: leave disk out, take bank: or dtype: float16"
                )
            journal = Journal(Path(self.disk), rows, self.embedding, DTYPES[self.dtype])
            device = torch.device("cpu")
        else:
            check_room(rows, self.embedding, self.dtype, device)
        self._bank = Bank(rows, self.embedding, self.dtype, device, draws=draws, momentum=self.momentum, journal=journal)
        size = bank_bytes(rows, self.embedding, self.dtype) / 1e9
        kept = f"on {device}, part of each checkpoint" if journal is None else f"in {self.disk}, up to three times as much again for its journal"
        self.said = (*self.said, f"CRD remembers 2 x {rows} embeddings of {self.embedding} {self.dtype}: {size:.3g} GB {kept}")

    def forward(self, student: Knowledge, teacher: Knowledge | None, batch: Batch) -> Tensor:
        bank = self._remembered()
        ((ours, theirs),) = self.matched(student, teacher)
        s, t = _embedded(self.embed_student, ours), _embedded(self.embed_teacher, theirs)
        ids = batch["id"]
        labels = batch["label"] if self.others == "classes" else ids
        old_s, old_t, owners, classes = bank.read(s)
        excluded = ids[:, None] == owners
        if self.others == "classes":
            excluded = excluded | (labels[:, None] == classes)
        if self.training and torch.is_grad_enabled():
            counted = ids if student.mask is None else torch.where(student.mask, ids, -1)
            self._pending.append((counted, labels, s.detach(), t.detach()))
        how: dict[str, Any] = {"excluded": excluded, "temperature": self.temperature, "noise": self.noise}
        return crd_loss(s, t, old_t, **how) + crd_loss(t, s, old_s, **how)

    def after_step(self) -> None:
        """Put the embeddings of the step's examples, of all processes, into the bank, in order of id."""
        if self._pending:
            with torch.no_grad():
                ids, labels, s, t = (gathered(torch.cat(parts)) for parts in zip(*self._pending, strict=True))
            self._pending.clear()
            self._remembered().take(ids, labels, s, t)

    def _remembered(self) -> Bank:
        if self._bank is None:
            raise MismatchError("feature.crd was not bound to a task: let a scheme bind it, or call bind first")
        if len(self._pending) >= _FORGOTTEN:
            raise TrainingError(f"CRD saw {_FORGOTTEN} batches and no step: call the scheme's after_step() after each optimizer.step()")
        return self._bank


def _embedded(embed: nn.Module, feature: Tensor) -> Tensor:
    """Unit embeddings `[N, E]` of features, in float32 at least."""
    flat = feature.flatten(1)
    return F.normalize(at_least_float32(embed(flat.to(next(embed.parameters()).dtype))), dim=1)


def _save_bank(module: nn.Module, state: dict[str, Any], prefix: str, _metadata: Any) -> None:
    assert isinstance(module, CRD)
    if module._bank is not None:
        state.update({f"{prefix}bank.{name}": value for name, value in module._bank.state().items()})


def _load_bank(module: nn.Module, state: dict[str, Any], prefix: str, *_how: Any) -> None:
    assert isinstance(module, CRD)
    start = f"{prefix}bank."
    found = {name.removeprefix(start): state.pop(name) for name in [name for name in state if name.startswith(start)]}
    if module._bank is not None and found:
        module._bank.restore(found)
        module._pending.clear()
