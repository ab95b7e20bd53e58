"""A small task and small models to quantize."""

import copy
import json
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from limbeck.compress import Bench, Operated, Surgery
from limbeck.core import lookup
from limbeck.core.task import Task

SHAPE, CLASSES = (2, 8, 8), 5


def task(inputs: Tensor | None = None) -> Task:
    """Images of noise with random labels, in batches of 32."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(128, *SHAPE, generator=draw) if inputs is None else inputs
    y = torch.randint(0, CLASSES, (len(x),), generator=draw)
    return lookup.find("tasks", "classify")({"train": list(zip(x.split(32), y.split(32), strict=True))}, classes=CLASSES)


def bench(inputs: Tensor | None = None) -> Bench:
    return Bench(task(inputs), lambda model: 0, lambda model: 0.0, lambda model: 0.0)


def model(kind: str = "cnn", *, shape: tuple[int, ...] = SHAPE, seed: int = 0, **options: object) -> nn.Module:
    """A model of ours whose batch norms have seen data, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = lookup.build("models", kind, options, in_shape=shape, classes=CLASSES)
        for module in made.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1.0, 0.3)
                nn.init.normal_(module.bias, 0.0, 0.3)
        with torch.no_grad():
            for _ in range(20):
                made.train()(torch.randn(32, *shape))
    return made.eval()


@torch.no_grad()
def answer(model: nn.Module, rows: int = 64, shape: tuple[int, ...] = SHAPE) -> Tensor:
    given = model.eval()(torch.randn(rows, *shape, generator=torch.Generator().manual_seed(1)))
    return given["main"] if isinstance(given, Mapping) else given


def reloaded(fresh: nn.Module, *done: tuple[type[Surgery], Operated]) -> nn.Module:
    """Build a model again from a fresh one, as an artifact is loaded: records by way of JSON, then the weights."""
    made = copy.deepcopy(fresh)
    for surgery, operated in done:
        made = surgery.rebuild(made, json.loads(json.dumps(operated.record)))
    made.load_state_dict(done[-1][1].model.state_dict())
    return made.eval()
