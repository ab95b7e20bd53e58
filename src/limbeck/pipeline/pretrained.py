"""Models of transformers in recipes: how one is written, what it is made of, and how an artifact builds it again without the place that it came from."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck.core.errors import MismatchError
from limbeck.core.files import read_json, write_json

if TYPE_CHECKING:
    from torch import nn

    from limbeck.core.task import Facts
    from limbeck.models.hf import HF

    from .recipe import Part

__all__ = ["furnished", "headed", "identity", "lasting", "leaves_folder", "opened", "remarks", "strange_words", "written"]

_HEADS = {"language": "causal", "masked": "masked", "text": "classification"}
"""A task -> what it asks of a model."""


def written(holder: dict[str, Any], base: Path) -> bool:
    """Write `kind: hf:NAME` out as what it means, and a folder that is there as where it is; return whether a name of the hub's would do as well."""
    kind = holder.get("kind")
    if isinstance(kind, str) and kind.startswith("hf:"):
        holder |= {"kind": "hf", "of": kind.removeprefix("hf:")}
    named = holder.get("kind") == "hf" or holder.get("data") == "hub"
    for key in ("of", "root") if named else ():
        if isinstance(holder.get(key), str) and (there := base / Path(holder[key]).expanduser()).is_dir():
            holder[key] = str(there.resolve())
    return named


def leaves_folder(format: "str | Part") -> bool:
    """Whether an export leaves a folder of transformers, which is a module still, and no file of another runtime."""
    return (format if isinstance(format, str) else format.kind).removeprefix("export.") == "transformers"


def headed(told: dict[str, Any], facts: "Facts") -> dict[str, Any]:
    """Return a model's options with the head that the task asks for.

    Raises:
        MismatchError: a task that is not of text.
    """
    if told["kind"] != "hf" or told["head"] is not None:
        return told
    task = facts.preprocess.get("kind")
    if task not in _HEADS:
        raise MismatchError(f"a model of transformers reads tokens, and the task is {task or 'not one of text'}: take language, masked or text")
    return told | {"head": _HEADS[task]}


def identity(told: dict[str, Any]) -> dict[str, Any]:
    """Return a model's options with the content of what it begins with in the place of where that lies."""
    if told["kind"] != "hf" or told["of"] is None:
        return told
    from limbeck.bridges.transformers import content

    made = content(told["of"], told["revision"])
    return told | {"of": made if told["pretrained"] else {name: value for name, value in made.items() if not name.endswith(".safetensors")}, "revision": None}


def lasting(model: "nn.Module", spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return a spec that says all of a model's architecture, and no longer where it came from, of one of transformers that nothing was done to since."""
    from limbeck.models.hf import HF

    return {**spec, "builder": "hf", "options": model.options} if isinstance(model, HF) and model.plain else dict(spec)


def remarks(model: "nn.Module") -> list[str]:
    """Return what is to be said of how a model began."""
    from limbeck.models.hf import HF

    return list(model.said) if isinstance(model, HF) else []


def furnished(folder: Path, model: "HF", spec: Mapping[str, Any]) -> dict[str, Any]:
    """Put the tokenizer, and the names of classes, into a model's folder; return what the folder's artifact says of itself."""
    from limbeck.bridges._transformers_tokenizer import as_told, write
    from limbeck.tasks.language import vocabulary_of

    config = read_json(folder / "config.json")
    task, told = spec["preprocess"].get("kind"), spec["preprocess"].get("tokenizer")
    if told is not None:
        words = vocabulary_of(spec["preprocess"])
        write(folder, as_told(told, words.names, words.roles, sentences=task != "language"), model.context)
        named = {"begin": "bos", "eos": "eos", "pad": "pad"}
        ends = {f"{named[role]}_token_id": at for role, at in words.roles.items() if role in named}
        config |= ends
        if (writes := folder / "generation_config.json").is_file():
            write_json(writes, read_json(writes) | ends)
    if model.head == "classification":
        config |= {
            "id2label": {str(at): name for at, name in enumerate(spec["class_names"])},
            "label2id": {name: at for at, name in enumerate(spec["class_names"])},
        }
    write_json(folder / "config.json", config)
    kept = {name: value for name, value in spec.items() if name != "changes"}
    return kept | {"builder": "hf", "options": {**model.options, "config": config, "adapter": None}}


def opened(folder: Path, spec: Mapping[str, Any]) -> "HF":
    """Open the folder that an export left, as `from_pretrained` does."""
    from limbeck.models.hf import HF

    options = {**spec["options"], "of": str(folder), "pretrained": True, "config": None}
    return HF(tuple(spec["in_shape"]), spec["classes"], **options).eval()


def strange_words(spec: Mapping[str, Any], facts: "Facts") -> str | None:
    """Say how the tokenizer of a model that comes with its weights differs from the task's; None where it does not, or where the model brings none."""
    from limbeck.bridges._transformers_tokenizer import told_of_folder
    from limbeck.bridges.tokenizers import Codec
    from limbeck.bridges.transformers import located
    from limbeck.tasks.language import vocabulary_of

    name, options = spec["options"].get("of"), spec["options"]
    if name is None or not options["pretrained"] or not (located(name, options["revision"]) / "tokenizer.json").is_file():
        return None
    own, ours = Codec(told_of_folder(name, options["revision"]).json, name).names, vocabulary_of(facts.preprocess).names
    at = next((at for at, (one, other) in enumerate(zip(own, ours, strict=False)) if one != other), None)
    if at is None:
        return None
    return f"{name} reads token {at} as {own[at]!r}, and the task's tokenizer as {ours[at]!r}"
