"""An artifact: one immutable folder that holds a model, how to rebuild it, where it comes from and what was measured of it.

manifest.json            kind, name, format, and the SHA-256 of every file below that never changes
spec.json                how to rebuild it: builder and options; classes; preprocessing
model.safetensors        weights, for kind `module`;   model.onnx and the like, for kind `graph`
golden.safetensors       a few inputs and what the model answered
predictions.safetensors  logits, labels and ids of the test split, where there is one
history.json             what was logged, epoch by epoch
lineage.json             the stage's hash, its parents' digests, versions, seed, data fingerprint
recipe.yaml              the recipe as resolved
checkpoint/              the last training state, so that more epochs can continue from it
metrics.json             every figure; the only file that later measurement may add to
memory/                  what a later task may replay of the examples that were seen, where there is replay
players/NAME/            an artifact of each other player that ships, sealed by its own manifest
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from .errors import ArtifactError
from .files import digest, read_json, sha256, write_json

__all__ = ["FORMAT", "Artifact", "Kind", "seal"]

FORMAT = 1
Kind = Literal["module", "graph"]
_MUTABLE = {"manifest.json", "metrics.json"}


def _mutable(parts: tuple[str, ...]) -> bool:
    """Whether a file of an artifact, or of a player's within it, may change."""
    return parts[-1] in _MUTABLE and (len(parts) == 1 or (len(parts) == 3 and parts[0] == "players"))


def _sound(manifest: Any) -> bool:
    """Whether a manifest of our format has all that is read of it, and names no file outside its folder."""
    files = manifest.get("files")
    return (
        all(isinstance(manifest.get(key), str) for key in ("name", "model", "stage_hash"))
        and manifest.get("kind") in get_args(Kind)
        and isinstance(files, dict)
        and manifest["model"] in files
        and all(isinstance(told, dict) and {"sha256", "bytes"} <= told.keys() for told in files.values())
        and not any(Path(name).is_absolute() or ".." in Path(name).parts for name in files)
    )


@dataclass(frozen=True)
class Artifact:
    """An immutable folder with a model; open one with `Artifact.open`, make one with `seal`."""

    path: Path
    manifest: Mapping[str, Any]

    @classmethod
    def open(cls, path: Path, *, verify: bool = True) -> "Artifact":
        """Open a folder; with `verify` every byte is compared with the manifest.

        Raises:
            ArtifactError: no manifest, another format, a file missing, or bytes that do not match.
        """
        manifest = read_json(path / "manifest.json")
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            told = f"format {manifest['format']!r}" if isinstance(manifest, dict) and "format" in manifest else "no format"
            raise ArtifactError(f"{path} is not an artifact of format {FORMAT} (its manifest names {told}): make it again with this version of limbeck")
        if not _sound(manifest):
            raise ArtifactError(f"{path / 'manifest.json'} lacks what a manifest holds: it is damaged; delete {path} and run the recipe again")
        for name, told in manifest["files"].items():
            file = path / name
            if not file.is_file():
                raise ArtifactError(f"{file} is missing from its artifact: delete {path} and run the recipe again")
            if file.stat().st_size != told["bytes"] or (verify and sha256(file) != told["sha256"]):
                raise ArtifactError(f"{file} does not match its manifest: it is damaged; delete {path} and run the recipe again")
        return cls(path, manifest)

    @property
    def name(self) -> str:
        return self.manifest["name"]

    @property
    def kind(self) -> Kind:
        return self.manifest["kind"]

    @property
    def stage_hash(self) -> str:
        """The hash of everything the artifact depends on."""
        return self.manifest["stage_hash"]

    @property
    def digest(self) -> str:
        """The digest of what a later stage can see of it: weights or graph (`model.*`, so data beside a graph count), its memory, and how to rebuild."""
        seen = ("spec.json", self.manifest["model"])
        return digest({name: told["sha256"] for name, told in self.manifest["files"].items() if name in seen or name.startswith(("model.", "memory/"))})

    @property
    def spec(self) -> dict[str, Any]:
        return read_json(self.path / "spec.json")

    @property
    def model_file(self) -> Path:
        """The weights of a module, or the file of a graph."""
        return self.path / self.manifest["model"]

    @property
    def metrics(self) -> dict[str, Any]:
        return read_json(self.path / "metrics.json")

    @property
    def players(self) -> dict[str, "Artifact"]:
        """The other players that ship with it, every byte compared with their manifests."""
        folder = self.path / "players"
        return {path.name: Artifact.open(path) for path in sorted(folder.iterdir())} if folder.is_dir() else {}

    def add_metrics(self, found: Mapping[str, Any]) -> None:
        """Add figures that were measured later."""
        write_json(self.path / "metrics.json", {**self.metrics, **found})


def seal(folder: Path, *, name: str, kind: Kind, model: str, stage_hash: str, spec: Mapping[str, Any], metrics: Mapping[str, Any]) -> None:
    """Write `spec.json`, `metrics.json` and the manifest over what lies in `folder`: the last act before the folder takes its place."""
    write_json(folder / "spec.json", dict(spec))
    write_json(folder / "metrics.json", dict(metrics))
    files = {
        file.relative_to(folder).as_posix(): {"sha256": sha256(file), "bytes": file.stat().st_size}
        for file in sorted(folder.rglob("*")) if file.is_file() and not _mutable(file.relative_to(folder).parts)
    }  # fmt: skip
    assert model in files, f"{name}: {model} is not in the folder to seal"
    write_json(folder / "manifest.json", {"format": FORMAT, "name": name, "kind": kind, "model": model, "stage_hash": stage_hash, "files": files})
