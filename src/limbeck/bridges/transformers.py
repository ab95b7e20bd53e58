"""transformers: models by their configuration or with their weights, from a folder or the hub, and back into a folder. No code of theirs, no pickle."""

import copy
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from limbeck.core.errors import DataError, MismatchError, MissingDependency, RecipeError, did_you_mean
from limbeck.core.files import sha256

__all__ = [
    "Head", "Loaded", "by_layer", "config_of", "content", "fresh", "inner", "library", "located", "pretrained", "quiet", "resized", "save", "shapes", "sizes",
    "told_of",
]  # fmt: skip

Head = Literal["causal", "masked", "classification"]
"""What a model answers: the next token of every token, every token itself, or one class of a row."""
_AUTO: Mapping[Head, str] = {
    "causal": "AutoModelForCausalLM", "masked": "AutoModelForMaskedLM", "classification": "AutoModelForSequenceClassification",
}  # fmt: skip
_FILES = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
_PICKLES = ("pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt")


def library(purpose: str = "a model of kind hf") -> ModuleType:
    """Return the library.

    Raises:
        MissingDependency: it is not installed.
    """
    try:
        import transformers
    except ImportError:
        raise MissingDependency("transformers", "language", purpose) from None
    return transformers


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the library's progress bars and reports to itself: what matters of them is told by ours."""
    logging = library().utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def located(name: str, revision: str | None = None) -> Path:
    """Return the folder of a model: a local one as it is, one of the hub's in the library's cache, fetched where it is not there.

    Raises:
        DataError: there is none.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        if revision is not None:
            raise RecipeError(f"revision is {revision!r}, and {name} is a folder, which has none: leave it out")
        return path
    if path.is_absolute() or name.startswith(".") or name.count("/") > 1:
        raise DataError(f"{name} is no folder: name one that holds config.json and model.safetensors, or a model of the hub, OWNER/NAME")
    return _snapshot(name, revision)


@cache
def _snapshot(name: str, revision: str | None) -> Path:
    library()
    from huggingface_hub import errors, snapshot_download

    try:
        with quiet():
            return Path(snapshot_download(name, revision=revision, allow_patterns=_FILES))
    except (OSError, ValueError, errors.HfHubHTTPError) as error:
        raise DataError(f"{name} is no folder here, and cannot be had from the hub ({_line(error)}): give a folder, or fetch the model first") from None


def content(name: str, revision: str | None = None) -> dict[str, str]:
    """Return what a model is, wherever it lies: the digests of a folder's configuration and weights, or the hub's name and commit."""
    folder = located(name, revision)
    if not Path(name).expanduser().is_dir():
        return {"name": name, "commit": folder.name}
    return {file.name: sha256(file) for file in sorted([*folder.glob("config.json"), *folder.glob("*.safetensors")])}


def config_of(source: Path | Mapping[str, Any], changes: Mapping[str, Any], where: str) -> Any:
    """Return the configuration of a folder, or the one that a mapping tells, with `changes` over it.

    Raises:
        DataError: a folder without one.
        RecipeError: an architecture that the library has no code for, or an option that it does not know.
    """
    known = library().CONFIG_MAPPING
    told = _read(source / "config.json") if isinstance(source, Path) else dict(source)
    kind = told.get("model_type")
    if kind not in known:
        own = " and names code of its own, which is never run (trust_remote_code is off)" if "auto_map" in told else ""
        near = did_you_mean(str(kind), known) if kind else ": config: {model_type: llama, ...}"
        raise RecipeError(f"{where} is of model_type {kind!r}, which transformers {library().__version__} does not know{own}{near}")
    if told.get("quantization_config"):
        raise RecipeError(f"{where} holds quantized weights, which cannot be trained or judged as they are: take the model that they were made of")
    named = {name: known[kind].attribute_map.get(name, name) for name in (*told, *changes)}  # one of GPT-2's n_layer and num_hidden_layers
    options = {named[name]: value for name, value in told.items()}
    choices = {**known[kind]().to_dict(), **options, **known[kind].attribute_map, "num_labels": None}
    for name, value in changes.items():
        if name not in choices:
            raise RecipeError(f"{known[kind].__name__} of {where} has no option {name!r}{did_you_mean(name, choices)}")
        options[named[name]] = value
    if "num_labels" in options and len(options.get("id2label", ())) != options["num_labels"]:  # the names of other classes
        options = {name: value for name, value in options.items() if name not in ("id2label", "label2id")}
    layers, kinds = options.get(known[kind].attribute_map.get("num_hidden_layers", "num_hidden_layers")), options.get("layer_types")
    if isinstance(kinds, list) and isinstance(layers, int) and "layer_types" not in changes and len(kinds) >= layers:
        options["layer_types"] = kinds[:layers]
    return known[kind].from_dict({name: value for name, value in options.items() if name != "model_type"})


def told_of(config: Any) -> dict[str, Any]:
    """Return a configuration as JSON has it, all of it: a later version of the library may have other defaults."""
    told = json.loads(config.to_json_string(use_diff=False))
    return {name: value for name, value in told.items() if name not in ("_name_or_path", "transformers_version")}


class Sizes(NamedTuple):
    """The vocabulary that a model embeds, and how many positions it has; None where it has any number."""

    vocabulary: int
    positions: int | None


def sizes(model: Any) -> Sizes:
    """Return what a model can be asked about; of learnt positions that begin after that of padding (RoBERTa), those that are left."""
    config = model.config.get_text_config()
    most = getattr(config, "max_position_embeddings", None)
    for path, module in model.named_modules():
        if path.endswith("position_embeddings") and isinstance(module, nn.Embedding) and module.padding_idx is not None:
            most = module.num_embeddings - module.padding_idx - 1
    return Sizes(config.vocab_size, most if isinstance(most, int) and most > 0 else None)


def fresh(head: Head, config: Any, attention: str, dtype: torch.dtype) -> Any:
    """Build a model with fresh weights.

    Raises:
        RecipeError: an architecture that has no such head, or no such attention.
    """
    with quiet():
        return _made(head, config, attention, lambda auto: auto.from_config(config, attn_implementation=attention, dtype=dtype))


def shapes(model: Any, changes: Mapping[str, Any] | None = None) -> dict[str, list[int]]:
    """Return path -> shape of every weight that a model has by its configuration, `changes` over it; none is made.

    Raises:
        MismatchError: sizes that the architecture cannot have.
    """
    with torch.device("meta"):
        made = _resized(model, changes or {})
    return {name: list(one.shape) for name, one in made.named_parameters(remove_duplicate=False)}


def inner(model: nn.Module) -> Any | None:
    """Return the model of the library that a module is, or holds as its own child; None where there is none."""
    try:
        from transformers import PreTrainedModel
    except ImportError:
        return None
    return next((one for one in (model, *model.children()) if isinstance(one, PreTrainedModel)), None)


class Loaded(NamedTuple):
    """A model with its weights; `said`: what of them was not used, or begins anew."""

    model: Any
    said: list[str]


def pretrained(head: Head, folder: Path, config: Any, attention: str, dtype: torch.dtype, where: str) -> Loaded:
    """Load a model with the folder's weights, from safetensors alone.

    Raises:
        DataError: no safetensors, or weights that are missing of the model's body.
        MismatchError: weights of other shapes.
        RecipeError: an architecture that has no such head, or no such attention.
    """
    if not any(folder.glob("*.safetensors")):
        pickles = sorted(file.name for pattern in _PICKLES for file in folder.glob(pattern))
        has = f"only {pickles[0]}, a pickle, which is never loaded: convert it where you trust it, with " if pickles else "no weights: make them with "
        raise DataError(f"{where} holds {has}transformers' AutoModel.from_pretrained(...).save_pretrained(FOLDER), which writes model.safetensors")

    def load(auto: Any) -> Any:
        return auto.from_pretrained(
            folder, config=config, use_safetensors=True, output_loading_info=True, attn_implementation=attention, dtype=dtype, local_files_only=True
        )  # fmt: skip

    with quiet():
        try:
            model, told = _made(head, config, attention, load)
        except RuntimeError as error:
            raise MismatchError(f"the weights of {where} do not fit its configuration with the changes asked for: {_line(error)}") from None
    missing, unused = sorted(told["missing_keys"]), sorted(told["unexpected_keys"])
    if lost := [name for name in missing if re.search(r"\.\d+\.|embed", name)]:
        raise DataError(f"{where} lacks {len(lost)} of the model's weights, {lost[0]} among them: it is of another architecture, or damaged")
    said = [f"{where} has no {', '.join(missing)}: what is not there begins anew"] if missing else []
    if unused:
        said.append(f"{len(unused)} weights of {where} are not used ({', '.join(unused[:3])}{', ...' if len(unused) > 3 else ''})")
    return Loaded(model, said)


def _made(head: Head, config: Any, attention: str, how: Any) -> Any:
    try:
        return how(getattr(library(), _AUTO[head]))
    except ImportError as error:
        raise RecipeError(f"{type(config).__name__} needs a library that is not installed: {_line(error)}") from None
    except ValueError as error:
        if "attention implementation" in str(error):
            raise RecipeError(f"{type(config).__name__} has no attention {attention!r}: set attention: eager") from None
        if "Unrecognized configuration class" in str(error):
            raise RecipeError(f"{type(config).__name__} has no head for {head} answers: take another task, or another model") from None
        raise RecipeError(f"{type(config).__name__} cannot be built: {_line(error)}") from None


def save(model: Any, folder: Path) -> None:
    """Write a model as a folder that `from_pretrained` opens: config.json and model.safetensors."""
    with quiet():
        model.save_pretrained(folder, max_shard_size="1TB")


def _read(file: Path) -> dict[str, Any]:
    try:
        told = json.loads(file.read_bytes())
    except OSError:
        raise DataError(f"{file.parent} has no {file.name}: it is no folder of transformers") from None
    except ValueError as error:
        raise DataError(f"{file} is not JSON ({error})") from None
    if not isinstance(told, dict):
        raise DataError(f"{file} holds {type(told).__name__}, and a configuration is a mapping")
    return told


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 240 else f"{text[:237]}..."


def resized(model: Any, changes: Mapping[str, Any]) -> Any:
    """Return a fresh model of the same class whose configuration differs by `changes`, by the library's common names (hidden_size, num_hidden_layers, ...).

    Raises:
        MismatchError: sizes that the architecture cannot have.
    """
    return _resized(model, changes).to(model.device).train(model.training)


def _resized(model: Any, changes: Mapping[str, Any]) -> Any:
    from huggingface_hub.errors import StrictDataclassError

    config = copy.deepcopy(model.config)
    with quiet():
        try:
            for name, value in changes.items():
                setattr(config, name, value)
            config.validate()  # what is not valid cannot be written
            return type(model)._from_config(config, attn_implementation=model.config._attn_implementation, dtype=model.dtype)
        except (ValueError, RuntimeError, AssertionError, ZeroDivisionError, StrictDataclassError) as error:
            raise MismatchError(
                f"{type(model).__name__} cannot have {', '.join(f'{name} {value}' for name, value in changes.items())}: {_line(error)}"
            ) from None


def by_layer(model: Any, keep: Sequence[int]) -> dict[str, Any]:
    """Return what a configuration says otherwise where only the layers `keep` are left: how many there are, and every list that has an entry for each."""
    config, depth = model.config, model.config.num_hidden_layers
    lists = {name: value for name, value in vars(config).items() if isinstance(value, (list, tuple)) and len(value) == depth and not name.startswith("_")}
    return {"num_hidden_layers": len(keep), **{name: [value[at] for at in keep] for name, value in lists.items()}}
