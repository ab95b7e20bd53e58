"""Compare what the stages' models say of the same test examples."""

from collections.abc import Mapping
from pathlib import Path

from limbeck.core.artifact import Artifact
from limbeck.core.files import digest, read_json, write_json
from limbeck.measure.fidelity import per_class, reliability
from limbeck.measure.statistics import by_rows, mcnemar

from .modules import read_tensors
from .recipe import Recipe

__all__ = ["compare"]

_PREDICTIONS, _ROWS = "predictions.safetensors", "rows.safetensors"
_PAIRS = (("student", "teacher"), ("student", "alone"), ("int8", "shipped"), ("int8", "teacher"))


def compare(recipe: Recipe, out: Path, roles: Mapping[str, str | None], digests: Mapping[str, str]) -> None:
    """Write `fidelity.json`: each model's accuracy by class and its reliability, and McNemar's test between the pairs that matter.

    It is about classes: a run whose models answer anything else has no such file.
    """
    file = out / "fidelity.json"
    artifacts = {name: Artifact.open(out / "stages" / name, verify=False) for name in recipe.stages}
    _compare_rows(out, artifacts, roles)
    predicted = {name: one.manifest["files"][_PREDICTIONS]["sha256"] for name, one in artifacts.items() if _PREDICTIONS in one.manifest["files"]}
    key = digest({"models": dict(digests), "predictions": predicted, "roles": dict(roles)})
    if file.is_file() and read_json(file).get("key") == key:
        return
    if not predicted:
        file.unlink(missing_ok=True)
        return
    if any("link" in artifacts[name].spec for name in predicted):  # other answers than classes have neither classes right nor a confidence
        file.unlink(missing_ok=True)
        return
    said = {name: read_tensors(artifacts[name].path / _PREDICTIONS) for name in predicted}
    specs = {name: artifacts[name].spec for name in said}
    spec = max(specs.values(), key=lambda one: one["classes"])  # a model of an earlier task knows fewer
    correct = {name: told["logits"].argmax(1).eq(told["labels"]).numpy() for name, told in said.items()}
    pairs = []
    for one, other in _PAIRS:
        a, b = roles[one], roles[other]
        if a in said and b in said and said[a]["ids"].equal(said[b]["ids"]):
            pairs.append({"a": a, "b": b, **vars(mcnemar(correct[a], correct[b]))})
    models = {
        name: {"per_class": per_class(told["logits"], told["labels"], specs[name]["classes"]), "reliability": reliability(told["logits"], told["labels"])}
        for name, told in said.items()
    }
    examples = len(next(iter(correct.values())))
    write_json(file, {"key": key, "split": "test", "examples": examples, "class_names": spec["class_names"], "models": models, "pairs": pairs})


def _compare_rows(out: Path, artifacts: Mapping[str, Artifact], roles: Mapping[str, str | None]) -> None:
    """Write `rows.json`: where models were scored by rows of tokens, the difference of their mean loss, nats a token, between the pairs that matter."""
    file = out / "rows.json"
    held = {name: read_tensors(one.path / _ROWS) for name, one in artifacts.items() if _ROWS in one.manifest["files"]}
    if not held:
        file.unlink(missing_ok=True)
        return
    pairs = []
    for one, other in _PAIRS:
        a, b = roles[one], roles[other]
        if a in held and b in held and all(held[a][name].equal(held[b][name]) for name in ("ids", "count")):
            found = by_rows((held[a]["loss"] - held[b]["loss"]).numpy(), held[a]["count"].numpy())
            pairs.append({"a": a, "b": b, "difference": found.mean, "low": found.low, "high": found.high, "rows": found.n})
    write_json(file, {"split": "test", "pairs": pairs})
