"""A recipe: teacher, student, data and budget, checked whole before anything runs."""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import yaml
from pydantic import BaseModel, ConfigDict, Field

from limbeck.core.errors import RecipeError, did_you_mean
from limbeck.core.schedule import Number, check_number
from limbeck.engine.plan import Training

from ._fault import first_fault
from .pretrained import leaves_folder, written

__all__ = [
    "AnyStage", "ChooseStage", "CompressStage", "DistillStage", "Drawing", "ExportStage", "GivenStage", "Measure", "ObjectiveSpec", "Part", "QuantizeStage",
    "Recipe", "RuntimeSpec", "Stage", "TeacherSpec", "TrainStage", "builtin", "load_recipe", "origin", "parents", "task_of",
]  # fmt: skip


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Part(BaseModel):
    """A part by name, and its options beside it."""

    model_config = ConfigDict(extra="allow", frozen=True)
    kind: str = Field(description="the part's name within its slot, or python:package.module:name")

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class ObjectiveSpec(Part):
    """An objective and its weight."""

    weight: Number = Field(default=1.0, description="of this objective in the sum; a number, or a schedule")
    gather: bool = Field(default=False, description="compare the examples of all devices, for objectives that compare examples")
    init: str | None = Field(default=None, description="an earlier stage whose objective of this kind has learnt what this one begins with")


class Drawing(Part):
    """A part that may draw from what an earlier stage has left."""

    of: str | None = Field(default=None, description="an earlier stage whose artifact it draws from, for parts that need one")
    partner: Part | None = Field(default=None, description="a second task, for a transfer set that pairs its examples with those of the stage's own")


class TeacherSpec(Part):
    """A teacher and the stage or stages whose models it asks."""

    of: str | list[str] | None = Field(
        default=None, description="the stage whose model teaches, or stage.player; a list for several; left out for a teacher that needs none"
    )

    @property
    def stages(self) -> list[str]:
        return [self.of] if isinstance(self.of, str) else self.of or []


class TrainStage(Training):
    """Train a model on the task's own loss."""

    kind: Literal["train"] = "train"
    model: Part | None = Field(default=None, description="what to train; or `init`, or both")
    init: str | None = Field(default=None, description="an earlier stage whose model is trained on; beside `model`, one whose weights that fit it begins with")
    reseed: int = Field(default=0, ge=0, description="added to the recipe's seed: two stages of one model begin with other weights, and see another order")
    task: dict[str, Any] = Field(default={}, description="options of the recipe's task that differ while this stage trains, such as its augmentation")
    objectives: list[ObjectiveSpec] = Field(default=[ObjectiveSpec(kind="supervised")], min_length=1, description="what the model must match")
    transfer: Drawing = Field(default=Drawing(kind="real"), description="on which inputs")
    scheme: Drawing = Field(default=Drawing(kind="offline"), description="who teaches whom, and when")


class DistillStage(TrainStage):
    """Train a student on what a teacher knows."""

    kind: Literal["distill"] = "distill"  # pyright: ignore[reportIncompatibleVariableOverride]
    teacher: TeacherSpec = Field(description="where the knowledge comes from")
    objectives: list[ObjectiveSpec] = Field(
        default=[ObjectiveSpec(kind="response.kd", weight=0.9), ObjectiveSpec(kind="supervised", weight=0.1)],
        min_length=1,
        description="what the student must match",
    )


class GivenStage(_Strict):
    """Take an artifact that another run has made, as it is, or a model that comes with its weights."""

    kind: Literal["given"] = "given"
    path: Path | None = Field(default=None, description="the artifact's folder: stages/NAME of a run; or `model`")
    model: Part | None = Field(default=None, description="a model with weights of its own: {kind: hf:NAME_OR_PATH}")
    task: dict[str, Any] = Field(default={}, description="options of the recipe's task that differ for `model`, such as its own tokenizer")


class CompressStage(_Strict):
    """Make a smaller module of a trained one, or write its weights as a smaller file; what that broke is for the next stage to repair."""

    kind: Literal["compress"] = "compress"
    of: str = Field(description="the stage whose model is made smaller")
    method: str | Part = Field(description="a surgery, or a packer")


