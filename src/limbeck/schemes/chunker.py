"""The neural sequence chunker, collapsed into the automatizer.

Schmidhuber, "Learning complex, extended sequences using the principle of history compression", Neural Computation 4(2), 1992.
Shapes: N sequences, T steps that are read, C symbols.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.core import lookup
from limbeck.core.errors import DataError, MismatchError, RecipeError, did_you_mean
from limbeck.core.objective import Objective, Term
from limbeck.core.scheme import Losses, Scheme
from limbeck.core.task import Facts, Task, default_task
from limbeck.core.teacher import Teacher

from ._events import Events, events, surprising, truncated

__all__ = ["Chunker"]


class Chunker(Scheme):
    """A recurrent network learns what it cannot carry over a long time lag from a second one, which sees only what the first one did not expect.

    The student, the automatizer, predicts each next symbol. The chunker, a player of its own, is given the symbols to which the student gave less than
    `threshold`, with the time since the one before, and predicts the next of them: a lag of many steps may be one of its own. Besides, the student predicts
    the state that the chunker is in, which stands still between two such symbols, so that its state has to hold in every step what the chunker's holds:
    `L_student = mean_t [-log p(s_t+1) + weight |A h_t - c_t|^2 / units]`, `L_chunker = mean_j -log q(u_j+1)`, h the student's states, c the chunker's, held,
    u_1, u_2, ... the unexpected symbols, A a linear map that only training needs. In the end nothing is unexpected any more but what cannot be foreseen, and
    the student answers alone. Gradients of neither cross `window` of its own steps.
    Schmidhuber, "Learning complex, extended sequences using the principle of history compression", Neural Computation 4(2), 1992.

    Inputs are one-hot `[N, T, C]` and the label is the symbol that follows them; the student is models.recurrent with C inputs and C classes. The part
    `unexpected` is how many symbols of a sequence the chunker still sees. States begin at zero with each sequence. In a loop of one's own:
    `for phase in scheme.phases: scheme(batch, phase).loss.backward()`, and that player's optimizer steps.

    Args:
        window: steps after which a state is cut off from the gradients that come from later ones; null for whole back-propagation through time.
        threshold: the probability below which a symbol was not expected.
        weight: of the prediction of the chunker's state.
        width: units of the chunker; as many as the student has where it is left out.
        chunk: whether there is a chunker at all; without one the student is trained alone, by the same windows.

    Raises:
        RecipeError: options that cannot be meant, or objectives: the scheme brings its own.
        MismatchError: a finished teacher, a student that is no models.recurrent, or inputs that are no symbols.
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
        window: int | None = 1,
        threshold: float = 0.8,
        weight: float = 1.0,
        width: int | None = None,
        chunk: bool = True,
    ) -> None:
        super().__init__()
        if window is not None and window < 1:
            raise RecipeError(f"window is {window}; it must be 1 step or more, or null for whole gradients")
        if not 0 < threshold <= 1:
            raise RecipeError(f"threshold is {threshold:g}; it is a probability, above 0 and at most 1")
        if not (math.isfinite(weight) and weight > 0):
            raise RecipeError(f"weight is {weight:g}; it must be a finite number above zero: chunk: false trains without a chunker")
        if teacher is not None:
            raise MismatchError("the chunker is the student's teacher, and learns beside it: leave the finished one out, kind: train")
        plain, known = lookup.find("objectives", "supervised"), lookup.find("models", "recurrent")
        terms = [one if isinstance(one, Term) else Term(one) for one in objectives]
        if any(not isinstance(term.objective, plain) or term.weight != 1 for term in terms):
            raise RecipeError("the chunker brings what the student predicts, the symbols and the chunker's state: leave objectives out")
        if not isinstance(student, known):
            raise MismatchError(f"the chunker reads a recurrent student step by step, and {type(student).__name__} is none: model: {{kind: recurrent}}")
        self.student: Any = student
        inputs, units = self.student.layer1.input.in_features, self.student.head.in_features
        self._classes: int = self.student.head.out_features
        if inputs != self._classes:
            raise MismatchError(f"the student reads {inputs} numbers a step and predicts {self._classes} classes: they must be the same symbols, one-hot")
        self.task = default_task() if task is None else task
        self._window, self._threshold, self._weight = window, threshold, weight
        self.phases = ("chunker", "student") if chunk else ("student",)
        if chunk:
            self.chunker: Any = lookup.build("models", "recurrent", {"width": units if width is None else width}, (1, inputs + 1), self._classes)
            self.state = nn.Linear(units, self.chunker.head.in_features)
        if example is not None:
            self._symbols(example)

    def _symbols(self, batch: object) -> Tensor:
        """The symbols of a batch `[N, T + 1]`, the label the last of each."""
        read = self.task.batch(batch)
        x = read["input"]
        if x.dim() != 3 or x.shape[2] != self._classes:
            raise MismatchError(f"the chunker reads one-hot symbols [N, T, {self._classes}], and the input is {list(x.shape)}: task: {{kind: lag}} gives such")
        if not (((x == 0) | (x == 1)).all() and (x.sum(2) == 1).all()):
            raise DataError("the chunker reads symbols, and the input is not one-hot: each step must hold a single 1 among zeros")
        label = read.get("label")
        if label is None or label.shape != x.shape[:1] or label.is_floating_point():
            given = "there is none" if label is None else f"it is {label.dtype} {list(label.shape)}"
            raise MismatchError(f"the label of a sequence is the symbol that follows it, [N], and {given}")
        if ((label < 0) | (label >= self._classes)).any():
            raise DataError(f"label {int(label.max() if label.max() >= self._classes else label.min())} is out of range: there are {self._classes} symbols")
        return torch.cat([x.argmax(2), label.unsqueeze(1)], 1)

    def forward(self, batch: object, phase: str = "student") -> Losses:
        if phase not in self.phases:
            raise RecipeError(f"the scheme has no phase {phase!r}{did_you_mean(phase, self.phases)}")
        symbols = self._symbols(batch)
        return self._students_loss(symbols) if phase == "student" else self._chunkers_loss(symbols)

    def _predict(self, symbols: Tensor) -> tuple[Tensor, Tensor]:
        """The student's states `[N, T, H]`, and its predictions `[N, T, C]` of all but the first of `symbols [N, T + 1]`."""
        inputs = F.one_hot(symbols[:, :-1], self._classes).to(self.student.head.weight.dtype)
        states = truncated(self.student.layer1, inputs, self._window)
        return states, self.student.head(states)

    def _events(self, symbols: Tensor, logits: Tensor) -> Events:
        found = events(symbols, surprising(logits.detach(), symbols, self._threshold), self._classes)
        return found._replace(inputs=found.inputs.to(self.chunker.head.weight.dtype))

    def _students_loss(self, symbols: Tensor) -> Losses:
        states, logits = self._predict(symbols)
        cost = _surprisal(logits, symbols[:, 1:]).mean(1)
        parts = {"next": cost.detach().sum()}
        if "chunker" in self.phases:
            with torch.no_grad():
                told = self._events(symbols, logits)
                held = truncated(self.chunker.layer1, told.inputs, None)
                rows = torch.arange(len(symbols), device=symbols.device).unsqueeze(1)
                held = held[rows, told.place[:, :-1]]  # [N, T, units of the chunker]
            missed = (self.state(states) - held).square().mean((1, 2))
            parts |= {"state": missed.detach().sum(), "unexpected": (told.place[:, -1] + 1).sum()}
            cost = cost + self._weight * missed
        return Losses({"student": cost.sum()}, cost.new_tensor(float(len(cost)), dtype=torch.float32), parts)

    def _chunkers_loss(self, symbols: Tensor) -> Losses:
        with torch.no_grad():
            told = self._events(symbols, self._predict(symbols)[1])
        logits = self.chunker.head(truncated(self.chunker.layer1, told.inputs, self._window))
        each = _surprisal(logits, told.following) * told.followed
        cost = each.sum(1) / told.followed.sum(1).clamp(min=1)  # zero where nothing but the first symbol is unexpected
        return Losses({"chunker": cost.sum()}, cost.new_tensor(float(len(cost)), dtype=torch.float32))

    def players(self) -> dict[str, list[nn.Parameter]]:
        if "chunker" not in self.phases:
            return {"student": [one for one in self.student.parameters() if one.requires_grad]}
        own = [one for module in (self.student, self.state) for one in module.parameters() if one.requires_grad]
        return {"student": own, "chunker": list(self.chunker.parameters())}

    def optimizers(self) -> Mapping[str, Mapping[str, Any]]:
        return {}

    def shipped(self) -> dict[str, nn.Module]:
        return {"student": self.student}

    def after_step(self) -> None:
        """Nothing follows."""


def _surprisal(logits: Tensor, symbols: Tensor) -> Tensor:
    """-log p of `symbols [N, M]` by `logits [N, M, C]`."""
    return F.cross_entropy(logits.transpose(1, 2).float(), symbols, reduction="none")
