"""The run in sentences: what was gained, what was lost, what is not known. Figures that are missing are said to be missing."""

from dataclasses import dataclass

from markupsafe import Markup

from ._format import chance, decimals, percent, percent_span, points, points_span, size, times, times_span
from ._run import Model, Run
from ._schema import Pair, Ratio, RowPair


@dataclass(frozen=True)
class Figure:
    """One figure to show large: what it is, the figure, and what stands under it."""

    name: str
    value: str
    unit: str
    detail: str


def strong(text: str) -> Markup:
    return Markup("<strong>{}</strong>").format(text)


def subject(run: Run) -> Model | None:
    """The model that the run was made for: the distilled student, else what came of it, else the student alone."""
    return next((model for role in ("student", "shipped", "int8", "alone") if (model := run.role(role)) is not None), None)


def speed(run: Run, model: Model | None) -> tuple[Model, Ratio] | None:
    """The model of the student's family that was timed against the teacher, and how many times faster it answers."""
    for candidate in (run.role("shipped"), model, run.role("int8")):
        if candidate is not None and (ratio := run.ratio(run.role("teacher"), candidate, "latency")) is not None:
            return candidate, ratio
    return None


def difference(run: Run, a: Model | None, b: Model | None) -> tuple[float, str] | None:
    """Accuracy a minus accuracy b, with its interval in words; from the paired test, else from the two accuracies without one."""
    if a is None or b is None:
        return None
    places = decimals(run.examples(a))
    if (pair := run.pair(a, b)) is not None:
        return pair.difference, "no interval" if pair.low is None or pair.high is None else points_span(pair.low, pair.high, places)
    if a.metrics.accuracy is None or b.metrics.accuracy is None or a.metrics.examples != b.metrics.examples:
        return None
    return a.metrics.accuracy - b.metrics.accuracy, "no interval"


def headline(run: Run) -> list[Markup]:
    """The run in a few sentences; the first is the headline."""
    model = subject(run)
    if model is None:
        found = next((each for each in run.models if each.metrics.accuracy is not None), None)
        start = Markup("There is no student in this run.")
        return [start] if found is None else [start, Markup("{} gives {}.").format(found.label, _accuracy(run, found))]
    sentences = [_main(run, model)]
    if (gain := _gain(run)) is not None:
        sentences.append(gain)
    if (small := _int8(run)) is not None:
        sentences.append(small)
    return sentences


def _main(run: Run, model: Model) -> Markup:
    teacher = run.role("teacher")
    clauses: list[Markup] = []
    smaller = shrink(teacher.metrics.parameters, model.metrics.parameters) if teacher else None
    if smaller is not None:
        clauses.append(Markup("has {} parameters").format(_more_or_fewer(smaller)))
    timed = speed(run, model)
    if timed is not None:
        word, span = _faster(timed[1])
        clauses.append(Markup("answers {} ({})").format(strong(word), span))
    lost = difference(run, model, teacher)
    compared = bool(clauses)
    clauses.append(Markup("gives {}").format(_accuracy(run, model)) if model.metrics.accuracy is not None else _unjudged(model))
    if lost is None and compared:
        clauses[0] += Markup(" as its teacher" if "as many" in clauses[0] else " than its teacher")
    sentence = _join(clauses)
    if lost is not None:
        sentence += Markup(", {} its teacher ({})").format(_against(lost[0], decimals(run.examples(model))), lost[1])
    name = "The student trained alone" if model.roles[0] == "alone" else "The student"
    return Markup("{} {}.").format(name, sentence)


def _unjudged(model: Model) -> Markup:
    if model.metrics.test_perplexity is not None and model.metrics.predictions:
        perplexity, tokens = strong(f"{model.metrics.test_perplexity:.4g}"), f"{model.metrics.predictions:,}"
        return Markup("has a perplexity of {} on {} test tokens").format(perplexity, tokens)
    if model.metrics.examples:
        return Markup("was tested on {} examples by the figures of its own task, which its metrics.json holds").format(strong(f"{model.metrics.examples:,}"))
    if model.metrics.validation_accuracy is None:
        return Markup("was not tested")
    return Markup("was not tested; on the validation split, which chose its epoch, it gives {}").format(strong(percent(model.metrics.validation_accuracy)))


