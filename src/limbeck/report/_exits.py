"""What each exit of a network is worth, and what stopping early buys: a table and a curve for each stage that has exits."""

from dataclasses import dataclass

from ._chart import Axis, Series, lines, plain
from ._format import amount, decimals, percent, percent_span, significant
from ._plots import Plot
from ._run import Run

__all__ = ["Anytime", "anytime"]


@dataclass(frozen=True)
class Anytime:
    """One network: its rows (exit, accuracy, its interval, MACs, latency) and its curve."""

    stage: str
    caption: str
    rows: list[tuple[str, str, str, str, str]]
    plot: Plot


def anytime(run: Run) -> list[Anytime]:
    """Every stage whose network can answer before its end, in the order of the models."""
    return [_of(run, at, model.stage, model.label, model.look) for at, model in enumerate(run.models) if model.stage in run.exits]


def _of(run: Run, at: int, stage: str, label: str, look: str) -> Anytime:
    found = run.exits[stage]
    places = decimals(found.examples)
    timed = run.measurement.models if run.measurement else {}
    rows = []
    for each in found.exits:
        measured = timed.get(stage if each.name == "main" else f"{stage}.{each.name}")
        latency = "" if measured is None or measured.latency_ms_p50 is None else f"{significant(measured.latency_ms_p50)} ms"
        span = percent_span(each.accuracy_low, each.accuracy_high, places)
        rows.append((each.name, percent(each.accuracy, places), span, amount(each.macs), latency))
    curve = sorted({(each.macs, each.accuracy) for each in found.policy})
    alone = [(float(each.macs), each.accuracy) for each in found.exits]
    told = "; ".join(f"threshold {each.threshold:g}: {percent(each.accuracy, places)} at {amount(round(each.macs))} MACs" for each in found.policy)
    accuracy = Axis("accuracy", lambda value: f"{100 * value:.6g}%", low=0.0, high=1.0)
    title = f"Stopping early: {label}"
    other = "other1" if look != "other1" else "other2"
    drawn = [Series("by confidence", look, curve), Series("one exit for all", other, alone)]
    svg = lines(f"plot-exits-{at}", title, told + ".", drawn, Axis("mean MACs of an example", plain), accuracy)
    note = "An example leaves by the first exit whose confidence reaches a threshold, each of a fixed grid, and pays for the exits that it asked."
    on = f"on {found.examples:,} {run.split} {run.noun}"
    return Anytime(stage, f"{label}: the answers on the way, {on}; MACs of that answer alone.", rows, Plot(f"exits-{at}", title, note, svg))
