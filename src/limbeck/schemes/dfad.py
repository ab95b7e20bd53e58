"""Data-free adversarial distillation: a generator looks for where student and teacher differ in their logits, and the student closes the gap.

Fang et al., "Data-Free Adversarial Distillation", 2019, arXiv:1912.11006.
"""

from collections.abc import Iterable

from torch import Tensor, nn

from limbeck.core.knowledge import Knowledge
from limbeck.core.objective import Objective, Term
from limbeck.core.schedule import check_number
from limbeck.core.task import Batch, Facts, Task
from limbeck.core.teacher import Teacher

from ._generator import USUAL, Dcgan
from ._synthetic import DataFree, Gap

__all__ = ["DFAD", "l1_gap"]


def l1_gap(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Return the mean over K of |z_k - v_k|, z the student's and v the teacher's logits `[N, K]`, of each example `[N]` (eq. 2)."""
    return (student_logits - teacher_logits).abs().mean(-1)


class _L1(Gap):
    """The student's side of the game."""

    def forward(self, student: Knowledge, teacher: Knowledge | None, batch: Batch) -> Tensor:
        assert teacher is not None
        return l1_gap(student.main.logits, teacher.main.logits)


class DFAD(DataFree):
    """Data-free adversarial distillation: the generator maximises the gap between student and teacher, the student minimises it, by turns.

    `D = mean_k |S(x)_k - T(x)_k|`, x = G(z), z normal; `L_G = -D`, or `-log(1 + D)` where `adaptive`; `L_S = game D` and the recipe's objectives, on images of
    its own in each of `student_steps` steps.
    Fang et al., "Data-Free Adversarial Distillation", 2019, arXiv:1912.11006, eq. 2 to 4 and algorithm 1.

    Of a batch only its size counts: give it the task `unseen`. Images that were made stay beside the student's weights, for the report and for
    `transfer.synthesised`.

    Args:
        game: weight of the gap in the student's own loss, beside its objectives.
        adaptive: the generator maximises log(1 + D), whose gradient falls as the gap grows.
        generator: latent, width (channels) and end (norm or pixels) of the generator.
        generator_steps: steps of the generator in each step.
        student_steps: steps of the student in each.
        sample: how many images are left in the artifact.

    Raises:
        MismatchError: no frozen teacher, other classes than the student's, examples that are no images, or an objective that reads labels or ids.
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
        game: float = 1.0,
        adaptive: bool = False,
        generator: Dcgan = USUAL,
        generator_steps: int = 1,
        student_steps: int = 5,
        sample: int = 256,
    ) -> None:
        check_number("game", game, positive=False)
        super().__init__(
            "dfad", student, teacher, objectives, task, example, facts,
            generator=generator, generator_steps=generator_steps, student_steps=student_steps, sample=sample, own=Term(_L1(), game),
        )  # fmt: skip
        self._adaptive = adaptive

    def price(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        gap = l1_gap(self.students_answer(images).main.logits, self.window.look(images).main.logits).mean()
        return (-gap.log1p() if self._adaptive else -gap), {"gap": gap}
