"""What a scheme refuses before the first step, in one line each."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn

from limbeck.core.errors import MismatchError
from limbeck.core.gather import gathered
from limbeck.core.objective import Objective, Term
from limbeck.core.task import Batch, Task
from limbeck.core.teacher import Teacher

__all__ = ["check_apart", "check_company", "check_fields", "check_runs", "compares", "evaluating", "named"]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode while the block lasts, and every layer back into its own."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def named(terms: Iterable[Term]) -> dict[str, Term]:
    """Return each objective by its name in logs; the second of a kind is `kd#2`."""
    found: dict[str, Term] = {}
    for term in terms:
        count = sum(name.partition("#")[0] == term.name for name in found)
        found[term.name if not count else f"{term.name}#{count + 1}"] = term
    return found


def check_apart(teacher: "nn.Module | Teacher | None", student: nn.Module) -> None:
    """Refuse a bare module as the teacher that shares a parameter with its student: it would learn too, in silence."""
    if teacher is None or isinstance(teacher, Teacher):
        return
    learns = {id(parameter) for parameter in student.parameters() if parameter.requires_grad}
    shared = [name for name, parameter in teacher.named_parameters() if id(parameter) in learns]
    if shared:
        raise MismatchError(f"teacher and student share the parameter {shared[0]!r}, so that the teacher would learn too: give it copy.deepcopy of the model")


def check_fields(terms: Mapping[str, Term], batch: Batch) -> None:
    """Refuse a batch without what an objective reads of it."""
    for name, term in terms.items():
        needs = term.objective.needs
        if needs.labels and "label" not in batch:
            raise MismatchError(f"the objective {name} needs labels and the batch has none (fields {', '.join(batch)}): leave it out, or give (x, y)")
        if needs.ids and "id" not in batch:
            raise MismatchError(
                f"the objective {name} needs to know which example is which and the batch has no field 'id' (fields {', '.join(batch)}): "
                'give mappings {"input": x, "label": y, "id": an int64 for each example}'
            )
        if missing := needs.fields - set(batch):
            raise MismatchError(f"the objective {name} reads the field {sorted(missing)[0]!r} and the batch has {', '.join(batch)}")


def compares(objective: Objective) -> bool:
    """Whether an objective compares the examples of a batch; one that reads nothing of them, but weights alone, does not."""
    reads = objective.needs.student
    return objective.batchwise and bool(reads.outputs or reads.features or reads.input_gradient)


def check_company(terms: Mapping[str, Term], count: Tensor) -> None:
    """Refuse a batch of a single prediction where an objective compares them."""
    for name, term in terms.items():
        if compares(term.objective) and (gathered(count.view(1)).sum() if term.gather else count) == 1:
            raise MismatchError(f"the objective {name} compares the examples of a batch and the batch has one: take batch_size 2 or more")


def check_runs(ships: nn.Module, batch: Batch, task: Task) -> None:
    """Refuse a student that does not run with what an objective has put into it."""
    try:
        task.forward(ships, batch)
    except RuntimeError as error:
        why = " ".join(str(error).split())
        raise MismatchError(f"the student that would ship, with a part of the teacher in it, does not run ({why}): check the layers it replaces") from None
