"""`limbeck measure`: artifacts side by side, whichever runs they come from."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck.core import lookup
from limbeck.core.artifact import Artifact
from limbeck.core.errors import RecipeError

from .figures import file_size, percent
from .output import complain, rendered, say, say_json, stdout_kept

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["measure_and_tell"]

_KNOWN = ("accuracy", "accuracy_low", "accuracy_high", "parameters", "macs")
"""What an artifact's own metrics add to what is measured here."""


def measure_and_tell(paths: Sequence[Path], *, threads: int, seconds: float, batch: int, json: bool) -> None:
    """Measure artifacts in fresh processes and print the figures."""
    from limbeck.measure.latency import ModelFile, measure_files

    if len({path.resolve() for path in paths}) < len(paths):
        raise RecipeError("an artifact is named twice: name each once")
    opened = {str(path): Artifact.open(path) for path in paths}
    with tempfile.TemporaryDirectory(prefix="limbeck-") as folder:
        with stdout_kept():
            files = {
                name: ModelFile(
                    _file(artifact, Path(folder) / f"{number}.onnx"), tuple(artifact.spec["in_shape"]), artifact.spec.get("takes", {}).get("input", "float32")
                )
                for number, (name, artifact) in enumerate(opened.items())
            }
        found = measure_files(files, threads=threads, seconds=seconds * len(files), batch=batch)
    for name, figures in found["models"].items():
        metrics = opened[name].metrics
        figures |= {key: metrics[key] for key in _KNOWN if key in metrics}
    if json:
        say_json(found)
        return
    for text in found["notes"]:
        complain(text, prefix="")
    say(rendered(_table(found["models"], found["ratios"], list(files), batch)))


def _file(artifact: Artifact, path: Path) -> Path:
    """The artifact's own file; for a trained module, an ONNX file made of it at `path`."""
    if artifact.kind == "graph":
        return artifact.model_file
    from limbeck.pipeline.modules import example_of, load_module

    complain(f"{artifact.path} holds a trained module: it is measured through an ONNX file made of it", prefix="")
    lookup.build("export", "onnx", {}).export(load_module(artifact), example_of(artifact.spec), path)
    return path


def _table(models: Mapping[str, Mapping[str, Any]], ratios: Sequence[Mapping[str, Any]], order: Sequence[str], batch: int) -> "Table":
    from rich.table import Table
    from rich.text import Text

    faster = {ratio["b"]: f"{ratio['ratio']:.2f}x ({ratio['low']:.2f}-{ratio['high']:.2f})" for ratio in ratios}
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("artifact")
    for heading in ("accuracy", "parameters", "file", "p50", "p90", "p99", f"per second at {batch}", "memory", *(["faster than the first"] if ratios else [])):
        table.add_column(heading, justify="right")
    for name in order:
        told = models[name]
        cells = [
            name,
            percent(told["accuracy"]) if "accuracy" in told else "-",
            f"{told['parameters']:,}" if "parameters" in told else "-",
            file_size(told["file_bytes"]),
            *(f"{told[f'latency_ms_{quantile}']:.3g} ms" for quantile in ("p50", "p90", "p99")),
            f"{told['throughput_per_s']:,.0f}",
            file_size(told["peak_memory_bytes"]),
            *([faster.get(name, "-")] if ratios else []),
        ]
        table.add_row(*(Text(cell) for cell in cells))
    return table
