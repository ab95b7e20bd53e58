"""What each exit of a trained network is worth, and what stopping early buys."""

from typing import Any

import torch
from torch import Tensor, nn

from limbeck.core.knowledge import Knowledge
from limbeck.core.tap import Tap
from limbeck.core.task import Batch, Task
from limbeck.measure.anytime import policy
from limbeck.measure.size import macs, parameters
from limbeck.measure.statistics import wilson
from limbeck.models.exits import Exits

__all__ = ["Heard", "Until", "anytime"]


class Until(nn.Module):
    """A network with exits as a model of one answer, for an exporter, which leaves out what the answer does not depend on."""

    def __init__(self, model: Exits, name: str) -> None:
        super().__init__()
        self.model, self.name = model, name

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)[self.name]


class Heard:
    """Ask a network with exits as its task does, and keep what every exit says: the split need not be opened again for it."""

    def __init__(self, task: Task, model: Exits) -> None:
        self._task, self._model = task, model
        self._logits: dict[str, list[Tensor]] = {}
        self._labels: list[Tensor] = []

    def __call__(self, batch: Batch) -> Knowledge:
        said = self._task.forward(self._model, batch)
        if "label" in batch:
            self._labels.append(batch["label"].cpu())
            for name in said.outputs:
                self._logits.setdefault(name, []).append(said.whole(name).logits.float().cpu())
        return said

    def forget(self) -> None:
        """Begin anew: what was asked so far was no split."""
        self._logits, self._labels = {}, []

    def worth(self, example: Tensor) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return what `anytime` finds of what was heard since."""
        return anytime(self._model, {name: torch.cat(parts) for name, parts in self._logits.items()}, torch.cat(self._labels), example)


def anytime(model: Exits, answers: dict[str, Tensor], labels: Tensor, example: Tensor) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the figures of every exit, and the record that the report draws: exits with accuracy and cost, and the curve of a confidence threshold.

    `answers`: exit -> logits `[N, C]` on a split, `labels [N]`; `example [1, ...]` is what MACs are counted on. `<exit>_macs` is the cost of that answer alone;
    a policy pays for the exits that it asks on the way too. `main` here is the network without its exits.
    """
    costs, heads = _costs(model, example)
    figures: dict[str, Any] = {}
    exits: list[dict[str, Any]] = []
    for name in model.names:
        right, n = int((answers[name].argmax(-1) == labels).sum()), len(labels)
        low, high = wilson(right, n)
        one = {"accuracy": right / n, "accuracy_low": low, "accuracy_high": high, "macs": costs[name]}
        if name != "main":  # its accuracy is the model's
            figures |= {f"{name}_{figure}": value for figure, value in one.items()}
        exits.append({"name": name, **one})
    figures |= {"main_macs": costs["main"], "main_parameters": parameters(model.of)}
    order = [answers[name] for name in model.names]
    paid = [costs[name] + sum(heads[before] for before in model.names[:at]) for at, name in enumerate(model.names)]
    return figures, {"examples": len(labels), "exits": exits, "policy": policy(order, labels, paid)}


def _costs(model: Exits, example: Tensor) -> tuple[dict[str, int], dict[str, int]]:
    """The MACs of answering by each exit alone, and those of each exit's own head."""
    costs = {name: macs(model, example, ask=lambda _model, name=name: model.until(name, example)) for name in model.names}
    with torch.no_grad(), Tap(model.of, model.at) as tap:
        model.of(example)
    heads = {name: macs(model.exits[name], tap.features[path]) for name, path in zip(model.exits, model.at, strict=True)}
    return costs, {**heads, "main": 0}
