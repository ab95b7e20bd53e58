"""Which charts a run has figures for, and what each of them says in words."""

from dataclasses import dataclass

from markupsafe import Markup

from ._chart import Axis, Interval, Point, Series, intervals, lines, plain, reliability, scatter
from ._compression import front
from ._format import amount, decimals, percent, percent_span, points, points_span, significant, size
from ._run import Model, Run


@dataclass(frozen=True)
class Plot:
    """One chart with its caption and the sentence under it."""

    key: str
    title: str
    caption: str
    svg: Markup


def _percent(value: float) -> str:
    return f"{100 * value:.6g}%"


def _short(label: str) -> str:
    """A name that leaves a chart its room; the full one stands in the tables and in the tip."""
    return label if len(label) <= 16 else f"{label[:15]}…"


_ACCURACY = Axis("accuracy", _percent, low=0.0, high=1.0)


def _accuracy(run: Run, model: Model) -> str:
    metrics, places = model.metrics, decimals(run.examples(model))
    text = percent(metrics.accuracy or 0.0, places)
    if metrics.accuracy_low is None or metrics.accuracy_high is None:
        return text
    return f"{text} ({percent_span(metrics.accuracy_low, metrics.accuracy_high, places)})"


def trade_offs(run: Run) -> list[Plot]:
    """Accuracy against latency, file size and work, for the models that have both; a chart of fewer than two models says nothing."""
    n = run.examples(run.models[0]) if run.models else None
    on = f" on {n:,} {run.split} {run.noun}" if n else ""
    plots = []
    for key, title, unit, field, wording in (
        ("latency", "Accuracy against latency", "latency at batch 1, median, ms", "latency_ms_p50", lambda value: f"{significant(value)} ms"),
        ("size", "Accuracy against file size", "file size, kB", "file_bytes", size),
        ("macs", "Accuracy against work", "multiply-accumulates of one input", "macs", amount),
    ):
        divisor = 1000 if key == "size" else 1
        shown = [(model, found) for model in run.models if (found := getattr(model.metrics, field)) and model.metrics.accuracy is not None]
        if len(shown) < 2:
            continue
        costs = [cost for _, cost in shown]
        log = max(costs) > 6 * min(costs)
        if key == "size" and min(costs) >= 1e6:
            unit, divisor = "file size, MB", 1_000_000
        told = [f"{model.label} {_accuracy(run, model)} at {wording(cost)}" for model, cost in shown]
        marks = [
            Point(_short(model.label), model.look, cost / divisor, model.metrics.accuracy or 0.0, model.metrics.accuracy_low, model.metrics.accuracy_high, tip)
            for (model, cost), tip in zip(shown, told, strict=True)
        ]
        crowded = any(abs(a - b) < 0.04 * max(a, b) for at, a in enumerate(costs) for b in costs[:at])
        beside = " Marks of nearly the same cost stand side by side." if crowded else ""
        svg = scatter(f"plot-{key}", title, "; ".join(told) + ".", marks, Axis(unit, plain, log=log, zero=not log), _ACCURACY)
        plots.append(Plot(key, title, f"Up and to the left is better. Whiskers: 95% intervals of the accuracy{on}.{beside}{front(run, field)}", svg))
    return plots


def curves(run: Run) -> list[Plot]:
    """The validation accuracy and the training loss of every trained stage, epoch by epoch."""
    plots = []
    for key, title, caption, axis in (
        ("validation", "Validation accuracy", "A ring marks the epoch that was kept. The validation split was carved from the training data.", _ACCURACY),
        ("loss", "Training loss", "Stages with different objectives do not share a scale of loss: compare shapes, not heights.", Axis("training loss", plain)),
    ):
        series = []
        for model in run.models:
            found = [
                (float(epoch.epoch), value)
                for epoch in run.histories.get(model.stage, [])
                if (value := epoch.validation_accuracy if key == "validation" else epoch.train_loss) is not None
            ]
            if found:
                best = next((point for point in found if point[0] == model.metrics.best_epoch), None) if key == "validation" else None
                series.append(Series(_short(model.label), model.look, found, best))
        if not series:
            continue
        if key == "loss":
            values = [value for each in series for _, value in each.points]
            axis = Axis(axis.title, plain, log=min(values) > 0 and max(values) > 20 * min(values), zero=min(values) >= 0)
        wording = _percent if key == "validation" else significant
        told = "; ".join(f"{each.label}: from {wording(each.points[0][1])} to {wording(each.points[-1][1])}, {len(each.points)} epochs" for each in series)
        plots.append(Plot(key, title, caption, lines(f"plot-{key}", title, told + ".", series, Axis("epoch", plain), axis)))
    return plots


def reliabilities(run: Run) -> list[Plot]:
    """Per model: does it know when it is right?"""
    plots = []
    for at, model in enumerate(run.models):
        found = run.fidelity.models.get(model.stage) if run.fidelity else None
        if found is None or not any(each.count for each in found.reliability):
            continue
        error = "" if model.metrics.ece is None else f"ECE {percent(model.metrics.ece)}"
        title = f"Reliability of {model.label}"
        told = "; ".join(
            f"{100 * each.confidence:.0f}% confident, {100 * each.accuracy:.0f}% right ({each.count})"
            for each in found.reliability
            if each.count and each.accuracy is not None and each.confidence is not None
        )
        svg = reliability(f"plot-reliability-{at}", title, f"{error or 'Bins'}: {told}.", model.look, found.reliability)
        plots.append(Plot(f"reliability-{at}", model.label, error, svg))
    return plots


def differences(run: Run) -> Plot | None:
    """All paired differences on one axis."""
    if run.fidelity is None or not run.fidelity.pairs:
        return None
    rows, places = [], decimals(run.fidelity.examples)
    for pair in run.fidelity.pairs:
        span = "" if pair.low is None or pair.high is None else f" ({points_span(pair.low, pair.high, places)})"
        told = f"{run.label(pair.a)} against {run.label(pair.b)}: {points(pair.difference, places)}{span}"
        rows.append(Interval(told, pair.difference, pair.low, pair.high))
    title = "Differences in accuracy"
    svg = intervals("plot-differences", title, "; ".join(row.label for row in rows) + ".", rows, "first is better", "second is better")
    return Plot("differences", title, "Bars: 95% intervals of the paired difference. A filled dot: the interval leaves out zero.", svg)