def _join(clauses: list[Markup]) -> Markup:
    return clauses[0] if len(clauses) == 1 else Markup(", ").join(clauses[:-1]) + Markup(" and ") + clauses[-1]


def _accuracy(run: Run, model: Model) -> Markup:
    metrics, examples = model.metrics, run.examples(model)
    places = decimals(examples)
    text = strong(percent(metrics.accuracy or 0.0, places))
    if metrics.accuracy_low is not None and metrics.accuracy_high is not None:
        text += f" ({percent_span(metrics.accuracy_low, metrics.accuracy_high, places)})"
    return text + (f" on {examples:,} {run.split} {run.noun}" if examples else f" on the {run.split} split")


def _more_or_fewer(ratio: float) -> Markup:
    if 0.995 < ratio < 1.005:
        return strong("as many")
    return strong(f"{times(ratio)} fewer" if ratio > 1 else f"{times(1 / ratio)} more")


def _faster(ratio: Ratio) -> tuple[str, str]:
    """`4.1x faster` and its interval; turned round for what is slower."""
    slower = ratio.ratio < 1
    word = f"{times(1 / ratio.ratio)} slower" if slower else f"{times(ratio.ratio)} faster"
    if ratio.low is None or ratio.high is None:
        return word, "no interval"
    return word, f"95% CI {times_span(1 / ratio.high, 1 / ratio.low) if slower else times_span(ratio.low, ratio.high)}"


def _against(value: float, places: int) -> Markup:
    text = points(value, places)
    if text[0].isdigit():
        return strong("level with")
    return Markup("{} {}").format(strong(f"{text[1:]} points"), "above" if value > 0 else "under")


def _gain(run: Run) -> Markup | None:
    """What distillation added, said plainly where it added nothing."""
    student, alone = run.role("student"), run.role("alone")
    if (pair := run.row_pair(student, alone)) is not None and alone is not None and alone.metrics.test_perplexity is not None:
        return _gain_of_tokens(pair, alone.metrics.test_perplexity)
    found = difference(run, student, alone)
    if found is None:
        return None
    value, span = found
    places = decimals(run.examples(student))
    told = strong(f"{points(value, places)} points")
    if value <= 0:
        return Markup("Distillation did not help: {} against the same student alone ({}).").format(told, span)
    pair = run.pair(student, alone)
    if pair is None or pair.low is None:
        return Markup("Distillation gave {} against the same student alone ({}).").format(told, span)
    if pair.low > 0:
        return Markup("Distillation helped: {} against the same student alone ({}).").format(told, span)
    return Markup("Distillation gave {} against the same student alone ({}), too little to tell from chance here.").format(told, span)


def _gain_of_tokens(pair: RowPair, alone: float) -> Markup:
    told = strong(f"{pair.difference:+.4f} nats a token")
    against = Markup("against the same student alone, whose perplexity is {} (95% CI over {} rows {:+.4f} to {:+.4f})").format(
        f"{alone:.4g}", f"{pair.rows:,}", pair.low, pair.high
    )
    if pair.difference >= 0:
        return Markup("Distillation did not help: {} {}.").format(told, against)
    if pair.high >= 0:
        return Markup("Distillation gave {} {}, too little to tell from chance here.").format(told, against)
    return Markup("Distillation helped: {} {}.").format(told, against)


def _int8(run: Run) -> Markup | None:
    small, whole = run.role("int8"), run.role("shipped")
    if small is None or small is subject(run):
        return None
    clauses: list[Markup] = []
    if small.metrics.file_bytes:
        clauses.append(Markup("takes {}").format(strong(size(small.metrics.file_bytes))))
        ratio = shrink(whole.metrics.file_bytes, small.metrics.file_bytes) if whole else None
        if ratio is not None:
            clauses[-1] += f" ({_smaller(ratio)} than the float file)"
    if (faster := run.ratio(run.role("teacher"), small, "latency")) is not None:
        word, span = _faster(faster)
        clauses.append(Markup("answers {} than the teacher ({})").format(strong(word), span.removeprefix("95% CI ")))
    if small.metrics.accuracy is not None:
        clauses.append(Markup("gives {}").format(_accuracy(run, small)))
    return Markup("As INT8 it {}.").format(_join(clauses)) if clauses else None


