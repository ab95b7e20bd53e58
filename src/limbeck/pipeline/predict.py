"""Ask an artifact about images: which class, and how probable."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from limbeck.core.artifact import Artifact
from limbeck.core.errors import ArtifactError, DataError, MismatchError
from limbeck.core.task import default_task
from limbeck.tasks.image import prepare

from .modules import load

__all__ = ["Prediction", "predict"]

BATCH = 256
"""How many images are asked about at a time."""


@dataclass(frozen=True)
class Prediction:
    """What a model says of one image: its file, which image of the file (None for a file of one image), the likeliest class, every class's probability."""

    input: Path
    index: int | None
    label: str
    probabilities: Mapping[str, float]

    def as_dict(self) -> dict[str, Any]:
        """The prediction, JSON-able."""
        probability = self.probabilities[self.label]
        return {"input": str(self.input), "index": self.index, "class": self.label, "probability": probability, "probabilities": dict(self.probabilities)}


@torch.no_grad()
def predict(artifact: str | Path, inputs: Sequence[str | Path]) -> list[Prediction]:
    """Return what an artifact's model says of images, in files of the kinds that `tasks.image.prepare` reads, prepared as its training data were.

    Raises:
        ArtifactError: no artifact, a damaged one, or one whose answers are not finite.
        DataError: a file that is missing or damaged, or no file.
        MismatchError: images that the model was not trained on, or a model that takes none, or that does not answer with one class.
    """
    if not inputs:
        raise DataError("there is nothing to predict: give an image file, an .npy or an .npz")
    opened = Artifact.open(Path(artifact), verify=False)
    spec = opened.spec
    if "link" in spec:
        raise MismatchError(f"the answers of {opened.path} are {spec['link']}, not one class of several: load it in Python, and ask it there")
    names = _distinct(spec["class_names"])
    ready = [(Path(path), prepare(path, spec["preprocess"])) for path in inputs]  # what cannot be read is said before the model is loaded
    model, task = load(opened.path), default_task()
    found: list[Prediction] = []
    for path, images in ready:
        logits = torch.cat([task.forward(model, {"input": part}).main.logits for part in images.split(BATCH)]).double()
        if logits.shape[-1] != len(names):
            raise MismatchError(
                f"the model of {opened.path} gives {logits.shape[-1]} logits, and its artifact names {len(names)} classes: run its recipe again"
            )
        if not logits.isfinite().all():
            raise ArtifactError(f"the model of {opened.path} answers {path} with values that are not finite: train it again with a lower learning rate")
        many = path.suffix.lower() in (".npy", ".npz")
        for index, row in enumerate(logits.softmax(-1)):
            shares = dict(zip(names, row.tolist(), strict=True))
            found.append(Prediction(path, index if many else None, names[int(row.argmax())], shares))
    return found


def _distinct(names: Sequence[str]) -> list[str]:
    """Class names as keys: those that several classes share get their number behind them."""
    return [name if names.count(name) == 1 else f"{name} ({number})" for number, name in enumerate(names)]
