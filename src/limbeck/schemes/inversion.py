"""DeepInversion: images are optimised from noise until the frozen teacher's batch norms see what they saw in training, and the student is taught on them.

Yin et al., "Dreaming to Distill: Data-free Knowledge Transfer via DeepInversion", CVPR 2020, arXiv:1912.08795.
Shapes: N images of the batch in work, M in the bank, K classes.
"""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional as F

from limbeck.core.ask import ask
from limbeck.core.errors import MismatchError, RecipeError, did_you_mean
from limbeck.core.knowledge import Reads
from limbeck.core.objective import Objective, Term
from limbeck.core.schedule import check_number
from limbeck.core.scheme import Losses, Scheme
from limbeck.core.task import Facts, Task, default_task
from limbeck.core.teacher import Teacher, as_teacher

from ._checks import evaluating
from ._contest import still
from ._statistics import running_norms, whole_gap
from ._synthetic import blank, leave_images, lessons
from ._window import Window

__all__ = ["Inversion", "agreement", "roughness"]


def roughness(x: Tensor) -> Tensor:
    """Return the mean squared difference of neighbouring pixels of `x [N, C, H, W]`, to the right and below."""
    return (x[..., 1:] - x[..., :-1]).square().mean() + (x[..., 1:, :] - x[..., :-1, :]).square().mean()


