"""Assistants between a student and a teacher that is too large for it: the chain of TAKD, and densely guided distillation.

Mirzadeh et al., "Improved Knowledge Distillation via Teacher Assistant", AAAI 2020, arXiv:1902.03393; Son et al., "Densely Guided Knowledge Distillation using
Multiple Teacher Assistants", ICCV 2021, arXiv:2009.08825.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from limbeck.core.errors import RecipeError
from limbeck.core.lookup import full_name
from limbeck.core.scheme import Course

from ._sizes import Size, below, chosen, parameters_of, size_of

__all__ = ["All", "Assistants"]


class All(BaseModel):
    """Every larger model teaches each smaller one; each stays away from a step with probability `drop`."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: Literal["all"] = "all"
    drop: float = Field(default=0.0, ge=0, lt=1)


class Assistants(Course):
    """Models of sizes between the teacher's and the student's, each taught by what is larger, for a student too small to learn from the teacher itself.

    Sizes are those of one option of the student's model, a number or a list of numbers, evenly spaced in its logarithm between teacher and student or in that
    of the parameters, and such as the model can be built with. `guides: last` is a chain, teacher -> assistant 1 -> ... -> student (Mirzadeh et al. 2020,
    arXiv:1902.03393). With `guides: all` every larger model teaches each smaller one, by the scheme `dense`, where at each step some may stay away at random
    (Son et al. 2021, arXiv:2009.08825).

    A stage `student` of `kind: distill` comes to the stages student-1, student-2, ..., student, from large to small: it in every option, but for the size, the
    teacher and the epochs.

    Args:
        option: the model's option that is its size, such as width, depth or widths.
        count: how many assistants.
        sizes: the assistants' sizes, from large to small, in place of `count`.
        by: what is evenly spaced, the option itself (size) or the number of parameters.
        guides: who teaches, the next larger model (last) or all larger ones, or a mapping with all as the kind and `drop`, the probability of staying away.
        epochs: of each assistant; the student's own where it is left out.
        in_shape: one example's shape without the batch, for which models are built to learn their parameters and which sizes they take.
        classes: of those examples.

    Raises:
        RecipeError: a stage without a teacher of known size, an assistant larger than its teacher or not larger than the student, or no room for so many.
    """

    def __init__(
        self,
        *,
        option: str = "width",
        count: int = 1,
        sizes: list[int] | list[list[int]] | None = None,
        by: Literal["size", "parameters"] = "size",
        guides: Literal["last", "all"] | All = "last",
        epochs: int | None = None,
        in_shape: tuple[int, ...] = (3, 32, 32),
        classes: int = 10,
    ) -> None:
        if count < 1 or sizes == []:
            raise RecipeError("there are to be no assistants: take a count of 1 or more, or leave the scheme out")
        if epochs is not None and epochs < 1:
            raise RecipeError(f"assistants are to be trained for {epochs} epochs: give 1 or more")
        self.option, self.count, self.sizes, self.by, self.epochs = option, count, sizes, by, epochs
        self.guides = All() if guides == "all" else guides
        self.in_shape, self.classes = in_shape, classes

    def expand(self, name: str, stage: Mapping[str, Any], earlier: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
        if stage["kind"] != "distill":
            raise RecipeError(f"assistants stand between a teacher and a student, and stage {name!r} has no teacher: kind: distill")
        if stage["model"] is None:
            raise RecipeError(f"assistants are sized after the student's model, and stage {name!r} goes on with {stage['init']!r}: give it a `model`")
        teacher, of = stage["teacher"], stage["teacher"]["of"]
        if not isinstance(of, str):
            raise RecipeError(f"assistants stand between one teacher and a student, and stage {name!r} has {len(of or ())} teachers: of: one stage")
        if isinstance(self.guides, All) and (full_name("teachers", teacher["kind"]) != "frozen" or teacher.keys() > {"kind", "of"}):
            raise RecipeError(f"with guides: all the teacher and its assistants are asked as they are: take {{kind: frozen, of: {of}}} without options")
        sizes = self._sizes(stage["model"], _model_of(of, earlier))
        larger, made = [of], dict[str, dict[str, Any]]()
        for index, size in enumerate([*sizes, None], 1):
            own = name if size is None else f"{name}-{index}"
            told = {**stage, "teacher": {**teacher, "of": larger[-1]}}
            if size is not None:
                told |= {"model": {**stage["model"], self.option: size}, "epochs": self.epochs or stage["epochs"]}
            if isinstance(self.guides, All) and len(larger) > 1:
                told |= {"teacher": {"kind": "ensemble", "of": [*larger]}, "scheme": {"kind": "dense", "drop": self.guides.drop}}
            made[own] = told
            larger.append(own)
        return made

    def _sizes(self, student: Mapping[str, Any], teacher: Mapping[str, Any] | None) -> Sequence[Size]:
        """The assistants' sizes, from large to small, none larger than the teacher and each larger than what is next."""
        small = size_of(student, self.option, "student")
        alike = teacher is not None and full_name("models", teacher["kind"]) == full_name("models", student["kind"])
        large = size_of(teacher, self.option, "teacher") if teacher is not None and alike else None
        if large is not None and not below(small, large):
            raise RecipeError(
                f"the student's {self.option} is {small} and the teacher's {large}: assistants stand between a smaller and a larger one, alike in form"
            )
        if self.sizes is None:
            if large is None:
                what = "is no model that is trained here" if teacher is None else f"is a {teacher['kind']} and the student a {student['kind']}"
                raise RecipeError(f"assistants are sized between two models of one kind, and the teacher {what}: give their sizes, sizes: [...]")
            return chosen(student, self.option, large, self.count, by=self.by, in_shape=self.in_shape, classes=self.classes)
        for before, size in zip([large, *self.sizes[:-1]], self.sizes, strict=True):
            if before is not None and not below(size, before):
                raise RecipeError(f"an assistant of {self.option} {size} is not smaller than its teacher, of {before}: list sizes from large to small")
            if not below(small, size):
                raise RecipeError(f"an assistant of {self.option} {size} is not larger than the student, of {small}")
        if teacher is not None and not alike:
            first, most = (parameters_of(one, self.in_shape, self.classes) for one in ({**student, self.option: self.sizes[0]}, teacher))
            if first > most:
                raise RecipeError(
                    f"an assistant of {self.option} {self.sizes[0]} has {first:,} parameters, more than its teacher's {most:,}: take a smaller one"
                )
        return self.sizes


def _model_of(name: str, earlier: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The model of an earlier stage, also where it goes on with another's; None of one that says none."""
    seen: set[str] = set()
    while name in earlier and name not in seen:
        seen.add(name)
        stage = earlier[name]
        if stage.get("model") is not None:
            return stage["model"]
        name = stage.get("init") or ""
    return None