class ChooseStage(_Strict):
    """Take the smallest of several stages' models that is hardly worse on the validation split than another: the test split has no say."""

    kind: Literal["choose"] = "choose"
    of: list[str] = Field(min_length=1, description="the stages to choose from")
    than: str | None = Field(default=None, description="the stage whose validation metric is compared with; the best of `of` where it is left out")
    within: float = Field(default=0.005, ge=0, description="how much worse that metric may be, in its own unit: 0.005 of an accuracy is half a point")
    by: Literal["file_bytes", "weights_left", "parameters", "macs"] = Field(default="parameters", description="the figure that is to be small")


class ExportStage(_Strict):
    """Write a trained model as a file that runs without PyTorch, and compare the two."""

    kind: Literal["export"] = "export"
    of: str = Field(description="the stage whose model is exported")
    format: str | Part = Field(default="onnx", description="an exporter")
    inputs: int = Field(default=256, ge=1, description="real inputs for the parity check")
    tolerance: float = Field(default=1e-4, gt=0, description="largest absolute difference allowed, for logits of magnitude one")


class QuantizeStage(_Strict):
    """Make an exported file smaller and faster, and compare it with the file it came from."""

    kind: Literal["quantize"] = "quantize"
    of: str = Field(description="the stage whose exported file is quantized")
    method: str | Part = Field(default="static_int8", description="a quantizer")
    inputs: int = Field(default=256, ge=1, description="real inputs for the parity check")
    min_agreement: float = Field(default=0.97, ge=0, le=1, description="smallest share of inputs with the same answer")
    min_sqnr_db: float = Field(default=10.0, description="smallest signal-to-quantization-noise ratio, in decibels")


AnyStage = TrainStage | DistillStage | GivenStage | CompressStage | ChooseStage | ExportStage | QuantizeStage
Stage = Annotated[AnyStage, Field(discriminator="kind")]


class RuntimeSpec(_Strict):
    """Where it runs: nothing here changes what a stage is, only how fast."""

    accelerator: Literal["auto", "cpu", "cuda", "mps"] = Field(default="cpu", description="`auto` takes the best that is there, and says which")
    devices: int = Field(default=1, ge=1, description="processes that train together")
    threads: int | None = Field(default=None, ge=1, description="of each training process; torch's own choice where it is left out")
    tensorboard: bool = Field(default=False, description="log for TensorBoard too")


class Measure(_Strict):
    """How the exported files are measured."""

    latency: bool = Field(default=True, description="measure latency, throughput and memory")
    threads: int = Field(default=1, ge=1, description="of each measured model")
    batch: int = Field(default=32, ge=1, description="batch size of the throughput")
    seconds: float = Field(default=1.0, gt=0, description="of measurement for each model")


class Recipe(_Strict):
    """A recipe."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="names the run's folder")
    seed: int = Field(default=0, ge=0, description="of every random choice")
    task: Part = Field(description="the data and how models are asked about them")
    stages: dict[str, Stage] = Field(min_length=1, description="in the order in which they run")
    runtime: RuntimeSpec = RuntimeSpec()
    measure: Measure = Measure()

    def as_yaml(self) -> str:
        """The recipe in full, as YAML."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, width=120)


def task_of(recipe: Recipe, name: str) -> Part:
    """Return a stage's task: the recipe's own, with what the stage that trained the model says otherwise; another `kind` takes the place of the whole."""
    stage = recipe.stages[origin(recipe, name).partition(".")[0]]
    if not isinstance(stage, (TrainStage, GivenStage)):
        return recipe.task
    other = "kind" in stage.task and stage.task["kind"] != recipe.task.kind
    return Part(**({} if other else recipe.task.model_dump()) | stage.task)


def origin(recipe: Recipe, name: str) -> str:
    """Return the stage, or the stage's player, that trained or brought the model which stage `name` compressed, chose or exported; itself where it did so."""
    while isinstance(stage := recipe.stages[name.partition(".")[0]], (CompressStage, ChooseStage, ExportStage, QuantizeStage)):
        name = stage.of[0] if isinstance(stage, ChooseStage) else stage.of
    return name


