"""A folder of transformers: config.json and model.safetensors, which `from_pretrained` opens."""

import copy
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from limbeck.bridges import peft, transformers
from limbeck.core.errors import DataError, MismatchError

from ._exporter import Exporter

__all__ = ["Transformers"]


class Transformers(Exporter):
    """Write a model of transformers as its library does: the folder opens with `AutoModelFor...from_pretrained`, and so again as `kind: hf:FOLDER`.

    Adapters are added to the weights that they adapt. The tokenizer, as a tokenizer.json, is put beside by the pipeline, which also has our own gpt and encoder
    written as GPT-2, GPT-NeoX or BERT, where these compute the same.
    """

    file = "model.safetensors"

    def export(self, model: nn.Module, example: Tensor | Mapping[str, Tensor], path: Path) -> None:
        """Write the model into the folder of `path`; the example is not asked.

        Raises:
            MismatchError: no model of transformers, or one whose layers differ from what its configuration can say.
        """
        held = transformers.inner(model)
        if held is None:
            raise MismatchError(f"a {type(model).__name__} is no model of transformers, and has no folder of theirs: export to ONNX, or train one (hf:NAME)")
        made = peft.merged(copy.deepcopy(held).cpu())
        own = {name: list(one.shape) for name, one in made.named_parameters(remove_duplicate=False)}
        wanted = transformers.shapes(made)
        if own != wanted:
            first = next(name for name in sorted(own.keys() | wanted.keys()) if own.get(name) != wanted.get(name))
            raise MismatchError(
                f"{first!r} is {own.get(first, 'not there')}, and by its configuration {wanted.get(first, 'not there')}: what was pruned block by block cannot "
                "be said by one; prune by prune.layers and prune.width, or export to ONNX"
            )
        transformers.save(made, path.parent)
        if not path.is_file():
            raise DataError(f"{type(made).__name__} was written in several files, and an artifact has one: it is too large to be kept")
