"""Data-free learning: a generator makes what the teacher is sure of, evenly over the classes, and the student is taught on it.

Chen et al., "Data-Free Learning of Student Networks", ICCV 2019, arXiv:1904.01186.
Shapes: N images, K classes.
"""

from collections.abc import Iterable

from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.core.objective import Objective, Term
from limbeck.core.schedule import check_number
from limbeck.core.task import Facts, Task
from limbeck.core.teacher import Teacher

from ._generator import USUAL, Dcgan
from ._statistics import running_norms, whole_gap
from ._synthetic import DataFree, blank
from ._window import last_linear
from .dfad import l1_gap

__all__ = ["DAFL", "activation_loss", "information_entropy_loss", "one_hot_loss"]


def one_hot_loss(logits: Tensor) -> Tensor:
    """Return the mean cross-entropy of answers `[N, K]` with the class that each says itself (eq. 3): low where the teacher is sure."""
    return F.cross_entropy(logits, logits.argmax(-1))


def activation_loss(features: Tensor) -> Tensor:
    """Return minus the mean of the features' absolute values (eq. 4): low where they are strong."""
    return -features.abs().mean()


def information_entropy_loss(logits: Tensor) -> Tensor:
    """Return sum_k p_k log p_k, p the mean over the batch of the answers' probabilities (eq. 5): least, -log K, where classes come alike.

    >>> import math, torch
    >>> bool((information_entropy_loss(torch.eye(4) * 100) + math.log(4)).abs() < 1e-6)
    True
    """
    mean = logits.softmax(-1).mean(0)
    return mean.xlogy(mean).sum()


class DAFL(DataFree):
    """Data-free learning: a generator makes what the teacher is sure of, feels strongly, and finds in all classes alike; the student is taught on it.

    `L_G = one_hot CE(T(x), argmax T(x)) - activation mean|f_T(x)| - entropy H(mean_n softmax T(x_n))`, x = G(z), z normal; f_T what enters the teacher's last
    linear layer. The student minimises its objectives on the same x; nothing of it comes back to the generator.
    Chen et al., "Data-Free Learning of Student Networks", ICCV 2019, arXiv:1904.01186, eq. 3 to 6.

    Of a batch only its size counts: give it the task `unseen`. Images that were made stay beside the student's weights, for the report and for
    `transfer.synthesised`.

    Args:
        one_hot: weight of the one-hot loss.
        activation: weight of the activation loss.
        entropy: weight of the information entropy loss.
        bn: weight of how far the batch's statistics are from the running ones of the teacher's batch norms, each in units of its own deviation (Yin et al.
            2020, arXiv:1912.08795, eq. 4); the paper has no such term.
        game: weight of mean |S(x) - T(x)| over logits, which the generator then maximises (Fang et al. 2019, arXiv:1912.11006); the paper has no such term.
        layer: where in the teacher the activation is read; `path:in` is what enters a layer. What enters its last linear layer where it is left out.
        generator: latent, width (channels) and end (norm or pixels) of the generator.
        generator_steps: steps of the generator in each step.
        student_steps: steps of the student in each; the first are taught on the generator's own images of this step.
        sample: how many images are left in the artifact.

    Raises:
        MismatchError: no frozen teacher, examples that are no images, or an objective that reads labels or ids.
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
        one_hot: float = 1.0,
        activation: float = 0.1,
        entropy: float = 5.0,
        bn: float = 0.0,
        game: float = 0.0,
        layer: str | None = None,
        generator: Dcgan = USUAL,
        generator_steps: int = 1,
        student_steps: int = 1,
        sample: int = 256,
    ) -> None:
        for name, weight in (("one_hot", one_hot), ("activation", activation), ("entropy", entropy), ("bn", bn), ("game", game)):
            check_number(name, weight, positive=False)
        super().__init__(
            "dafl", student, teacher, objectives, task, example, facts,
            generator=generator, generator_steps=generator_steps, student_steps=student_steps, sample=sample, shared=True,
        )  # fmt: skip
        self._weights = {"one_hot": one_hot, "activation": activation, "entropy": entropy, "bn": bn, "game": game}
        self._norms = running_norms(self.window.model, "dafl with bn") if bn else {}
        self._layer = f"{last_linear(self.window.model, 'dafl')}:in" if layer is None else layer
        self.window.check(blank(self.lessons.task, example, facts, "dafl"), frozenset({self._layer}))

    def price(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        said = self.window.look(images, frozenset({self._layer, *self._norms}))
        logits = said.main.logits.float()
        parts = {"one_hot": one_hot_loss(logits), "activation": activation_loss(said.feature(self._layer)), "entropy": information_entropy_loss(logits)}
        if self._norms:
            parts["bn"] = whole_gap(said.features, self._norms, relative=True)
        if self._weights["game"]:
            parts["game"] = -l1_gap(self.students_answer(images).main.logits, logits).mean()
        first, *rest = (self._weights[name] * part for name, part in parts.items())
        return sum(rest, start=first), parts
