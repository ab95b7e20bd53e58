"""Read a run's folder: what ran, what it measured, who plays which part."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from limbeck.core.errors import ArtifactError
from limbeck.core.files import read_json

from ._players import of_player, players
from ._schema import Epoch, ExitsFile, FidelityFile, HistoryFile, MeasurementFile, Metrics, Pair, Ratio, RowPair, RowsFile, RunFile, SamplesFile

ROLES = {"teacher": "Teacher", "alone": "Alone", "student": "Distilled", "shipped": "Exported", "int8": "INT8"}
MEANING = {
    "teacher": "the model that is taught from",
    "alone": "the student's architecture, trained without a teacher",
    "student": "the same architecture, taught",
    "shipped": "the distilled student as a file that runs without PyTorch",
    "int8": "that file with 8-bit weights and activations",
}
_NOUNS = {"image": "images", "text": "texts", "language": "tokens", "speech": "recordings", "graph": "nodes", "table": "rows"}
_R = TypeVar("_R", bound=BaseModel)


@dataclass(frozen=True)
class Model:
    """One model of the run: its stage, the parts it plays, its label, its look (a CSS class) and its figures."""

    stage: str
    roles: tuple[str, ...]
    label: str
    look: str
    metrics: Metrics


@dataclass(frozen=True)
class Run:
    """Everything that the files of a run say."""

    folder: Path
    record: RunFile
    histories: dict[str, list[Epoch]]
    lineages: dict[str, dict[str, Any]]
    fidelity: FidelityFile | None
    measurement: MeasurementFile | None
    exits: dict[str, ExitsFile] = field(default_factory=dict)
    players: dict[str, Metrics] = field(default_factory=dict)
    rows: RowsFile = field(default_factory=RowsFile)
    samples: dict[str, SamplesFile] = field(default_factory=dict)

    @cached_property
    def models(self) -> list[Model]:
        """Every stage's model: those that play a part first, teacher to INT8, then the others in the recipe's order, then the stages' other players."""
        playing: dict[str, list[str]] = {}
        for role in ROLES:
            stage = getattr(self.record.roles, role)
            if stage in self.record.stages:
                playing.setdefault(stage, []).append(role)
        models = [Model(stage, tuple(roles), ROLES[roles[0]], roles[0], self._metrics(stage)) for stage, roles in playing.items()]
        others = {stage: self._metrics(stage) for stage in self.stages if stage not in playing} | self.players
        return models + [Model(stage, (), stage, f"other{at % 3}", metrics) for at, (stage, metrics) in enumerate(others.items())]

    def _metrics(self, stage: str) -> Metrics:
        """A stage's figures; what the measurement of the file says goes before what the stage said."""
        own = self.record.stages[stage].metrics.model_dump(exclude_none=True)
        measured = self.measurement.models.get(stage) if self.measurement else None
        return Metrics.model_validate({**own, **(measured.model_dump(exclude_none=True) if measured else {})})

    def role(self, role: str) -> Model | None:
        """The model that plays a part, or None."""
        return next((model for model in self.models if role in model.roles), None)

    def label(self, stage: str) -> str:
        """What a reader calls a stage's model."""
        return next((model.label for model in self.models if model.stage == stage), stage)

    def pair(self, a: Model | None, b: Model | None) -> Pair | None:
        """The paired test of a against b, turned round where the file has b against a."""
        if a is None or b is None or self.fidelity is None:
            return None
        for pair in self.fidelity.pairs:
            if (pair.a, pair.b) == (a.stage, b.stage):
                return pair
            if (pair.a, pair.b) == (b.stage, a.stage):
                low, high = (None if end is None else -end for end in (pair.high, pair.low))
                return Pair(a=pair.b, b=pair.a, a_only=pair.b_only, b_only=pair.a_only, p=pair.p, difference=-pair.difference, low=low, high=high)
        return None

    def row_pair(self, a: Model | None, b: Model | None) -> RowPair | None:
        """The difference of the mean losses of a and b, turned round where the file has b against a."""
        if a is None or b is None:
            return None
        for pair in self.rows.pairs:
            if (pair.a, pair.b) == (a.stage, b.stage):
                return pair
            if (pair.a, pair.b) == (b.stage, a.stage):
                return RowPair(a=pair.b, b=pair.a, difference=-pair.difference, low=-pair.high, high=-pair.low, rows=pair.rows)
        return None

    def ratio(self, a: Model | None, b: Model | None, quantity: str) -> Ratio | None:
        """How many times faster b is than a, in a quantity whose name begins so; turned round where the file has b against a."""
        if a is None or b is None or self.measurement is None:
            return None
        for found in self.measurement.ratios:
            if not found.quantity.startswith(quantity):
                continue
            if (found.a, found.b) == (a.stage, b.stage):
                return found
            if (found.a, found.b) == (b.stage, a.stage):
                low, high = (None if end is None else 1 / end for end in (found.high, found.low))
                return Ratio(a=found.b, b=found.a, quantity=found.quantity, ratio=1 / found.ratio, low=low, high=high, n=found.n)
        return None

    @cached_property
    def split(self) -> str:
        return self.fidelity.split if self.fidelity else "test"

    @cached_property
    def _recipe(self) -> dict[str, dict[str, Any]]:
        """The mappings of the recipe; nothing where it is no YAML."""
        try:
            recipe = yaml.safe_load(self.record.recipe_yaml)
        except yaml.YAMLError:
            return {}
        return {key: value for key, value in recipe.items() if isinstance(value, dict)} if isinstance(recipe, dict) else {}

    @cached_property
    def stages(self) -> list[str]:
        """The stages that ran, in the recipe's order."""
        told = [stage for stage in self._recipe.get("stages", {}) if stage in self.record.stages]
        return told + [stage for stage in self.record.stages if stage not in told]

    @cached_property
    def noun(self) -> str:
        """What one example is called: images, where the recipe's task is one of images."""
        kind = self._recipe.get("task", {}).get("kind")
        return _NOUNS.get(kind, "examples") if isinstance(kind, str) else "examples"

    def examples(self, model: Model | None) -> int | None:
        """On how many examples a model's accuracy stands."""
        if model is not None and model.metrics.examples is not None:
            return model.metrics.examples
        return self.fidelity.examples if self.fidelity else None

    @cached_property
    def class_names(self) -> list[str]:
        return [str(name) for name in self.fidelity.class_names] if self.fidelity else []


