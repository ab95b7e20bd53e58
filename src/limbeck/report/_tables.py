"""The tables of the report: which columns have figures, what stands in each cell, which classes changed."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from ._chart import bar
from ._format import DASH, amount, decimals, duration, percent, percent_span, points, significant, size, times, times_span
from ._run import Model, Run
from ._schema import Metrics
from ._story import shrink

SHOWN = 12
"""So many classes are shown at once; the others lie folded beneath."""


@dataclass(frozen=True)
class Cell:
    """A figure and what stands under it; an empty figure is one that is not known."""

    text: str = ""
    detail: str = ""


@dataclass(frozen=True)
class Table:
    """Rows of models under the columns that have a figure, and the columns that have none."""

    columns: list[str]
    rows: list[tuple[Model, list[Cell]]]
    missing: list[str]


@dataclass(frozen=True)
class ClassRow:
    """One class before and after."""

    name: str
    before: int
    after: int
    total_before: int
    total_after: int
    change: str
    bar: Markup


@dataclass(frozen=True)
class ClassChange:
    """Which classes lost and gained between two models, the greatest losses first."""

    title: str
    summary: str
    before: str
    after: str
    rows: list[ClassRow]
    rest: list[ClassRow]


Fill = Callable[[Model], Cell]


def _table(run: Run, models: list[Model], columns: Mapping[str, Fill]) -> Table:
    filled = {name: [fill(model) for model in models] for name, fill in columns.items()}
    known = [name for name, cells in filled.items() if any(cell.text for cell in cells)]
    return Table(known, [(model, [filled[name][at] for name in known]) for at, model in enumerate(models)], [name for name in columns if name not in known])


def _figure(name: str, wording: Callable[[float], str]) -> Fill:
    def fill(model: Model) -> Cell:
        value = getattr(model.metrics, name)
        return Cell() if value is None else Cell(wording(value))

    return fill


def quality(run: Run) -> Table:
    """How good every model's answers are."""

    def share(name: str) -> Fill:
        def fill(model: Model) -> Cell:
            value, low, high = (getattr(model.metrics, name + end) for end in ("", "_low", "_high"))
            places = decimals(run.examples(model))
            return Cell() if value is None else Cell(percent(value, places), "" if low is None or high is None else percent_span(low, high, places))

        return fill

    def errors(model: Model) -> Cell:
        metrics, n = model.metrics, run.examples(model)
        return Cell() if metrics.errors is None else Cell(f"{metrics.errors:,}", f"of {n:,}" if n else "")

    def loss(model: Model) -> Cell:
        metrics = model.metrics
        if metrics.test_loss is None or metrics.test_perplexity is None:
            return Cell()
        low, high = metrics.test_loss_low, metrics.test_loss_high
        return Cell(f"{metrics.test_loss:.4f}", "" if low is None or high is None else f"{low:.4f}{DASH}{high:.4f}")

    columns: dict[str, Fill] = {
        "Accuracy": share("accuracy"),
        "Errors": errors,
        "Agreement with the teacher": share("agreement"),
        "KL to the teacher": _figure("kl_to_teacher", significant),
        "Negative log-likelihood": _figure("nll", significant),
        "Calibration error (ECE)": _figure("ece", percent),
        "Perplexity": _figure("test_perplexity", significant),
        "Loss, nats a token": loss,
        "Bits a byte": _figure("test_bits_per_byte", significant),
        "Right token": _figure("test_accuracy", percent),
    }
    return _table(run, [model for model in run.models if any(fill(model).text for fill in columns.values())], columns)


def cost(run: Run) -> Table:
    """What every model costs to keep and to ask."""
    teacher = run.role("teacher")

    def less(name: str, wording: Callable[[float], str], smaller: str, larger: str) -> Fill:
        def fill(model: Model) -> Cell:
            value = getattr(model.metrics, name)
            if value is None:
                return Cell()
            ratio = None if teacher is None or model is teacher else shrink(getattr(teacher.metrics, name), value)
            if ratio is None:
                return Cell(wording(value))
            return Cell(wording(value), f"{times(ratio)} {smaller}" if ratio >= 1 else f"{times(1 / ratio)} {larger}")

        return fill

    def faster(quantity: str) -> Fill:
        def fill(model: Model) -> Cell:
            if teacher is None or model is teacher or (found := run.ratio(teacher, model, quantity)) is None:
                return Cell()
            return Cell(times(found.ratio), "" if found.low is None or found.high is None else times_span(found.low, found.high))

        return fill

    def left(model: Model) -> Cell:
        metrics = model.metrics
        return Cell() if metrics.weights_left in (None, metrics.parameters) else Cell(f"{metrics.weights_left:,}")

    def milliseconds(name: str) -> Fill:
        return _figure(name, significant)

    def throughput(model: Model) -> Cell:
        metrics = model.metrics
        if metrics.throughput_per_s is None:
            return Cell()
        return Cell(f"{significant(metrics.throughput_per_s)}", f"batch {metrics.throughput_batch}" if metrics.throughput_batch else "")

    columns: dict[str, Fill] = {
        "Parameters": less("parameters", lambda value: f"{value:,}", "fewer", "more"),
        "Weights not zero": left,
        "MACs": less("macs", amount, "fewer", "more"),
        "File": less("file_bytes", size, "smaller", "larger"),
        "Latency p50, ms": milliseconds("latency_ms_p50"),
        "p90, ms": milliseconds("latency_ms_p90"),
        "p99, ms": milliseconds("latency_ms_p99"),
        "Faster than the teacher": faster("latency"),
        "Throughput, per s": throughput,
        "Throughput against the teacher": faster("throughput"),
        "Peak memory": _figure("peak_memory_bytes", size),
        "Energy, J": _figure("energy_j_per_inference", significant),
    }
    return _table(run, [model for model in run.models if any(fill(model).text for fill in columns.values())], columns)