def agreement(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Return 1 - JS(p, q) of each example `[N]`, p and q the softmax of both logits `[N, K]`, in nats (eq. 8 and 9): high where there is nothing to learn."""
    p, q = student_logits.float().log_softmax(-1), teacher_logits.float().log_softmax(-1)
    middle = torch.logaddexp(p, q) - math.log(2)
    return 1 - 0.5 * ((p.exp() * (p - middle)).sum(-1) + (q.exp() * (q - middle)).sum(-1))


class Inversion(Scheme):
    """DeepInversion: images are optimised from noise to what the teacher calls a class and its batch norms saw in training; the student is taught on them.

    `L_x = class_weight CE(T(x), y) + bn sum_l (||m_l(x) - mean_l||_2 + ||v_l(x) - var_l||_2) + tv roughness(x) + l2 mean x^2 + compete (1 - JS(S(x), T(x)))`:
    m_l and v_l are the batch's statistics of what enters batch norm l, mean_l and var_l its running ones, y a class drawn at random, `compete` above zero
    the paper's adaptive competition.
    Yin et al., "Dreaming to Distill: Data-free Knowledge Transfer via DeepInversion", CVPR 2020, arXiv:1912.08795, eq. 1 to 9.

    One step makes a batch of images, from noise through `rounds` steps of an Adam of its own whose learning rate falls along half a cosine, puts it into a bank
    of the newest `bank` images, and takes `student_steps` steps of the student on batches drawn from the bank: where the paper makes all images first, here
    the student learns while the bank fills, which `compete` needs anyway. Image terms are means, so that weights are not the paper's. Of the task's batches
    only the size counts: give it the task `unseen`. One process makes images of its own: it runs on one device.

    Args:
        class_weight: weight of the cross-entropy with the class that an image is to be.
        bn: weight of the batch-norm statistics.
        relative: measure each channel's statistics in units of its own deviation, so that layers of small activations count as much as others.
        tv: weight of the roughness of images.
        l2: weight of the size of their values.
        compete: weight of adaptive competition; 0 leaves the student out of it.
        jitter: pixels by which images are rolled, at random, before the teacher sees them in each round.
        shift: pixels by which a batch of the bank is rolled, at random, before the student is taught on it.
        rounds: steps of each batch of images.
        lr: learning rate of the images, in units of what the teacher sees, at its height.
        student_steps: steps of the student after each batch of images.
        bank: how many images are kept to teach on, the newest.
        sample: how many of them are left in the artifact.

    Raises:
        MismatchError: no frozen teacher, one without batch norm, examples that are no images, or an objective that reads labels or ids.
        RecipeError: a weight that is negative or not finite, a count below one.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: "nn.Module | Teacher | None",
        objectives: Iterable[Objective | Term],
        task: Task | None = None,
        example: object | None = None,
        facts: Facts | None = None,
        *,
        class_weight: float = 1.0,
        bn: float = 1.0,
        relative: bool = False,
        tv: float = 0.001,
        l2: float = 0.0,
        compete: float = 0.0,
        jitter: int = 2,
        shift: int = 0,
        rounds: int = 200,
        lr: float = 0.1,
        student_steps: int = 50,
        bank: int = 8192,
        sample: int = 256,
    ) -> None:
        super().__init__()
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            raise MismatchError(f"inversion optimises one batch of images, and there are {dist.get_world_size()} processes: train on one device")
        self._weights = {"class": class_weight, "bn": bn, "tv": tv, "l2": l2, "compete": compete}
        for name, weight in self._weights.items():
            check_number("class_weight" if name == "class" else name, weight, positive=False)
        for name, value, least in (
            ("rounds", rounds, 1), ("student_steps", student_steps, 1), ("bank", bank, 1), ("sample", sample, 1), ("jitter", jitter, 0), ("shift", shift, 0),
        ):  # fmt: skip
            if value < least:
                raise RecipeError(f"{name} is {value}; it must be a whole number of at least {least}")
        check_number("lr", lr, positive=True)
        task = default_task() if task is None else task
        asked = None if teacher is None else as_teacher(teacher)
        self.window = Window(asked, task, "inversion")
        like = blank(task, example, facts, "inversion")
        shape = like.shape[1:]
        self.window.check(like)
        self.lessons = lessons(student, asked, objectives, task, like, facts, "inversion")
        self._norms, self._relative = running_norms(self.window.model, "inversion"), relative
        if example is not None and len(task.batch(example)["input"]) > bank:
            raise RecipeError(f"a bank of {bank} images cannot hold a batch of {len(task.batch(example)['input'])}: give it room for one batch or more")
        self._task, self._jitter, self._shift, self._sample, self._rounds, self._lr = task, jitter, shift, sample, rounds, lr
        self._classes = self.window.look(like).main.classes
        self.bank: Tensor
        self.made: Tensor
        self.low: Tensor
        self.high: Tensor
        self.register_buffer("bank", torch.zeros(bank, *shape))
        self.register_buffer("made", torch.zeros((), dtype=torch.int64))
        preprocess: Mapping[str, Any] = {} if facts is None else facts.preprocess
        ends = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1)
        known = "mean" in preprocess
        column = {name: torch.tensor(preprocess[name] if known else [0.0]).view(-1, 1, 1) for name in ("mean", "std")}
        low, high = ((ends - column["mean"]) / column["std"]) if known else (torch.tensor(-math.inf), torch.tensor(math.inf))
        self.register_buffer("low", low, persistent=False)
        self.register_buffer("high", high, persistent=False)
        self.phases = ("student",) * student_steps
        self._due = True

    def forward(self, batch: object, phase: str = "student") -> Losses:
        if phase != "student":
            raise RecipeError(f"the scheme has no phase {phase!r}{did_you_mean(phase, ['student'])}")
        count = len(self._task.batch(batch)["input"])
        if count < 2:
            raise MismatchError("the statistics of images are those of a batch, and the batch has one: take batch_size 2 or more")
        parts = self._make(count) if self._due else {}
        self._due = False
        held = min(int(self.made), len(self.bank))
        losses = self.lessons({"input": _rolled(self.bank[torch.randint(held, (count,))], self._shift)})
        return Losses(losses.sums, losses.count, losses.parts | {f"images_{name}": value * losses.count for name, value in parts.items()})

    def _make(self, count: int) -> dict[str, Tensor]:
        """Make a batch of images and put it into the bank; return what the last round's cost was made of."""
        x = torch.randn(count, *self.bank.shape[1:], device=self.bank.device).requires_grad_()
        targets = torch.randint(self._classes, (count,), device=x.device)
        adam = torch.optim.Adam([x], lr=self._lr, betas=(0.5, 0.9))
        parts: dict[str, Tensor] = {}
        with torch.enable_grad(), torch.autocast(x.device.type, enabled=False):
            for number in range(self._rounds):
                adam.param_groups[0]["lr"] = self._lr * (1 + math.cos(math.pi * number / self._rounds)) / 2
                cost, parts = self.price(_rolled(x, self._jitter), targets)
                (x.grad,) = torch.autograd.grad(cost, x)
                adam.step()
                with torch.no_grad():
                    x.clamp_(self.low, self.high)
        with torch.no_grad():
            places = (self.made + torch.arange(count, device=x.device)) % len(self.bank)
            self.bank[places] = x
            self.made += count
        return {name: value.detach() for name, value in parts.items()}

    def price(self, x: Tensor, targets: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """What images `[N, C, H, W]` that are to be of the classes `targets [N]` cost, and what that is made of, each a mean over the batch."""
        said = self.window.look(x, frozenset(self._norms))
        logits = said.main.logits.float()
        parts = {
            "class": F.cross_entropy(logits, targets),
            "bn": whole_gap(said.features, self._norms, relative=self._relative),
            "tv": roughness(x),
            "l2": x.square().mean(),
        }
        if self._weights["compete"]:
            student = self.lessons.student
            with evaluating(student), still(student.parameters()):
                parts["compete"] = agreement(ask(student, {"input": x}, Reads(), self._task, side="student").main.logits, logits).mean()
        first, *rest = (self._weights[name] * part for name, part in parts.items())
        return sum(rest, start=first), parts

    def players(self) -> dict[str, list[nn.Parameter]]:
        return self.lessons.players()

    def optimizers(self) -> Mapping[str, Mapping[str, Any]]:
        return {}

    def shipped(self) -> dict[str, nn.Module]:
        return self.lessons.shipped()

    @torch.no_grad()
    def leave(self, folder: Path) -> None:
        """Leave the first images of the bank."""
        images = self.bank[: min(self._sample, int(self.made), len(self.bank))]
        leave_images(folder, images, self.window.look(images).main.logits)

    def after_step(self) -> None:
        """Let the next step make images again."""
        self._due = True
        self.lessons.after_step()


def _rolled(x: Tensor, by: int) -> Tensor:
    """Roll a batch of images by up to `by` pixels in each direction."""
    if not by:
        return x
    down, right = torch.randint(-by, by + 1, (2,)).tolist()
    return x.roll((down, right), (-2, -1))
