"""Schemes without data: a generator makes what the student is taught on.

Shapes: N images of a batch.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from limbeck.core.ask import ask
from limbeck.core.errors import MismatchError, RecipeError, did_you_mean
from limbeck.core.knowledge import Knowledge, Needs, Reads
from limbeck.core.objective import Objective, Term
from limbeck.core.scheme import Losses, Scheme
from limbeck.core.task import Facts, Task, default_task
from limbeck.core.teacher import Teacher, as_teacher

from ._contest import still
from ._generator import Dcgan, Generator, check_image_shape
from ._window import Window, lent
from .offline import Offline

__all__ = ["FILE", "DataFree", "Gap", "blank", "leave_images", "lessons"]

FILE = "synthetic.safetensors"
"""What a data-free scheme leaves beside the student's weights: `input [M, C, H, W]` and the teacher's `logits [M, K]`, float16."""


def blank(task: Task, example: object | None, facts: Facts | None, who: str) -> Tensor:
    """Return two images of zeros `[2, C, H, W]` of the shape that the task's facts or an example say, where the example is."""
    if facts is None and example is None:
        raise RecipeError(f"{who} must know what shape its images have: give it `example=` a batch, or `facts=`")
    seen = None if example is None else task.batch(example)["input"]
    shape = facts.in_shape if facts is not None else () if seen is None else tuple(seen.shape[1:])
    return torch.zeros(2, *check_image_shape(shape, who), device=None if seen is None else seen.device)


def lessons(
    student: nn.Module,
    teacher: "nn.Module | Teacher | None",
    terms: Iterable[Objective | Term],
    task: Task,
    like: Tensor,
    facts: Facts | None,
    who: str,
) -> Offline:
    """Return the student's own lessons on images without a label or an id: objectives that read either are refused by it.

    Raises:
        MismatchError: whatever does not fit; an objective with an opponent.
    """
    made = Offline(student, teacher, terms, task, {"input": like}, facts)
    if len(made.phases) > 1:
        raise MismatchError(f"{who} has a game of its own, and the objective {made.phases[0]} is another: leave it out")
    return made


def leave_images(folder: Path, images: Tensor, logits: Tensor) -> None:
    """Write images `[M, C, H, W]` and what the teacher says of them `[M, K]`."""
    save_file({"input": images.detach().cpu().half().contiguous(), "logits": logits.detach().cpu().half().contiguous()}, folder / FILE)


class Gap(Objective, ABC):
    """How far student and teacher are apart in their answers, as a player of a game sees it: `forward` gives `[N]`."""

    @property
    def needs(self) -> Needs:
        return Needs()

    def bind(self, student: Knowledge, teacher: Knowledge | None, task: Task, facts: Facts | None) -> None:
        """Raises MismatchError where the two answer in different shapes."""
        assert teacher is not None, "whoever makes a game has seen to a teacher"
        if student.main.logits.shape != teacher.main.logits.shape:
            raise MismatchError(f"the student answers with {student.main.classes} numbers and the teacher with {teacher.main.classes}: they must know the same")


class DataFree(Scheme, ABC):
    """A generator makes the images, the teacher says what they are, and the student learns it: no example of the task is looked at.

    Of a batch only its size counts. A step is `generator_steps` steps of the generator and `student_steps` of the student, each on images of its own;
    `shared`: the student is taught on the very images of the generator's step before it. `own` is a gap that the student's loss holds beside `objectives`.
    """

    def __init__(
        self,
        who: str,
        student: nn.Module,
        teacher: "nn.Module | Teacher | None",
        objectives: Iterable[Objective | Term],
        task: Task | None,
        example: object | None,
        facts: Facts | None,
        *,
        generator: Dcgan,
        generator_steps: int,
        student_steps: int,
        sample: int,
        shared: bool = False,
        own: Term | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("generator_steps", generator_steps), ("student_steps", student_steps), ("sample", sample)):
            if value < 1:
                raise RecipeError(f"{name} is {value}; it must be a whole number of at least 1")
        task = default_task() if task is None else task
        asked = None if teacher is None else as_teacher(teacher)
        self.window = Window(asked, task, who)
        like = blank(task, example, facts, who)
        self.window.check(like)
        self.lessons = lessons(student, asked, [*objectives, *([] if own is None else [own])], task, like, facts, who)
        _, channels, height, width = like.shape
        made = Generator(generator, (channels, height, width), {} if facts is None else facts.preprocess)
        self.generator: Generator = made.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.phases = ("generator",) * generator_steps + ("student",) * student_steps
        self._task, self._sample, self._shared = task, sample, shared
        self._made: list[Tensor] = []

    @abstractmethod
    def price(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """What images `[N, C, H, W]` cost the generator, a mean over the batch, and what that is made of, each a mean too."""

    def students_answer(self, images: Tensor) -> Knowledge:
        """What the student says of images, in its present mode: a gradient reaches them and none the student, whose running statistics stay."""
        student = self.lessons.student
        with still(student.parameters()), lent(student):
            return ask(student, {"input": images}, Reads(), self._task, side="student")

    def forward(self, batch: object, phase: str = "student") -> Losses:
        if phase not in self.phases:
            raise RecipeError(f"the scheme has no phase {phase!r}{did_you_mean(phase, set(self.phases))}")
        count = len(self._task.batch(batch)["input"])
        if count < 2:
            raise MismatchError("a generator has batch norm, and the batch has one example: take batch_size 2 or more")
        if phase == "student":
            return self.lessons({"input": self._images(count)})
        images = self.generator(self.generator.noise(count))
        if self._shared:
            self._made.append(images.detach())
        cost, parts = self.price(images)
        told = {f"generator_{name}": value.detach() * count for name, value in parts.items()}
        return Losses({"generator": cost * count}, images.new_tensor(float(count), dtype=torch.float32), told)

    @torch.no_grad()
    def _images(self, count: int) -> Tensor:
        return self._made.pop(0) if self._made else self.generator(self.generator.noise(count))

    def players(self) -> dict[str, list[nn.Parameter]]:
        return {**self.lessons.players(), "generator": list(self.generator.parameters())}

    def optimizers(self) -> Mapping[str, Mapping[str, Any]]:
        return {"generator": {"kind": "adam", "lr": 1e-3}}

    def shipped(self) -> dict[str, nn.Module]:
        return self.lessons.shipped()

    @torch.no_grad()
    def leave(self, folder: Path) -> None:
        """Leave images of the generator as it is at the end, out of the same noise in every run."""
        mode = self.generator.training
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            noise = torch.randn(self._sample, self.generator.latent).to(self.generator.mean.device)
        self.generator.eval()
        images = self.generator(noise)
        self.generator.train(mode)
        leave_images(folder, images, self.window.look(images).main.logits)

    def after_step(self) -> None:
        self._made.clear()
        self.lessons.after_step()