def stages(run: Run) -> list[dict[str, Any]]:
    """What each stage did, in the recipe's order; both validation figures where it was trained."""
    by_stage = {model.stage: model for model in run.models}
    rows = []
    for name in run.stages:
        stage = run.record.stages[name]
        metrics = stage.metrics
        epochs = metrics.epochs or (len(run.histories[name]) if name in run.histories else None)
        seconds = stage.seconds if metrics.train_seconds is None or stage.reused else metrics.train_seconds
        best = None if metrics.validation_accuracy is None else percent(metrics.validation_accuracy)
        last = None if metrics.validation_accuracy_last is None else percent(metrics.validation_accuracy_last)
        rows.append(
            {
                "model": by_stage[name],
                "kind": stage.kind,
                "artifact": stage.artifact or f"stages/{name}",
                "ran": "reused" if stage.reused else "ran",
                "seconds": "" if seconds is None else duration(seconds),
                "best": "" if best is None else f"{best} at epoch {metrics.best_epoch}" if metrics.best_epoch is not None else best,
                "last": "" if last is None else f"{last} at epoch {epochs}" if epochs else last,
            }
        )
    return rows


def parity(run: Run) -> Table:
    """How near every exported file computes to what it was made from."""

    def inputs(metrics: Metrics) -> str:
        return "" if metrics.parity_inputs is None else f"{metrics.parity_inputs:,}"

    columns: dict[str, Fill] = {
        "Inputs compared": lambda model: Cell(inputs(model.metrics)),
        "Largest absolute error": _figure("parity_max_abs", lambda value: significant(value, 2)),
        "Largest relative error": _figure("parity_max_rel", lambda value: significant(value, 2)),
        "Cosine": _figure("parity_cosine", lambda value: f"{value:.6f}"),
        "Same answer": _figure("parity_agreement", percent),
        "Signal to noise, dB": _figure("parity_sqnr_db", lambda value: significant(value)),
    }
    return _table(run, [model for model in run.models if any(fill(model).text for fill in columns.values())], columns)


def class_changes(run: Run) -> list[ClassChange]:
    """Class by class: teacher to student, alone to student."""
    student, found = run.role("student") or run.role("shipped"), []
    for before in (run.role("teacher"), run.role("alone")):
        if before is None or student is None or run.fidelity is None:
            continue
        old, new = (run.fidelity.models.get(model.stage) for model in (before, student))
        if old is None or new is None or not old.per_class or len(old.per_class) != len(new.per_class):
            continue
        found.append(
            _class_change(
                run, before.label, student.label, [(a.correct, a.total, b.correct, b.total) for a, b in zip(old.per_class, new.per_class, strict=True)]
            )
        )
    return found


def _class_change(run: Run, before: str, after: str, counts: list[tuple[int, int, int, int]]) -> ClassChange:
    names = run.class_names if len(run.class_names) == len(counts) else [f"class {at}" for at in range(len(counts))]
    shares = [(new / new_total if new_total else 0.0) - (old / old_total if old_total else 0.0) for old, old_total, new, new_total in counts]
    reach = max(max(abs(share) for share in shares), 1e-9)
    order = sorted(range(len(counts)), key=lambda at: (shares[at], names[at]))
    rows = {}
    for at in order:
        old, old_total, new, new_total = counts[at]
        rows[at] = ClassRow(names[at], old, new, old_total, new_total, points(shares[at]), bar(shares[at], reach))
    lost, gained = sum(share < 0 for share in shares), sum(share > 0 for share in shares)
    summary = f"{lost} of {len(counts)} classes lost, {gained} gained, {len(counts) - lost - gained} stayed."
    first = order if len(order) <= SHOWN else [at for at in [*order[: SHOWN // 2], *order[-SHOWN // 2 :]] if shares[at]]
    return ClassChange(f"{before} to {after}", summary, before, after, [rows[at] for at in first], [rows[at] for at in order if at not in set(first)])


def flatten(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Any JSON as lines of name and text, nested names joined by dots.

    >>> flatten({"cpu": {"model": "x", "flags": ["a", "b"]}, "busy": False})
    [('cpu.model', 'x'), ('cpu.flags', 'a b'), ('busy', 'no')]
    """
    if isinstance(value, dict):
        return [pair for name, item in value.items() for pair in flatten(item, f"{prefix}.{name}" if prefix else str(name))]
    if isinstance(value, list):
        if any(isinstance(item, dict | list) for item in value):
            return [pair for at, item in enumerate(value) for pair in flatten(item, f"{prefix}.{at}" if prefix else str(at))]
        return [(prefix, " ".join(_scalar(item) for item in value))]
    return [(prefix, _scalar(value))]


def _scalar(value: Any) -> str:
    if value is None:
        return "not known"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
