"""What causal language models write, side by side: one beginning after the other."""

from dataclasses import dataclass

from ._run import Run

__all__ = ["Beginning", "beginnings"]


@dataclass(frozen=True)
class Beginning:
    """A beginning of the data, what each model wrote after it, by its label, and what the data go on with."""

    prompt: str
    written: list[tuple[str, str]]
    text: str


def beginnings(run: Run) -> list[Beginning]:
    """Every beginning with what all models wrote that began with it; none where no model writes."""
    found: dict[str, Beginning] = {}
    for model in run.models:
        for sample in run.samples[model.stage].samples if model.stage in run.samples else ():
            found.setdefault(sample.prompt, Beginning(sample.prompt, [], sample.text)).written.append((model.label, sample.written))
    return list(found.values())