def parents(stage: AnyStage) -> list[str]:
    """Return what a stage takes something from: names of stages, or of a stage's player, `stage.player`."""
    if isinstance(stage, TrainStage):
        taken = [stage.init, *(one.init for one in stage.objectives), stage.transfer.of, stage.scheme.of]
        return list(dict.fromkeys([one for one in taken if one] + (stage.teacher.stages if isinstance(stage, DistillStage) else [])))
    if isinstance(stage, ChooseStage):
        return list(dict.fromkeys([*stage.of, *([stage.than] if stage.than else [])]))
    return [] if isinstance(stage, GivenStage) else [stage.of]


def builtin() -> dict[str, Path]:
    """Return the recipes that come with limbeck: name -> file."""
    inside = Path(str(resources.files("limbeck"))) / "recipes"
    folder = inside if inside.is_dir() else Path(__file__).resolve().parents[3] / "recipes"
    return {file.stem: file for file in sorted(folder.glob("*.yaml"))}


def load_recipe(source: "str | Path | Mapping[str, Any] | Recipe", sets: Iterable[str] = ()) -> Recipe:
    """Read a recipe from a file, a built-in name or a mapping, with `a.b=c` settings over it.

    Relative paths in a recipe's `root` resolve against its file, those in `sets` against the current folder; `${NAME}` is an environment variable.

    Raises:
        RecipeError: one line that names the option and the nearest valid one.
    """
    if isinstance(source, Recipe):
        source = source.model_dump(mode="json")
    if isinstance(source, Mapping):
        tree, base = _copy(source), Path.cwd()
    else:
        file = _file(str(source))
        tree, base = _parse(_text(file), str(file)), file.resolve().parent
    if not isinstance(tree, dict):
        raise RecipeError(f"{source} is no recipe: it must be a mapping with name, task and stages")
    for setting in sets:
        _set(tree, setting)
    tree = _expand(tree)
    _anchor(tree, base)
    recipe = _validate(tree)
    if all(stage.scheme.kind.removeprefix("schemes.") == "offline" for stage in recipe.stages.values() if isinstance(stage, TrainStage)):
        return recipe
    from .courses import expanded  # imports schemes, and torch with them

    stages = expanded(recipe)
    return recipe if stages is None else _validate(recipe.model_dump(mode="json", exclude={"stages"}) | {"stages": stages})


def _file(source: str) -> Path:
    known = builtin()
    if Path(source).is_file():
        return Path(source)
    if source in known:
        return known[source]
    if source.endswith((".yaml", ".yml")) or "/" in source:
        raise RecipeError(f"there is no recipe file {source!r}; built-in recipes are {', '.join(known)}")
    raise RecipeError(f"there is no recipe {source!r}{did_you_mean(source, known)} (built in; or give a .yaml file)")


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{file} cannot be read as text: {error}") from None


