"""The doctor: one batch through everything before training, to find what silently ruins a distillation."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.core.artifact import Artifact
from limbeck.core.ask import ask
from limbeck.core.errors import LimbeckError
from limbeck.core.events import Listener, silent
from limbeck.core.knowledge import Dense, Knowledge, Reads, TopK
from limbeck.core.objective import Term
from limbeck.core.schedule import Clock, at
from limbeck.core.tap import eagerly
from limbeck.core.task import Batch, Loader, Task
from limbeck.core.teacher import Teacher
from limbeck.engine.loop import steps_per_epoch
from limbeck.measure.step import step
from limbeck.objectives.supervised import Supervised
from limbeck.schemes.offline import Offline
from limbeck.tasks._text_task import RowsTask
from limbeck.teachers._rehearsed import Rehearsed
from limbeck.teachers.cached import Cached
from limbeck.teachers.ensemble import Ensemble
from limbeck.teachers.frozen import Frozen

from . import _ailments as ailments
from . import _ailments_text as of_text
from ._ailments import Finding
from .assemble import assemble
from .check import check_recipe
from .grown import begun
from .modules import load
from .recipe import DistillStage, GivenStage, Recipe, TrainStage, load_recipe, parents
from .resolve import make_model, make_tasks, model_spec, stage_hashes, writes

__all__ = ["Finding", "dry", "examine"]

_SAMPLE = 512
"""Examples on which teacher and student are compared."""


def examine(
    scheme: Offline,
    batch: object,
    sample: Iterable[object] = (),
    *,
    epochs: float = 100,
    optimizers: Iterable[torch.optim.Optimizer] = (),
    trained: bool = True,
    names: Sequence[str] | None = None,
) -> list[Finding]:
    """Look at a scheme before it is trained, with one batch through everything; nothing about it changes, but that it is bound if it was not.

    Args:
        batch: a training batch, as the task's loader gives it.
        sample: more batches with labels, best of validation, on which teacher and student are compared; the batch alone where it is left out.
        epochs: how many the training has, for weights that follow a schedule.
        optimizers: those of a loop of one's own; the scheme's players stand for them where they are left out.
        trained: whether the teacher has its weights already; what it knows and how strong its gradient is are looked at only then.
        names: of the classes.

    Example:
        >>> student, teacher = nn.Linear(4, 3), nn.Linear(4, 3)
        >>> batch = torch.randn(8, 4), torch.arange(8) % 3
        >>> from limbeck.objectives.response.kd import KD
        >>> kd = Offline(student, teacher, [KD()])
        >>> [str(one) for one in examine(kd, batch, trained=False) if one.about == "parameters"]
        ['fine: every parameter that the scheme knows has an optimizer']
    """
    device = next((one.device for one in scheme.student.parameters()), torch.device("cpu"))
    found: list[Finding] = []
    with _unchanged(scheme):
        try:
            read, *more = ({name: value.to(device) for name, value in scheme.task.batch(raw).items()} for raw in (batch, *sample))
            scheme.bind(read)
            if of_text.of_tokens(read):
                found.extend(_tokens(scheme, read))
                read, *more = (of_text.few_rows(one, len(names or ()) or 1 << 16) for one in (read, *more))
            given = [value for optimizer in optimizers for group in optimizer.param_groups for value in group["params"]]
            held = {id(value) for value in given or chain.from_iterable(scheme.players().values())}
            found.extend(_teacher(scheme, read, more or [read], trained, names))
            found.extend(_student(scheme, read, epochs, held, trained))
        except LimbeckError as error:
            found.append(Finding("fault", type(error).__name__, str(error)))
    return found


def dry(
    source: str | Path | Mapping[str, Any] | Recipe, *, sets: Iterable[str] = (), out: Path | None = None, listener: Listener = silent
) -> tuple[list[str], dict[str, list[Finding]]]:
    """Check a recipe as `check` does, then examine every stage that trains; return the check's lines, and the findings of each stage.

    A teacher that an earlier stage will train has its weights only if that stage's artifact stands in `out` (`runs/<name>` where it is None).

    Raises:
        LimbeckError: the first thing that is wrong before anything can be examined.
    """
    recipe = load_recipe(source, sets)
    tasks = make_tasks(recipe)
    lines = check_recipe(recipe, tasks, listener)
    there = _artifacts(recipe, Path("runs") / recipe.name if out is None else out, tasks)
    models: dict[str, nn.Module] = {}
    found: dict[str, list[Finding]] = {}
    with torch.random.fork_rng(devices=[]):
        for name, stage in recipe.stages.items():
            if isinstance(stage, TrainStage):
                models[name], found[name] = _stage(recipe, name, stage, tasks[name], models, there)
    return lines, found


def _stage(
    recipe: Recipe, name: str, stage: TrainStage, task: Task, models: Mapping[str, nn.Module], there: Mapping[str, Artifact]
) -> tuple[nn.Module, list[Finding]]:
    """Examine one stage; its model, untrained, stands for it where later stages ask it."""

    def of(one: str) -> nn.Module:
        return load(there[one].path) if one in there else models[one]

    facts = task.facts()
    student = of(str(stage.init)) if stage.model is None else make_model(model_spec(stage.model, facts))
    if stage.model is not None and stage.init is not None:
        begun(student, of(stage.init), stage.init)
    asked = stage.teacher.stages if isinstance(stage, DistillStage) else []
    drawn = [one for one in (stage.transfer.of, stage.scheme.of) if one]
    if missing := [one for one in (*drawn, *asked) if one not in there and one not in models]:
        return student, [Finding("fine", "stages", f"it takes from {missing[0]}, which is not there yet: run it, then check again")]
    sources = {one: there[one] for one in drawn if one in there}
    if len(sources) < len(drawn) and not writes(stage.transfer):
        return student, [Finding("fine", "stages", f"it draws from {drawn[0]}, which is not there yet: run it, then check again")]
    writer = of(stage.transfer.of) if stage.transfer.of and writes(stage.transfer) else None
    made = assemble(name, stage, student, [of(one) for one in asked], task, seed=recipe.seed, sources=sources, writer=writer, world=recipe.runtime.devices)
    scheme, first = made.scheme, next(iter(made.loader.batches(0)))
    if not isinstance(scheme, Offline):
        return scheme.shipped()["student"], [
            Finding("warning", "scheme", f"the doctor knows the scheme offline, not {stage.scheme.kind}: nothing was examined")
        ]
    awaited = [one for one in asked if one not in there]
    told = [
        Finding(
            "fine", "teacher's skill", f"what {one} knows, and how strong its gradient is, is not looked at: it has no weights yet; run it, then check again"
        )
        for one in awaited
    ]
    told += examine(scheme, first, _sample(task) if facts.labelled else (), epochs=stage.epochs, trained=not awaited, names=facts.class_names)
    if not any(one.level == "fault" for one in told):
        told.append(_price(scheme, first, stage, made.loader))
    return scheme.shipped()["student"], told


def _price(scheme: Offline, first: object, stage: TrainStage, loader: Loader) -> Finding:
    """What the training will take, by one batch of it: an estimate, for another machine or another load takes another time."""
    device = next((one.device for one in scheme.student.parameters()), torch.device("cpu"))
    with _unchanged(scheme):
        batch = {name: value.to(device) for name, value in scheme.task.batch(first).items()}
        scheme.train()

        def forget() -> None:
            for value in scheme.parameters():
                value.grad = None

        with torch.enable_grad():
            found = step(lambda: sum(scheme(batch).sums.values(), torch.zeros((), device=device)).backward(), forget, device)
    learning = sum(value.numel() * value.element_size() for value in scheme.parameters() if value.requires_grad)
    kept = learning * (2 if stage.optimizer.kind.startswith("adam") else 1)
    batches = steps_per_epoch(loader, stage) * stage.accumulate
    seconds = found.seconds * batches * stage.epochs
    text = f"about {_clock(seconds)} for {batches} batches of {stage.epochs} epochs, validation apart (a batch takes {found.seconds * 1000:.3g} ms here now)"
    return Finding("fine", "price", f"an estimate: {text}; a step holds {_size(found.peak_bytes)} at its peak, and the optimizer {_size(kept)} all the time")


def _clock(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _size(count: int) -> str:
    return f"{count / 1e6:.3g} MB" if count < 1e9 else f"{count / 1e9:.3g} GB"


def _tokens(scheme: Offline, batch: Batch) -> Iterator[Finding]:
    """What is looked at of language modelling alone, in the whole batch."""
    yield from of_text.shift_of_labels(batch)
    vocabulary = scheme.task.made.vocabulary if isinstance(scheme.task, RowsTask) else None
    roles = {} if vocabulary is None else vocabulary.roles
    yield from of_text.padded(batch, roles.get("pad", roles.get("eos")))
    yield from of_text.ended(batch, roles.get("eos"))


def _sample(task: Task) -> Iterator[Batch]:
    split, seen = "validation" if "validation" in task.splits() else "train", 0
    for batch in task.loader(split, batch_size=128).batches(0):
        yield batch
        seen += len(next(iter(batch.values())))
        if seen >= _SAMPLE:
            return


def _artifacts(recipe: Recipe, out: Path, tasks: Mapping[str, Task]) -> dict[str, Artifact]:
    """The trained stages that stand in a run's folder and are what the recipe would make."""
    found: dict[str, Artifact] = {}
    for name, stage in recipe.stages.items():
        path = out / "stages" / name
        if not isinstance(stage, (TrainStage, GivenStage)) or not (path / "manifest.json").is_file() or any(one not in found for one in parents(stage)):
            continue
        artifact = Artifact.open(path)
        if artifact.stage_hash == stage_hashes(recipe, name, tasks[name], {one: found[one].digest for one in found})[0]:
            found |= {name: artifact} | {f"{name}.{player}": one for player, one in artifact.players.items()}
    return found


