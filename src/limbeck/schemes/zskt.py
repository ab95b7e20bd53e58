"""Zero-shot knowledge transfer: a generator looks for where student and teacher differ in their probabilities, and the student closes the gap.

Micaelli and Storkey, "Zero-shot Knowledge Transfer via Adversarial Belief Matching", NeurIPS 2019, arXiv:1905.09768.
"""

from collections.abc import Iterable

from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.core.knowledge import Knowledge
from limbeck.core.objective import Objective, Term
from limbeck.core.schedule import check_number
from limbeck.core.task import Batch, Facts, Task
from limbeck.core.teacher import Teacher

from ._generator import USUAL, Dcgan
from ._synthetic import DataFree, Gap

__all__ = ["ZSKT", "belief_gap"]


def belief_gap(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Return KL(t || s) in nats of each example `[N]`, t and s the softmax of the teacher's and the student's logits `[N, K]` (eq. 1)."""
    return F.kl_div(student_logits.float().log_softmax(-1), teacher_logits.float().log_softmax(-1), reduction="none", log_target=True).sum(-1)


class _Belief(Gap):
    """The student's side of the game."""

    def forward(self, student: Knowledge, teacher: Knowledge | None, batch: Batch) -> Tensor:
        assert teacher is not None
        return belief_gap(student.main.logits, teacher.main.logits)


class ZSKT(DataFree):
    """Zero-shot knowledge transfer: the generator maximises KL(teacher || student), the student minimises it, by turns.

    `D = KL(softmax T(x) || softmax S(x))`, x = G(z), z normal; `L_G = -D`; `L_S = game D` and the recipe's objectives: the paper's attention term is
    `{kind: attention.at, weight: 250}` among these. Each step of either has images of its own, where the paper's algorithm keeps one z for all steps of a turn.
    Micaelli and Storkey, "Zero-shot Knowledge Transfer via Adversarial Belief Matching", NeurIPS 2019, arXiv:1905.09768, eq. 1 and 2, algorithm 1.

    Of a batch only its size counts: give it the task `unseen`. Images that were made stay beside the student's weights, for the report and for
    `transfer.synthesised`.

    Args:
        game: weight of the divergence in the student's own loss, beside its objectives.
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
        generator: Dcgan = USUAL,
        generator_steps: int = 1,
        student_steps: int = 10,
        sample: int = 256,
    ) -> None:
        check_number("game", game, positive=False)
        super().__init__(
            "zskt", student, teacher, objectives, task, example, facts,
            generator=generator, generator_steps=generator_steps, student_steps=student_steps, sample=sample, own=Term(_Belief(), game),
        )  # fmt: skip

    def price(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        gap = belief_gap(self.students_answer(images).main.logits, self.window.look(images).main.logits).mean()
        return -gap, {"gap": gap}