class _Loader(yaml.SafeLoader):
    """YAML without code, and without a key that is given twice: the first would be lost in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"the key {key.value!r} is given twice", key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def _parse(text: str, where: str) -> Any:
    try:
        return _Loader(text).get_single_data()
    except yaml.YAMLError as error:
        first = " ".join(str(error).split())
        raise RecipeError(f"{where} is not YAML: {first}") from None


def _copy(tree: Any) -> Any:
    if isinstance(tree, BaseModel):
        return tree.model_dump(mode="json")
    if isinstance(tree, Mapping):
        return {str(key): _copy(value) for key, value in tree.items()}
    if isinstance(tree, os.PathLike):
        return os.fspath(tree)
    return [_copy(value) for value in tree] if isinstance(tree, (list, tuple)) else tree


def _expand(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _expand(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_expand(value) for value in tree]
    if not isinstance(tree, str):
        return tree

    def look_up(match: re.Match[str]) -> str:
        name, default = match[1], match[2]
        if name not in os.environ and default is None:
            raise RecipeError(f"the recipe reads the environment variable {name}, which is not set: export {name}=..., or give the option with --set")
        return os.environ.get(name, default or "")

    return re.sub(r"\$\{(\w+)(?::-([^}]*))?\}", look_up, tree)


def _anchor(tree: dict[str, Any], base: Path) -> None:
    for holder in _mappings(tree):
        named, kind = written(holder, base), holder.get("kind")
        keys = {"root": not named, "path": kind in ("given", "onnx"), "keep": kind in ("blackbox", "server") and holder.get("keep") != "memory"}
        for key in (key for key, is_place in keys.items() if is_place):
            if isinstance(holder.get(key), str):
                holder[key] = str((base / Path(holder[key]).expanduser()).resolve())


def _mappings(tree: Any) -> Iterator[dict[str, Any]]:
    if isinstance(tree, dict):
        yield tree
    for inner in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
        yield from _mappings(inner)


def _set(tree: dict[str, Any], setting: str) -> None:
    path, equals, text = setting.partition("=")
    if not equals or not path:
        raise RecipeError(f"--set {setting!r} must read a.b.c=value")
    value = _expand(_parse(text, f"the value of --set {path}"))
    keys = path.split(".")
    given = {"root": value} if keys[-2:] == ["task", "root"] else value if keys[-1] == "task" else None
    if isinstance(given, dict):
        _anchor({"task": given}, Path.cwd())
        value = given if keys[-1] == "task" else given["root"]
    here: Any = tree
    for depth, key in enumerate(keys):
        last = depth == len(keys) - 1
        if isinstance(here, list):
            if not key.isdecimal() or int(key) >= len(here):
                raise RecipeError(f"--set {path}: {'.'.join(keys[:depth])} is a list of {len(here)}, and {key!r} is no index of it")
            if last:
                here[int(key)] = value
            else:
                here = here[int(key)]
        elif isinstance(here, dict):
            if keys[:depth] == ["stages"] and key not in here:
                raise RecipeError(f"--set {path}: there is no stage {key!r}{did_you_mean(key, here)}")
            if last:
                here[key] = value
            else:
                here = here.setdefault(key, {})
        else:
            raise RecipeError(f"--set {path}: {'.'.join(keys[:depth])} is {here!r} and has no {key!r}")


def _validate(tree: dict[str, Any]) -> Recipe:
    try:
        recipe = Recipe.model_validate(tree)
    except pydantic.ValidationError as error:
        raise RecipeError(first_fault(error, tree, Recipe)) from None
    earlier: list[str] = []
    for name, stage in recipe.stages.items():
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
            raise RecipeError(f"a stage cannot be called {name!r}: letters, digits, - and _ only")
        for parent in parents(stage):
            if parent.partition(".")[0] not in earlier:
                later = " comes later" if parent in recipe.stages else f" is not there{did_you_mean(parent, earlier)}"
                raise RecipeError(f"stage {name!r} takes {parent!r}, which{later}: a stage takes from stages above it")
        if isinstance(stage, GivenStage) and (stage.path is None) == (stage.model is None):
            raise RecipeError(f"stage {name!r} needs either `path` (an artifact) or `model` (one with weights), not {'both' if stage.model else 'neither'}")
        if isinstance(stage, TrainStage):
            if stage.model is None and stage.init is None:
                raise RecipeError(
                    f"stage {name!r} needs `model` (a fresh one), `init` (an earlier stage's), or both (a fresh one with what fits of an earlier's)"
                )
            for objective in stage.objectives:
                if objective.init is not None and not isinstance(recipe.stages.get(objective.init), TrainStage):
                    raise RecipeError(f"{objective.kind} of stage {name!r} takes over what {objective.init!r} learnt, and that stage trains nothing")
                check_number(f"the weight of {objective.kind} in stage {name!r}", objective.weight, positive=False)
        takes = "graph" if isinstance(stage, QuantizeStage) else _gives(recipe, stage.of[0]) if isinstance(stage, ChooseStage) else "module"
        asked = stage.teacher.stages if isinstance(stage, DistillStage) else []
        for parent in parents(stage):
            gives = _gives(recipe, parent)
            if takes and gives and gives != takes and parent not in asked:  # a teacher may be either
                way = "export it first ({kind: export})" if takes == "graph" else "take the stage that trained it"
                raise RecipeError(f"stage {name!r} ({stage.kind}) takes a {takes}, and {parent!r} gives a {gives}: {way}")
        earlier.append(name)
    return recipe


def _gives(recipe: Recipe, name: str) -> Literal["module", "graph"] | None:
    """What a stage gives; nothing is known of a given one before it is opened."""
    stage = recipe.stages[name.partition(".")[0]]
    if isinstance(stage, ChooseStage):
        return _gives(recipe, stage.of[0])
    if isinstance(stage, GivenStage) and stage.model is None:
        return None
    return "graph" if isinstance(stage, QuantizeStage) or (isinstance(stage, ExportStage) and not leaves_folder(stage.format)) else "module"