@contextmanager
def _unchanged(scheme: Offline) -> Iterator[None]:
    """Put modes, running statistics and the random state back when the block ends."""
    teachers = [] if scheme.teacher is None else [scheme.teacher, *(model for _, model in _models(scheme.teacher))]
    models = [scheme, *teachers]
    modes = {module: module.training for model in models for module in model.modules()}
    kept = [(value, value.clone()) for model in (scheme.student, *teachers) for value in model.buffers()]
    devices = {value.device for value in scheme.parameters() if value.device.type == "cuda"}
    try:
        with torch.random.fork_rng(devices=list(devices)):
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        with torch.no_grad():
            for value, before in kept:
                value.copy_(before)


def _frozen(teacher: Teacher, name: str = "") -> list[tuple[str, Frozen]]:
    """The frozen models that a teacher asks, by name."""
    if isinstance(teacher, Frozen):
        return [(name, teacher)]
    if isinstance(teacher, Rehearsed):
        return [(name, teacher.frozen)]
    if isinstance(teacher, Ensemble):
        return [one for index, member in enumerate(teacher.members) if isinstance(member, Teacher) for one in _frozen(member, f"{name}{index}.")]
    return []


def _models(teacher: Teacher) -> list[tuple[str, nn.Module]]:
    """The models that a teacher asks, by name; the teacher itself where it asks none that stands still."""
    return [(name, one.model) for name, one in _frozen(teacher)] or ([] if isinstance(teacher, Cached) else [("", teacher)])