def _parse(path: Path, schema: type[_R], turn: Callable[[Any], Any] | None = None) -> _R:
    told = read_json(path)
    try:
        return schema.model_validate(told if turn is None else turn(told))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(step) for step in first["loc"]) or "the whole file"
        raise ArtifactError(f"{path} is not what a run writes ({where}: {first['msg']}): it is damaged; run the recipe again") from None


def _lineage(path: Path) -> dict[str, Any]:
    lineage = read_json(path)
    if not isinstance(lineage, dict):
        raise ArtifactError(f"{path} is not what a run writes (the whole file: an object is needed): it is damaged; run the recipe again")
    return lineage


def _histories(stage: str, folder: Path) -> dict[str, list[Epoch]]:
    """The log of a stage's student under the stage's name, and that of each other player under `stage.player`."""
    file, others = folder / "history.json", players(folder)
    if not file.exists():
        return {}
    whose = {stage: "student"} | {f"{stage}.{player}": player for player in others}
    return {name: _parse(file, HistoryFile, partial(of_player, player=player) if others else None).epochs for name, player in whose.items()}


def read(out: Path) -> Run:
    """Read the files of a run; only `run.json` must be there.

    Raises:
        ArtifactError: no `run.json`, or a file that is damaged; the message names it.
    """
    record = _parse(out / "run.json", RunFile)
    folders = {stage: out / "stages" / stage for stage in record.stages}
    return Run(
        folder=out,
        record=record,
        histories={name: epochs for stage, folder in folders.items() for name, epochs in _histories(stage, folder).items()},
        lineages={stage: _lineage(file) for stage, folder in folders.items() if (file := folder / "lineage.json").exists()},
        fidelity=_parse(file, FidelityFile) if (file := out / "fidelity.json").exists() else None,
        measurement=_parse(file, MeasurementFile) if (file := out / "measurement.json").exists() else None,
        exits={stage: _parse(file, ExitsFile) for stage, folder in folders.items() if (file := folder / "exits.json").exists()},
        rows=_parse(file, RowsFile) if (file := out / "rows.json").exists() else RowsFile(),
        samples={stage: _parse(file, SamplesFile) for stage, folder in folders.items() if (file := folder / "samples.json").exists()},
        players={f"{stage}.{player}": _parse(file, Metrics) for stage, folder in folders.items() for player, file in players(folder).items()},
    )
