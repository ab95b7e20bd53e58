"""From what a run's files say to the page."""

import re
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from limbeck.core import VERSION

from . import _compression, _exits, _lifelong, _plots, _samples, _story, _synthetic, _tables
from ._chart import key_mark
from ._format import DASH, duration, times, times_span
from ._run import MEANING, Run
from ._schema import Note

TEMPLATES = Path(__file__).parent / "templates"


def page(run: Run) -> str:
    """The whole page as HTML; everything that comes from the run is escaped."""
    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.globals.update(key_mark=key_mark, meaning=MEANING)
    style = Markup((TEMPLATES / "report.css").read_text("utf-8"))
    return environment.get_template("page.html.j2").render(style=style, version=VERSION, **context(run))


def context(run: Run) -> dict[str, Any]:
    """Everything that the templates show, as text or as charts."""
    record, fidelity, measurement = run.record, run.fidelity, run.measurement
    notes = list(_notes(run))
    sentences = [_unbroken(sentence) for sentence in _story.headline(run)]
    return {
        "recipe": record.recipe,
        "created": _moment(record.created),
        "took": "" if record.seconds is None else duration(record.seconds),
        "headline": sentences[0],
        "also": sentences[1:],
        "figures": _story.figures(run),
        "unknown": _story.unknown(run),
        "loud": [note for note in notes if note.loud],
        "notes": [note for note in notes if not note.loud],
        "quality": _tables.quality(run),
        "cost": _tables.cost(run),
        "cost_caption": _cost_caption(run),
        "energy": _energy(run),
        "trade_offs": _plots.trade_offs(run),
        "anytime": _exits.anytime(run),
        "lifelong": _lifelong.lifelong(run),
        "curves": _plots.curves(run),
        "reliabilities": _plots.reliabilities(run),
        "changes": _tables.class_changes(run),
        "differences": _plots.differences(run),
        "verdicts": [_unbroken(_story.verdict(run, pair)) for pair in fidelity.pairs] if fidelity else [],
        "ratios": _ratios(run),
        "compressed": _compression.compressed(run),
        "synthetic": _synthetic.sheets(run),
        "beginnings": _samples.beginnings(run),
        "stages": _tables.stages(run),
        "parity": _tables.parity(run),
        "yaml": record.recipe_yaml.strip("\n"),
        "command": record.command,
        "versions": _tables.flatten(record.environment),
        "machine": _machine(run),
        "lineages": [(run.label(stage), stage, _tables.flatten(lineage)) for stage, lineage in run.lineages.items()],
        "fingerprints": _fingerprints(run),
        "tested_on": _tested_on(run),
        "measured": measurement is not None,
    }


def _unbroken(sentence: Markup) -> Markup:
    """Keep short brackets, which hold intervals, on one line; the sentence is escaped already."""
    return Markup(re.sub(r"\([^()<>&]{1,26}\)|p (?:=|&lt;) [\d.]+", lambda found: f'<span class="nb">{found[0]}</span>', sentence))


def _moment(told: str) -> str:
    """An ISO time as a person reads it, in UTC where it names its zone; anything else as it stands."""
    try:
        moment = datetime.fromisoformat(told)
    except ValueError:
        return told
    return f"{moment:%Y-%m-%d %H:%M}" if moment.tzinfo is None else f"{moment.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def _notes(run: Run) -> Iterable[Note]:
    """All notes once, those of the measurement loud where the machine was busy or did not become steady."""
    seen: set[tuple[str, str]] = set()
    found = list(run.record.notes)
    if run.measurement is not None:
        if (
            run.measurement.busy
            and not any("busy" in note.text.lower() for note in found if note.loud)
            and not any("busy" in text.lower() for text in run.measurement.notes)
        ):
            found.append(Note(text="The machine was busy while it measured: latency, throughput and their ratios may be off.", loud=True))
        found += [Note(text=text, loud=run.measurement.busy and "busy" in text.lower()) for text in run.measurement.notes]
        restless = [model.label for model in run.models if model.metrics.steady is False]
        if restless:
            found.append(Note(text=f"The latency of {', '.join(restless)} did not become steady: read it with care.", loud=True))
    for note in sorted(found, key=lambda note: not note.loud):
        if (key := (note.text, note.stage or "")) not in seen and (note.text, "") not in seen:
            seen.add(key)
            yield note


def _tested_on(run: Run) -> str:
    found = {n for model in run.models if model.metrics.accuracy is not None and (n := run.examples(model))}
    return f"{found.pop():,} {run.split} {run.noun}" if len(found) == 1 else f"the {run.split} split"


def _cost_caption(run: Run) -> str:
    if run.measurement is None:
        return "What each model costs. Speed was not measured."
    counts = sorted({model.metrics.latency_n for model in run.models if model.metrics.latency_n})
    calls = f" from {DASH.join(f'{count:,}' for count in (counts if len(counts) < 2 else (counts[0], counts[-1])))} calls each" if counts else ""
    threads = run.measurement.threads
    pinned = f" on {threads} thread{'' if threads == 1 else 's'}" if threads else ""
    return f"What each model costs. Latency at batch 1{pinned}{calls}; ratios with 95% intervals."


def _energy(run: Run) -> str:
    if any(model.metrics.energy_j_per_inference is not None for model in run.models):
        source = run.measurement.energy.source if run.measurement and run.measurement.energy else None
        return f"Energy read from {source}." if source else "Energy: the counter is not named."
    if run.measurement is None:
        return ""
    reason = run.measurement.energy.reason if run.measurement.energy else None
    return f"Energy was not measured: {reason or 'no reason was recorded'}."


def _ratios(run: Run) -> list[tuple[str, str, str, str, str, str]]:
    found = run.measurement.ratios if run.measurement else []
    return [
        (
            run.label(each.b),
            run.label(each.a),
            each.quantity,
            times(each.ratio),
            "" if each.low is None or each.high is None else times_span(each.low, each.high),
            "" if each.n is None else f"{each.n:,}",
        )
        for each in found
    ]


def _machine(run: Run) -> list[tuple[str, str]]:
    if run.measurement is None:
        return []
    threads = [] if run.measurement.threads is None else [("threads", str(run.measurement.threads))]
    found = threads + _tables.flatten(run.measurement.machine)
    return [(name.replace("_", " "), text) for name, text in found if text]


def _fingerprints(run: Run) -> list[tuple[str, list[str]]]:
    """Every data fingerprint that a stage names, and the stages that name it."""
    found: dict[str, list[str]] = {}
    for stage, lineage in run.lineages.items():
        for name, text in _tables.flatten(lineage):
            if "fingerprint" in name and stage not in found.setdefault(text, []):
                found[text].append(stage)
    return list(found.items())