def _teacher(scheme: Offline, batch: Batch, sample: Sequence[Batch], trained: bool, names: Sequence[str] | None) -> Iterator[Finding]:
    if scheme.teacher is None:
        return
    seen: dict[str, nn.Module] = {}

    def look(path: str, module: nn.Module, _args: Any) -> None:
        if module.training:
            seen[path] = module

    layers = [(f"{name}{path}", module) for name, model in _models(scheme.teacher) for path, module in model.named_modules()]
    hooks = [module.register_forward_pre_hook(partial(look, path)) for path, module in layers]
    try:
        with torch.no_grad(), eagerly():
            first = _told(scheme, batch)
            said, again, sparse = _spread(first), _spread(_told(scheme, batch)), isinstance(first.answer, TopK)
    finally:
        for hook in hooks:
            hook.remove()
    yield from ailments.in_training(list(seen.items()))
    rows = len(said.main.logits)
    alone = batch.keys() <= {"input", "label", "id"} and rows > 3 and not seen
    half = _spread(_told(scheme, {name: value[: rows // 2] for name, value in batch.items()})).main.logits if alone else None
    yield from ailments.steady(said.main.logits, again.main.logits, half)
    yield from ailments.form("teacher", said.main, mixed=isinstance(scheme.teacher, Ensemble) or sparse)
    yield from ailments.constant("teacher", said.features)
    if of_text.of_tokens(batch) and trained and said.main.logits.ndim == 3:
        yield from of_text.shift_of_answers(said.main.logits, batch)
    sample = [batch] if isinstance(scheme.teacher, Cached) else sample  # of others it knows nothing
    looks_at = {teacher.input for _, teacher in _frozen(scheme.teacher)}
    if not all(looks_at <= set(one) for one in sample):
        yield Finding("fine", "teacher's skill", f"the teacher looks at {', '.join(sorted(looks_at))}, which labelled examples have not: it is not compared")
    elif trained and all("label" in one for one in sample):
        yield from _compared(scheme, sample, names)


def _told(scheme: Offline, batch: Batch) -> Knowledge:
    """What the teacher says of a batch, the student in eval mode if it must be asked first."""
    assert scheme.teacher is not None
    with torch.no_grad():
        scheme.student.eval()
        return scheme.teacher(batch, _asked(scheme, batch) if scheme.teacher.reads_student else None)


def _spread(said: Knowledge) -> Knowledge:
    """The likeliest classes of a teacher as whole logits, what is left spread evenly over the other classes: enough to see who is right."""
    if not isinstance(answer := said.answer, TopK):
        return said
    others = answer.classes - answer.indices.shape[-1]
    logits = (answer.log_tail - math.log(max(others, 1))).unsqueeze(-1).expand(*answer.log_tail.shape, answer.classes)
    return replace(said, outputs={"main": Dense(logits.scatter(-1, answer.indices, answer.log_probs))})


def _asked(scheme: Offline, batch: Batch) -> Knowledge:
    reads = Reads()
    for term in _terms(scheme).values():
        reads |= term.objective.needs.student
    return ask(scheme.student, batch, reads, scheme.task, side="student")


def _terms(scheme: Offline) -> dict[str, Term]:
    found: dict[str, Term] = {}
    for term in (module for module in scheme.modules() if isinstance(module, Term)):
        same = sum(name.partition("#")[0] == term.name for name in found)
        found[f"{term.name}#{same + 1}" if same else term.name] = term
    return found


def _compared(scheme: Offline, sample: Sequence[Batch], names: Sequence[str] | None) -> Iterator[Finding]:
    """Teacher and student on the same labelled examples."""
    metric, task = scheme.task.metric, scheme.task
    theirs, ours, labels, answers = list[Tensor](), list[Tensor](), list[Tensor](), list[Tensor]()
    scheme.student.eval()
    classes = 0
    with torch.no_grad(), eagerly():
        for batch in sample:
            student, teacher = task.forward(scheme.student, batch), _spread(_told(scheme, batch))
            tokens = of_text.of_tokens(batch)  # of which the scores are those that count
            if teacher.main.classes != student.main.classes or teacher.main.link != "softmax" or (teacher.main.logits.ndim != 2 and not tokens):
                return
            mask = slice(None) if student.mask is None else student.mask
            classes = teacher.main.classes
            theirs.append(task.scores(teacher, batch)[metric][... if tokens else mask].float().cpu())
            ours.append(task.scores(student, batch)[metric][... if tokens else mask].float().cpu())
            labels.append(batch["label"][mask].cpu())
            answers.append(teacher.main.logits.argmax(-1)[mask].cpu())
    told = [str(one) for one in range(classes)] if names is None else names
    order = list(ailments.disordered(torch.cat(answers), torch.cat(labels), classes, told)) if metric == "accuracy" else []
    yield from order
    if all(one.level == "fine" for one in order):
        yield from ailments.skill(torch.cat(theirs), torch.cat(ours), torch.cat(labels), metric, task.higher_is_better)


def _student(scheme: Offline, batch: Batch, epochs: float, held: set[int], trained: bool) -> Iterator[Finding]:
    """The student in train mode, as it will learn: what it says, what each objective's gradient is, and who holds what learns; `held`: ids of parameters."""
    teacher = None if scheme.teacher is None else _told(scheme, batch)
    scheme.train()
    with eagerly(), torch.enable_grad():
        student = _asked(scheme, batch)
        yield from ailments.form("student", student.main)
        yield from ailments.constant("student", student.features)
        learning = [one for one in scheme.student.parameters() if one.requires_grad]
        terms = _terms(scheme)
        losses = {name: _loss(term, student, teacher, batch) for name, term in terms.items()}
        norms = {name: (_weight(term, epochs), _norm(losses[name], learning)) for name, term in terms.items()}
        supervised = next((name for name, term in terms.items() if isinstance(term.objective, Supervised)), None)
        yield from ailments.shares(norms, supervised if trained and scheme.balance is None else None)
        yield from ailments.unheld(dict(scheme.named_parameters()), losses, held, batch.get("input"))
        for name, term in terms.items():
            yield from ailments.temperature(name, term.objective, student, teacher, batch)


def _weight(term: Term, epochs: float) -> float:
    """The most that a term weighs at any time of training."""
    return max(at(term.weight, Clock(epochs * step / 100, epochs)) for step in range(101))


def _loss(term: Term, student: Knowledge, teacher: Knowledge | None, batch: Batch) -> Tensor:
    """The mean over the valid predictions."""
    loss = term(student, teacher, batch)
    return (loss if student.mask is None or not loss.ndim else loss[student.mask]).mean()


def _norm(loss: Tensor, learning: Sequence[nn.Parameter]) -> float:
    if not loss.requires_grad:
        return 0.0
    gradients = torch.autograd.grad(loss, learning, retain_graph=True, allow_unused=True)
    return sum((one.float().square().sum().item() for one in gradients if one is not None), 0.0) ** 0.5
