"""Classifiers on the way through a network, so that an answer can be had before its end.

Zhang et al., "Be Your Own Teacher: Improve the Performance of Convolutional Neural Networks via Self Distillation", ICCV 2019, arXiv:1905.08094, sec. 3.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from limbeck.core import lookup
from limbeck.core.errors import RecipeError, did_you_mean

from ._arguments import check_classes, check_whole
from ._exit_head import Seen, exit_head, seen

__all__ = ["Exits"]


class Exits(nn.Module):
    """A model with a classifier on each of several of its layers: a bottleneck, a pooling, a linear head.

    The answer is a mapping of logits `[N, C]`: `main`, the model's own, and `exit1`, `exit2`, ... from the shallowest on. An exit's bottleneck brings its
    layer to the size and width of the model's last feature (separable 3x3 convolutions of stride 2 for maps; a linear layer for vectors and tokens), so that
    the two can be compared: `exits.exit1.pool` has the width of the model's `of.pool`, whose name is `deepest`.

    A module that is there already goes in the place of `of`; it must be built for examples of `in_shape`.

    Args:
        of: the model that gets the exits, as in a recipe: {kind: cnn, width: 16}.
        at: the layers that get one each, by module path, in the order in which they run: [layer1, layer2].
        width: units of what each exit's head reads; as many as the model's last feature has where it is left out.

    Raises:
        RecipeError: no layer, one that the model has not or that is named twice, layers in another order, a width below one, a model without a kind.
        MismatchError: a layer that gives neither maps, sequences nor vectors, or a model that does not run on an example of `in_shape`.

    Example:
        {kind: exits, of: {kind: cnn, width: 16}, at: [layer1, layer2]}
    """

    def __init__(self, in_shape: tuple[int, ...], classes: int, *, of: nn.Module | dict[str, Any], at: Sequence[str], width: int | None = None) -> None:
        super().__init__()
        check_classes("Exits", classes)
        if width is not None:
            check_whole("width", width)
        self.of = of if isinstance(of, nn.Module) else _built(of, in_shape, classes)
        self.at = tuple(at)
        _check_names(self.at)
        found: Seen = seen(self.of, self.at, in_shape, classes)
        if found.order != list(self.at):
            raise RecipeError(f"at: the layers run in the order {', '.join(found.order)}, not {', '.join(self.at)}: name them so")
        self.deepest = f"of.{found.deepest}" if found.deepest else ""
        units = width or found.width
        self.exits = nn.ModuleDict({f"exit{number}": exit_head(path, found, units, classes) for number, path in enumerate(self.at, 1)})
        self._copies = any(getattr(module, "inplace", False) for module in self.of.modules())
        self._heard: dict[str, Tensor] | None = None
        self._goal: str | None = None
        self._sure: float | None = None
        for name, path in zip(self.exits, self.at, strict=True):
            self.of.get_submodule(path).register_forward_hook(partial(self._hear, name))

    @property
    def names(self) -> tuple[str, ...]:
        """The answers, from the shallowest to the deepest."""
        return (*self.exits, "main")

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Examples `[N, ...]` to every answer: name -> logits `[N, C]`."""
        self._heard = heard = {}
        try:
            main = self.of(x)
        finally:
            self._heard = None
        return {"main": main, **{name: heard[name] for name in self.exits}}

    def until(self, name: str, x: Tensor) -> Tensor:
        """Return one answer `[N, C]`, without what lies behind it and without the other exits.

        Raises:
            RecipeError: there is no such exit.
        """
        if name not in self.names:
            raise RecipeError(f"there is no exit {name!r}{did_you_mean(name, self.names)}")
        return self.of(x) if name == "main" else self._walk(x, goal=name)[1]

    def decide(self, x: Tensor, threshold: float) -> tuple[str, Tensor]:
        """Return the first answer of whose class every example is as sure as `threshold`, a softmax probability, by name, and its logits `[N, C]`.

        What lies behind it is not computed. Examples leave together: ask about one at a time for a policy of single examples.
        """
        return self._walk(x, sure=threshold)

    def _walk(self, x: Tensor, *, goal: str | None = None, sure: float | None = None) -> tuple[str, Tensor]:
        self._heard, self._goal, self._sure = {}, goal, sure
        try:
            return "main", self.of(x)
        except _Reached as reached:
            return reached.name, reached.logits
        finally:
            self._heard = self._goal = self._sure = None

    def _hear(self, name: str, _layer: nn.Module, _args: Any, output: Any) -> None:
        """Answer at an exit as soon as its layer has run, before anything could overwrite what it gave."""
        if self._heard is None or self._goal not in (None, name):
            return
        feature = output if isinstance(output, Tensor) else output[0]
        logits = self.exits[name](feature.clone() if self._copies else feature)
        self._heard[name] = logits
        if self._goal == name or (self._sure is not None and bool((logits.softmax(-1).amax(-1) >= self._sure).all())):
            raise _Reached(name, logits)


class _Reached(Exception):
    """The answer is there: nothing behind it need run."""

    def __init__(self, name: str, logits: Tensor) -> None:
        super().__init__(name)
        self.name, self.logits = name, logits


def _built(of: Mapping[str, Any], in_shape: tuple[int, ...], classes: int) -> nn.Module:
    rest = dict(of)
    kind = rest.pop("kind", None)
    if not isinstance(kind, str):
        raise RecipeError(f"of is {of}; it must name the model that gets exits by its kind, such as {{kind: cnn, width: 16}}")
    made: nn.Module = lookup.build("models", kind, rest, in_shape=in_shape, classes=classes)
    return made


def _check_names(at: Sequence[str]) -> None:
    if not at:
        raise RecipeError("at names no layer: name one or more that get an exit, such as [layer1, layer2]")
    twice = [path for path in at if at.count(path) > 1]
    if twice:
        raise RecipeError(f"at names the layer {twice[0]!r} twice: one exit each")
