"""Measure every stage's file side by side, in one fresh process, and add the figures to the artifacts."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from limbeck.core import lookup
from limbeck.core.artifact import Artifact
from limbeck.core.errors import MismatchError
from limbeck.core.events import Listener, Note, StageStarted
from limbeck.core.files import digest, read_json, write_json
from limbeck.measure.latency import ModelFile, measure_files
from limbeck.measure.machine import machine
from limbeck.models.exits import Exits

from .anytime import Until
from .modules import example_of, inputs_of, load_module
from .recipe import ExportStage, Recipe

__all__ = ["measured"]

_FIGURES = (
    "file_bytes",
    "latency_ms_p50", "latency_ms_p90", "latency_ms_p99", "latency_n", "throughput_per_s", "throughput_batch", "throughput_n", "peak_memory_bytes",
    "energy_j_per_inference",
)  # fmt: skip


def measured(recipe: Recipe, out: Path, digests: Mapping[str, str], listener: Listener) -> None:
    """Write `measurement.json`, and each artifact's figures; what was measured already on this machine, of the same files, stands.

    A trained module that the recipe does not export itself is measured through an ONNX file made for the purpose; one that takes more than one input, such as
    a graph network, cannot be exported, and a note says that it is not measured.
    """
    if not recipe.measure.latency:
        (out / "measurement.json").unlink(missing_ok=True)
        return
    cpu = machine()["cpu"]
    key = digest({"models": dict(digests), "how": recipe.measure.model_dump(mode="json"), "cpu": cpu})
    file = out / "measurement.json"
    artifacts = {name: Artifact.open(out / "stages" / name, verify=False) for name in recipe.stages}
    found: dict[str, Any] = read_json(file) if file.is_file() else {}
    if found.get("key") != key:
        listener(StageStarted("measurement", "measure"))
        found = _measure(recipe, out, artifacts, listener) | {"key": key}
        if not found["models"]:
            file.unlink(missing_ok=True)
            return
        for text in found["notes"]:
            listener(Note(text, "measurement", loud="busy" in text))
        write_json(file, found)
    for name, artifact in artifacts.items():  # also one that was made again since, to the same bits
        told = found["models"].get(name, {})
        figures = {figure: told[figure] for figure in _FIGURES if figure in told}
        for one in found["models"]:
            if one.startswith(f"{name}."):  # an exit's
                figures[f"{one.partition('.')[2]}_latency_ms_p50"] = found["models"][one]["latency_ms_p50"]
        if not figures.keys() <= artifact.metrics.keys():
            artifact.add_metrics(figures)


def _measure(recipe: Recipe, out: Path, artifacts: Mapping[str, Artifact], listener: Listener) -> dict[str, Any]:
    """Measure each file once, and give every stage that it stands for its figures."""
    paths: dict[str, Path] = {}
    for name in recipe.stages:
        path = _file(recipe, out, artifacts, name)
        if isinstance(path, str):
            listener(Note(path, name))
        else:
            paths |= {name: path} | _exits(out, artifacts[name], name)
    if not paths:
        return {"models": {}}
    first: dict[Path, str] = {}
    for name, path in paths.items():
        first.setdefault(path, name)
    specs = {name: artifacts[name.partition(".")[0]].spec for name in first.values()}
    files = {name: ModelFile(path, tuple(specs[name]["in_shape"]), specs[name].get("takes", {}).get("input", "float32")) for path, name in first.items()}
    how = recipe.measure
    found = measure_files(files, threads=how.threads, seconds=how.seconds * len(files), batch=how.batch, seed=recipe.seed)
    found["models"] = {name: found["models"][first[path]] | _packed(artifacts.get(name)) for name, path in paths.items()}
    found["ratios"] += [{**ratio, "b": name} for ratio in found["ratios"] for name, path in paths.items() if first[path] == ratio["b"] and name != ratio["b"]]
    return found


def _packed(artifact: Artifact | None) -> dict[str, Any]:
    """The size of a packed module, which is its own and not that of the file in which its latency is measured."""
    return {"file_bytes": artifact.model_file.stat().st_size} if artifact is not None and "packed" in artifact.spec else {}


def _file(recipe: Recipe, out: Path, artifacts: Mapping[str, Artifact], name: str) -> Path | str:
    """Return the file that stands for a stage's model: its own, the one that an export stage made of it, or one made now; or why there can be none."""
    artifact = artifacts[name]
    if artifact.kind == "graph":
        return artifact.model_file
    for other, stage in recipe.stages.items():
        if isinstance(stage, ExportStage) and stage.of == name and artifacts[other].kind == "graph":
            return artifacts[other].model_file
    path = out / "cache" / "measured" / f"{name}-{artifact.digest[:12]}.onnx"
    if path.is_file():
        return path
    model = load_module(artifact)
    if len(inputs := inputs_of(model)) > 1:
        return f"its latency is not measured: a {type(model).__name__} takes {', '.join(inputs)}, and an exported file one input"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        lookup.build("export", "onnx", {}).export(model, example_of(artifact.spec), path)
    except MismatchError as error:
        if artifact.spec["builder"] != "hf":  # of another library's architectures not each can be said in ONNX
            raise
        return f"its latency is not measured: {error}"
    return path


def _exits(out: Path, artifact: Artifact, name: str) -> dict[str, Path]:
    """Return a file for each exit of a trained network that ends there, `stage.exit`; none for a model without exits."""
    if artifact.kind != "module" or not (artifact.path / "exits.json").is_file():
        return {}
    model = load_module(artifact)
    assert isinstance(model, Exits), "only a network with exits leaves exits.json"
    found = {exit: out / "cache" / "measured" / f"{name}.{exit}-{artifact.digest[:12]}.onnx" for exit in model.exits}
    for exit, path in found.items():
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            lookup.build("export", "onnx", {}).export(Until(model, exit), torch.zeros(2, *artifact.spec["in_shape"]), path)
    return {f"{name}.{exit}": path for exit, path in found.items()}