def _smaller(ratio: float) -> str:
    return f"{times(ratio)} smaller" if ratio >= 1 else f"{times(1 / ratio)} larger"


def shrink(before: float | None, after: float | None) -> float | None:
    """How many times less, where both are known and neither is zero."""
    return before / after if before and after else None


def unknown(run: Run) -> list[str]:
    """What this run cannot say, and why."""
    model, said = subject(run), []
    if run.role("teacher") is None:
        said.append("There is no teacher in this run, so what was lost against one is not known.")
    if model is not None and "student" in model.roles and run.role("alone") is None:
        said.append("The same student was not trained alone, so what distillation added is not known.")
    if model is not None and "alone" in model.roles:
        said.append("Nothing was distilled.")
    if run.fidelity is None and all(each.metrics.accuracy is None and not (each.metrics.examples or each.metrics.predictions) for each in run.models):
        said.append("No test split was evaluated.")
    if run.measurement is None:
        said.append("Speed was not measured.")
    elif model is not None and run.role("teacher") is not None and speed(run, model) is None:
        said.append("Speed was not compared with the teacher's.")
    if run.role("int8") is None:
        said.append("No INT8 file was made.")
    return said


def figures(run: Run) -> list[Figure]:
    """The few figures to show large under the headline."""
    model, teacher = subject(run), run.role("teacher")
    if model is None:
        return []
    places, shown = decimals(run.examples(model)), []
    if model.metrics.accuracy is not None:
        low, high = model.metrics.accuracy_low, model.metrics.accuracy_high
        said = [] if low is None or high is None else [percent_span(low, high, places)]
        said += [] if model.metrics.errors is None else [f"{model.metrics.errors:,} errors"]
        shown.append(Figure("Accuracy", percent(model.metrics.accuracy, places), "", ", ".join(said)))
    for name, other in (("Against the teacher", teacher), ("Distillation's gain", run.role("alone") if "student" in model.roles else None)):
        if (found := difference(run, model, other)) is not None:
            shown.append(Figure(name, points(found[0], places), "points", found[1]))
    if teacher is not None and (ratio := shrink(teacher.metrics.parameters, model.metrics.parameters)) is not None:
        word = "fewer" if ratio >= 1 else "more"
        detail = f"{model.metrics.parameters:,} instead of {teacher.metrics.parameters:,}"
        shown.append(Figure("Parameters", times(max(ratio, 1 / ratio)), word, detail))
    if (timed := speed(run, model)) is not None:
        word, span = _faster(timed[1])
        value, unit = word.split(" ")
        shown.append(Figure("Latency, batch 1", value, unit, span))
    return shown


def verdict(run: Run, pair: Pair) -> Markup:
    """A paired test in words."""
    a, b, noun = run.label(pair.a), run.label(pair.b), run.noun
    examples = run.fidelity.examples if run.fidelity else None
    places = decimals(examples)
    counts = Markup("{}: only {} is right on {}, only {} on {}").format(
        strong(f"{a} against {b}"), a, f"{pair.a_only:,} {noun if pair.a_only != 1 else noun.removesuffix('s')}", b, f"{pair.b_only:,}"
    )
    if pair.a_only == pair.b_only == 0:
        return Markup("{}: right and wrong on the same {}.").format(strong(f"{a} against {b}"), noun)
    said = f"{points(pair.difference, places)} points"
    said += f" ({points_span(pair.low, pair.high, places)})" if pair.low is not None and pair.high is not None else ""
    judged = "more than chance explains" if pair.p < 0.05 else "no difference is shown"
    return Markup("{}; {}; {}: {}.").format(counts, said, chance(pair.p), judged)
