"""Sealing and opening artifacts."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from limbeck.core.artifact import Artifact, seal
from limbeck.core.errors import ArtifactError

SPEC = {"builder": "models.cnn", "options": {"width": 8}, "classes": ["a", "b"]}


def make(path: Path, *, weight: float = 1.0, spec: dict[str, Any] = SPEC, metrics: dict[str, Any] | None = None, model: str = "model.safetensors") -> Artifact:
    (path / "checkpoint" / "deep").mkdir(parents=True)
    (path / model).write_bytes(save({"w": torch.full((3,), weight)}))
    (path / "history.json").write_text("[]")
    (path / "checkpoint" / "state.json").write_text("{}")
    (path / "checkpoint" / "manifest.json").write_text("{}")
    (path / "checkpoint" / "metrics.json").write_text("{}")
    (path / "checkpoint" / "deep" / "rng.safetensors").write_bytes(b"abc")
    kind = "module" if model.endswith("safetensors") else "graph"
    seal(path, name="student", kind=kind, model=model, stage_hash="f00d", spec=spec, metrics={"accuracy": 0.9} if metrics is None else metrics)
    return Artifact.open(path)


def test_what_was_sealed_comes_back(tmp_path: Path):
    artifact = make(tmp_path / "a")
    assert (artifact.name, artifact.kind, artifact.stage_hash) == ("student", "module", "f00d")
    assert artifact.spec == SPEC
    assert artifact.metrics == {"accuracy": 0.9}
    assert artifact.model_file == tmp_path / "a" / "model.safetensors"


def test_the_manifest_holds_every_file_that_never_changes_and_no_other(tmp_path: Path):
    files = make(tmp_path / "a").manifest["files"]
    assert set(files) == {
        "spec.json",
        "model.safetensors",
        "history.json",
        "checkpoint/state.json",
        "checkpoint/manifest.json",
        "checkpoint/metrics.json",
        "checkpoint/deep/rng.safetensors",
    }
    assert files["checkpoint/deep/rng.safetensors"] == {"bytes": 3, "sha256": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"}


@pytest.mark.parametrize("name", ["spec.json", "model.safetensors", "history.json", "checkpoint/metrics.json", "checkpoint/deep/rng.safetensors"])
def test_one_flipped_bit_is_found(tmp_path: Path, name: str):
    make(tmp_path / "a")
    file = tmp_path / "a" / name
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(ArtifactError, match=rf"{file} does not match its manifest: it is damaged; delete {tmp_path / 'a'} and run the recipe again"):
        Artifact.open(tmp_path / "a")
    assert Artifact.open(tmp_path / "a", verify=False).name == "student"


@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: data + b"x", lambda _: b""], ids=["shorter", "longer", "empty"])
def test_another_length_is_found_without_reading_the_bytes(tmp_path: Path, change: Callable[[bytes], bytes]):
    make(tmp_path / "a")
    file = tmp_path / "a" / "model.safetensors"
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(ArtifactError, match=r"model\.safetensors does not match its manifest"):
        Artifact.open(tmp_path / "a", verify=False)


@pytest.mark.parametrize("name", ["model.safetensors", "checkpoint/deep/rng.safetensors"])
def test_a_missing_file_is_named(tmp_path: Path, name: str):
    make(tmp_path / "a")
    (tmp_path / "a" / name).unlink()
    with pytest.raises(ArtifactError, match=f"{name} is missing from its artifact: delete"):
        Artifact.open(tmp_path / "a", verify=False)


def test_a_file_that_came_later_is_no_damage(tmp_path: Path):
    artifact = make(tmp_path / "a")
    (tmp_path / "a" / "notes.txt").write_text("mine")
    assert Artifact.open(tmp_path / "a").digest == artifact.digest


@pytest.mark.parametrize(
    ("manifest", "told"),
    [
        ({"format": 2}, "format 2"),
        ({"format": "1"}, "format '1'"),
        ({}, "no format"),
        ([], "no format"),
        ("x", "no format"),
    ],
)
def test_another_format_is_refused_with_both_formats(tmp_path: Path, manifest: object, told: str):
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match=rf"is not an artifact of format 1 \(its manifest names {told}\): make it again with this version of limbeck"):
        Artifact.open(tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        {"name": None},
        {"name": 3},
        {"stage_hash": None},
        {"kind": "modulf"},
        {"model": "other.safetensors"},
        {"files": []},
        {"files": {}},
        {"files": {"model.safetensors": {"bytes": 3}}},
        {"files": {"model.safetensors": "abc"}},
    ],
    ids=str,
)
def test_a_manifest_that_lacks_something_is_refused(tmp_path: Path, damage: dict[str, Any]):
    manifest = dict(make(tmp_path).manifest) | damage
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match=r"manifest\.json lacks what a manifest holds: it is damaged; delete"):
        Artifact.open(tmp_path)


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "a/../../secret"])
def test_a_manifest_may_not_reach_outside_its_folder(tmp_path: Path, name: str):
    artifact = make(tmp_path / "a")
    files = {**artifact.manifest["files"], name: {"bytes": 0, "sha256": ""}}
    (tmp_path / "a" / "manifest.json").write_text(json.dumps({**artifact.manifest, "files": files}))
    with pytest.raises(ArtifactError, match="lacks what a manifest holds"):
        Artifact.open(tmp_path / "a")


def test_what_is_no_artifact_is_refused(tmp_path: Path):
    with pytest.raises(ArtifactError, match=r"manifest\.json is missing: is .*nowhere an artifact"):
        Artifact.open(tmp_path / "nowhere")
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"manifest\.json is not JSON"):
        Artifact.open(tmp_path)


def test_metrics_may_be_added_and_change_neither_seal_nor_digest(tmp_path: Path):
    artifact = make(tmp_path / "a")
    before = (tmp_path / "a" / "manifest.json").read_bytes(), artifact.digest
    artifact.add_metrics({"latency_ms_p50": 1.5, "accuracy": 0.8})
    again = Artifact.open(tmp_path / "a")
    assert again.metrics == artifact.metrics == {"accuracy": 0.8, "latency_ms_p50": 1.5}
    assert ((tmp_path / "a" / "manifest.json").read_bytes(), again.digest) == before


def test_the_digest_is_that_of_weights_and_spec(tmp_path: Path):
    first = make(tmp_path / "a")
    assert make(tmp_path / "b", metrics={"accuracy": 0.1}).digest == first.digest
    assert make(tmp_path / "c", weight=1.0001).digest != first.digest
    assert make(tmp_path / "d", spec={**SPEC, "classes": ["b", "a"]}).digest != first.digest
    (tmp_path / "a" / "history.json").write_text("[1]")
    seal(tmp_path / "a", name="other", kind="module", model="model.safetensors", stage_hash="beef", spec=SPEC, metrics={})
    assert Artifact.open(tmp_path / "a").digest == first.digest


@pytest.mark.parametrize("model", ["model.onnx", "student.pte"])
def test_the_digest_sees_a_graph_by_whatever_name_and_the_data_beside_it(tmp_path: Path, model: str):
    first = make(tmp_path / "a", model=model)
    assert make(tmp_path / "b", model=model).digest == first.digest
    assert make(tmp_path / "c", model=model, weight=2).digest != first.digest
    (tmp_path / "a" / "model.onnx.data").write_bytes(b"large weights")
    seal(tmp_path / "a", name="student", kind="graph", model=model, stage_hash="f00d", spec=SPEC, metrics={})
    assert Artifact.open(tmp_path / "a").digest != first.digest


def test_a_folder_without_its_model_is_not_sealed(tmp_path: Path):
    with pytest.raises(AssertionError, match=r"model\.onnx is not in the folder to seal"):
        seal(tmp_path, name="a", kind="graph", model="model.onnx", stage_hash="", spec={}, metrics={})
    assert not (tmp_path / "manifest.json").exists()


def test_damaged_metrics_are_named(tmp_path: Path):
    artifact = make(tmp_path)
    (tmp_path / "metrics.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"metrics\.json is not JSON"):
        artifact.add_metrics({"a": 1})
