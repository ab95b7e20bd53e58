"""A recipe: teacher, student, data and budget, checked whole before anything runs."""

import os
import re
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import pydantic
import yaml
from pydantic import BaseModel, ConfigDict, Field

from limbeck.core.errors import RecipeError, did_you_mean
from limbeck.core.schedule import Number, check_number
from limbeck.engine.plan import Training

__all__ = [
    "DistillStage", "ExportStage", "Measure", "ObjectiveSpec", "Part", "QuantizeStage", "Recipe", "RuntimeSpec", "Stage", "TeacherSpec", "TrainStage",
    "builtin", "load_recipe", "parents", "task_of",
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


class TeacherSpec(Part):
    """A teacher and the stage or stages whose models it asks."""

    of: str | list[str] = Field(description="the stage that trained the teacher; a list for an ensemble")

    @property
    def stages(self) -> list[str]:
        return [self.of] if isinstance(self.of, str) else self.of


class TrainStage(Training):
    """Train a model on the task's own loss."""

    kind: Literal["train"] = "train"
    model: Part | None = Field(default=None, description="what to train; or `init`")
    init: str | None = Field(default=None, description="an earlier stage whose model is trained on")
    task: dict[str, Any] = Field(default={}, description="options of the recipe's task that differ while this stage trains, such as its augmentation")
    objectives: list[ObjectiveSpec] = Field(default=[ObjectiveSpec(kind="supervised")], min_length=1, description="what the model must match")
    transfer: Part = Field(default=Part(kind="real"), description="on which inputs")
    scheme: Part = Field(default=Part(kind="offline"), description="who teaches whom, and when")


class DistillStage(TrainStage):
    """Train a student on what a teacher knows."""

    kind: Literal["distill"] = "distill"  # pyright: ignore[reportIncompatibleVariableOverride]
    teacher: TeacherSpec = Field(description="where the knowledge comes from")
    objectives: list[ObjectiveSpec] = Field(
        default=[ObjectiveSpec(kind="response.kd", weight=0.9), ObjectiveSpec(kind="supervised", weight=0.1)],
        min_length=1,
        description="what the student must match",
    )


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


Stage = Annotated[TrainStage | DistillStage | ExportStage | QuantizeStage, Field(discriminator="kind")]


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
    while not isinstance(stage := recipe.stages[name], TrainStage):
        name = stage.of
    other = "kind" in stage.task and stage.task["kind"] != recipe.task.kind
    return Part(**({} if other else recipe.task.model_dump()) | stage.task)


def parents(stage: TrainStage | DistillStage | ExportStage | QuantizeStage) -> list[str]:
    """Return the stages that a stage takes something from."""
    if isinstance(stage, TrainStage):
        taken = [stage.init, *(one.init for one in stage.objectives)]
        return list(dict.fromkeys([one for one in taken if one] + (stage.teacher.stages if isinstance(stage, DistillStage) else [])))
    return [stage.of]


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
    return _validate(tree)


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
    stages = tree.get("stages")
    for holder in (tree, *(stages.values() if isinstance(stages, dict) else ())):
        task = holder.get("task") if isinstance(holder, dict) else None
        if isinstance(task, dict) and isinstance(task.get("root"), str):
            task["root"] = str((base / Path(task["root"]).expanduser()).resolve())


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
        raise RecipeError(_one_line(error, tree)) from None
    earlier: list[str] = []
    for name, stage in recipe.stages.items():
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
            raise RecipeError(f"a stage cannot be called {name!r}: letters, digits, - and _ only")
        for parent in parents(stage):
            if parent not in earlier:
                later = " comes later" if parent in recipe.stages else f" is not there{did_you_mean(parent, earlier)}"
                raise RecipeError(f"stage {name!r} takes {parent!r}, which{later}: a stage takes from stages above it")
        if isinstance(stage, TrainStage):
            if (stage.model is None) == (stage.init is None):
                raise RecipeError(
                    f"stage {name!r} needs either `model` (a fresh one) or `init` (an earlier stage's), not {'both' if stage.model else 'neither'}"
                )
            for objective in stage.objectives:
                if objective.init is not None and not isinstance(recipe.stages[objective.init], TrainStage):
                    raise RecipeError(f"{objective.kind} of stage {name!r} takes over what {objective.init!r} learnt, and that stage trains nothing")
                check_number(f"the weight of {objective.kind} in stage {name!r}", objective.weight, positive=False)
        takes = "graph" if isinstance(stage, QuantizeStage) else "module"
        for parent in parents(stage):
            gives = "module" if isinstance(recipe.stages[parent], TrainStage) else "graph"
            if gives != takes:
                way = "export it first ({kind: export})" if takes == "graph" else "take the stage that trained it"
                raise RecipeError(f"stage {name!r} ({stage.kind}) takes a {takes}, and {parent!r} gives a {gives}: {way}")
        earlier.append(name)
    return recipe


def _one_line(error: pydantic.ValidationError, tree: Any) -> str:
    """Turn pydantic's first complaint into one line with the nearest valid choice; of those about one option, the one that looked deepest into it."""
    traced = [(*_trace(each["loc"], tree), each) for each in error.errors(include_url=False)]
    start = traced[0][0]
    about = [one for one in traced if one[0][: len(start)] == start]
    path, models, first = max(about, key=lambda one: (len(one[0]), not one[2]["type"].endswith("_type")))
    place, kind, last = ".".join(path), first["type"], str(first["loc"][-1])
    if kind == "extra_forbidden":
        return f"no option {last!r} in {'.'.join(path[:-1]) or 'the recipe'}{did_you_mean(last, {name for model in models for name in model.model_fields})}"
    if kind == "missing":
        return f"{place or 'the recipe'} needs the option {last!r}"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        tag, tags = str(first.get("ctx", {}).get("tag", "")), [str(_tag(model)) for model in _models(_within(models, path[-1]))]
        return f"{place} needs a kind{did_you_mean(tag, tags)}" if not tag else f"no kind {tag!r} for {place}{did_you_mean(tag, tags)}"
    given = " ".join(repr(first["input"]).split())
    return f"{place or 'the recipe'}: {first['msg'][0].lower()}{first['msg'][1:]}, not {given if len(given) <= 80 else f'{given[:77]}...'}"


def _trace(location: tuple[int | str, ...], tree: Any) -> tuple[list[str], list[Any]]:
    """Return the pieces of an error's location that are in the recipe, and the types about the last one.

    pydantic puts the kinds of union members among the pieces.
    """
    path: list[str] = []
    value, kind, about = tree, Recipe, [Recipe]
    for piece in location:
        if not (isinstance(value, list) and isinstance(piece, int)) and not (isinstance(value, dict) and piece in value):
            kind = next((model for model in _models(kind) if _tag(model) == piece), kind)
            continue
        about, kind = _models(kind) or [kind], _within(_models(kind) or [kind], str(piece))
        path.append(str(piece))
        value = value[piece]  # pyright: ignore[reportArgumentType, reportCallIssue]
    return path, about


def _models(kind: Any) -> list[Any]:
    """The models that a type admits: itself, or a union's members."""
    if isinstance(kind, type):
        return [kind] if issubclass(kind, BaseModel) else []
    return [model for inner in get_args(kind) if get_origin(kind) not in (list, dict) for model in _models(inner)]


def _tag(model: type[BaseModel]) -> Any:
    return model.model_fields["kind"].default if "kind" in model.model_fields else None


def _within(kinds: list[Any], piece: str) -> Any:
    """The type of what lies at `piece`: a field of one of the models, or an item of a list or mapping."""
    for model in kinds:
        if isinstance(model, type) and issubclass(model, BaseModel) and piece in model.model_fields:
            return model.model_fields[piece].annotation
    return get_args(kinds[0])[-1] if get_args(kinds[0]) else None
