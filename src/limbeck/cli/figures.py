"""Figures as a person reads them in one line."""

from collections.abc import Mapping

__all__ = ["clock", "file_size", "of_epoch", "of_stage", "percent"]

_SHARES = ("accuracy", "agreement")


def percent(share: float) -> str:
    """Return a share as `94.4%`."""
    return f"{100 * share:.1f}%"


def file_size(count: float) -> str:
    """Return bytes as `506 kB`, a kB being 1,000 of them."""
    for unit in ("B", "kB", "MB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


def clock(seconds: float) -> str:
    """Return a duration as `0.8 s`, `1:15` or `1:01:40`."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def of_epoch(metrics: Mapping[str, float]) -> str:
    """Return the loss, and how the model does on the validation split, from what a step or an epoch reports."""
    loss = metrics.get("loss", metrics.get("train_loss"))
    scores = [name for name in metrics if name.startswith("validation_")]
    shown = [name for name in scores if not name.endswith("_loss")] or scores
    said = [] if loss is None else [f"loss {loss:.4f}"]
    return ", ".join(said + [f"{name.replace('_', ' ')} {_figure(name, metrics[name])}" for name in shown])


def of_stage(metrics: Mapping[str, float]) -> str:
    """Return what matters of a finished stage: accuracy or its task's own scores on the test split, parameters, the file's size, as far as they are known."""
    said = [f"accuracy {percent(metrics['accuracy'])}"] if "accuracy" in metrics else []
    said += [f"{name.replace('_', ' ')} {value:.4g}" for name, value in metrics.items() if name.startswith("test_") and name != "test_loss"]
    said += [f"{metrics['parameters']:,.0f} parameters"] if "parameters" in metrics else []
    return ", ".join(said + ([file_size(metrics["file_bytes"])] if "file_bytes" in metrics else []))


def _figure(name: str, value: float) -> str:
    return percent(value) if name.endswith(_SHARES) else f"{value:.4g}"
