"""Width: a transformer becomes narrower, in the width of its tokens, in heads, and in units of its perceptrons: Minitron's students.

Muralidharan et al., "Compact Language Models via Pruning and Knowledge Distillation", NeurIPS 2024, arXiv:2407.14679, sec. 2.
"""

import copy
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.bridges import peft, transformers
from limbeck.bridges.torch_pruning import Port
from limbeck.compress._method import Bench, Operated, Surgery
from limbeck.core.errors import ArtifactError, MismatchError, RecipeError

from ._shapes import narrow, rebuilt, shapes_record
from ._structure import asking
from ._width_roles import Kept, Sizes, Transformer, read
from ._width_scores import activity

__all__ = ["Width"]

_MLP = ("intermediate_size", "n_inner", "ffn_dim", "hidden_dim")
"""What architectures call the width of a perceptron."""


class Width(Surgery):
    """Make a transformer narrower: the width of its tokens, its heads, and the units of its perceptrons, each to what is asked for, alike in every layer.

    Units are judged by what they do on training examples (`_width_scores`): those that do least go, in each layer its own, and of the tokens' width the same
    channels everywhere. What stays are rows and columns of the given weights. It knows models.gpt, models.encoder and, of transformers, GPT-2, GPT-NeoX, LLaMA
    and its kin, OPT, BERT, RoBERTa and DistilBERT, whose configuration then says so, and where heads together must be as wide as a token, heads go with it.
    A narrower model is broken until it is distilled (a stage with `init` of this one): its norms are over fewer channels.

    Args:
        hidden: the width of a token that stays: a whole number, or a share between 0 and 1.
        heads: the heads of each attention that stay. Where several share keys and values, as many go of each such group; or whole groups do.
        neurons: the units of each perceptron that stay.
        round_to: of hidden and neurons given as shares, the multiple that stays.
        examples: training examples that units are judged on.

    Raises:
        RecipeError: nothing asked for, or sizes that cannot be meant.
        MismatchError: a model with layers that are not known, or sizes that its architecture cannot have.
    """

    def __init__(
        self,
        *,
        hidden: int | float | None = None,
        heads: int | float | None = None,
        neurons: int | float | None = None,
        round_to: int = 1,
        examples: int = 256,
    ) -> None:
        self.asked = {name: value for name, value in (("hidden", hidden), ("heads", heads), ("neurons", neurons)) if value is not None}
        if not self.asked:
            raise RecipeError("prune.width is told nothing to make smaller: hidden, heads or neurons, each a number that stays, or a share")
        for name, value in self.asked.items():
            if value <= 0 or (isinstance(value, float) and not 0 < value < 1):
                raise RecipeError(f"{name} of prune.width is {value}; it is a whole number that stays, or a share above 0 and below 1")
        if min(round_to, examples) < 1:
            raise RecipeError(f"round_to of prune.width is {round_to} and examples {examples}; they are one or more")
        self.round_to, self.examples = round_to, examples

    def operate(self, model: nn.Module, bench: Bench) -> Operated:
        if peft.adapters(model):
            raise MismatchError(
                "prune.width cuts weights, and this model has adapters beside them: export it (format: transformers), which adds them up, first"
            )
        ask, known = asking(bench), read(model)
        old = known.sizes
        new, said = self._wanted(known)
        done = activity(model, known, list(bench.batches(self.examples, batch_size=32)), bench)
        kept = _chosen(known, new, done)
        made = _resized(model, known, new, kept) if transformers.inner(model) is not None else _narrowed(model, known, kept)
        with torch.no_grad():
            if any(not one.isfinite().all() for one in ask(made)):
                raise MismatchError(f"{type(model).__name__} gives no numbers once it is narrower: ask for less")
        record: dict[str, Any] = {"config": _config(known, new)} if transformers.inner(model) is not None else {"layers": shapes_record(model, made)}
        rows = [{"name": name, "channels": before, "left": after} for name, before, after in _pairs(old, new)]
        metrics = {f"{name}_left": float(after) for name, _, after in _pairs(old, new)}
        told = ", ".join(f"{name} {before} to {after}" for name, before, after in _pairs(old, new) if before != after)
        return Operated(made, record, metrics, rows, [f"narrower: {told}", *said])

    def _wanted(self, known: Transformer) -> tuple[Sizes, list[str]]:
        """The sizes that are asked for, and what else had to change."""
        old, said = known.sizes, list[str]()
        new = replace(
            old,
            hidden=self._one("hidden", old.hidden),
            mlp=self._one("neurons", old.mlp),
            heads=self._one("heads", old.heads),
        )
        new = replace(new, groups=_groups(old, new.heads))
        held = transformers.inner(known.body)
        if held is None or _fits(known, new):
            return new, said
        if "heads" not in self.asked and new.hidden % old.head == 0 and old.groups == old.heads:
            tied = replace(new, heads=new.hidden // old.head, groups=new.hidden // old.head)
            if _fits(known, tied):
                return tied, [f"the heads of {type(held).__name__} are together as wide as a token: {tied.heads} of {old.heads} stay"]
        near = max(1, round(new.hidden / old.head))
        tries = [(max(1, round(new.hidden / new.heads)) * new.heads, new.heads), (near * old.head, near)]
        way = next((f"hidden: {wide} and heads: {heads}" for wide, heads in tries if _could(known, replace(new, hidden=wide, heads=heads))), "other sizes")
        raise MismatchError(f"{type(held).__name__} cannot have tokens {new.hidden} wide with {new.heads} heads of {old.head}: ask for {way}")

    def _one(self, name: str, size: int) -> int:
        if name not in self.asked:
            return size
        value = self.asked[name]
        wanted = value if isinstance(value, int) else max(1, round(size * value))
        if isinstance(value, float) and name != "heads":
            wanted = min(size, math.ceil(wanted / self.round_to) * self.round_to)
        if wanted > size:
            raise RecipeError(f"{name} of prune.width is {value}, and the model has {size}: ask for that or fewer")
        return int(wanted)

    @staticmethod
    def rebuild(model: nn.Module, record: Mapping[str, Any]) -> nn.Module:
        if "layers" in record:
            return rebuilt(model, record["layers"])
        held = transformers.inner(model)
        if held is None:
            raise ArtifactError(f"the record of prune.width is of a model of transformers, and {type(model).__name__} is none: it was made of another model")
        return _put(model, held, transformers.resized(held, record["config"]))


def _pairs(old: Sizes, new: Sizes) -> list[tuple[str, int, int]]:
    return [("hidden", old.hidden, new.hidden), ("heads", old.heads, new.heads), ("neurons", old.mlp, new.mlp)]


def _groups(old: Sizes, heads: int) -> int:
    """How many groups of keys and values stay with so many heads: all, where each loses as many heads; else whole ones go."""
    if old.groups < old.heads and heads % old.groups == 0:
        return old.groups
    if heads * old.groups % old.heads == 0:
        return heads * old.groups // old.heads
    able = [one for one in range(1, old.heads + 1) if one % old.groups == 0 or one * old.groups % old.heads == 0]
    nearest = min(able, key=lambda one: abs(one - heads))
    raise RecipeError(f"{heads} heads do not share {old.groups} groups of keys and values as {old.heads} do: the nearest that can be is heads: {nearest}")


def _config(known: Transformer, new: Sizes) -> dict[str, Any]:
    """What the configuration of a model of transformers says otherwise."""
    held = transformers.inner(known.body)
    assert held is not None
    config, old = held.config, known.sizes
    told = config.to_dict()
    changes: dict[str, Any] = {"hidden_size": new.hidden, "num_attention_heads": new.heads}
    if "num_key_value_heads" in told:
        changes["num_key_value_heads"] = new.groups
    if told.get("head_dim") is not None or new.hidden // new.heads != old.head:
        changes["head_dim"] = old.head
    if (mlp := next((name for name in _MLP if name in told), None)) is not None:
        changes[mlp] = new.mlp
    if told.get("word_embed_proj_dim") == old.hidden:
        changes["word_embed_proj_dim"] = new.hidden
    return changes


def _fits(known: Transformer, new: Sizes) -> bool:
    """Whether the architecture can have these sizes, and has them where they are looked for."""
    held = transformers.inner(known.body)
    try:
        wanted = transformers.shapes(held, _config(known, new))
    except MismatchError:
        return False
    return all(
        list(size) == [new.of(role, before) for role, before in zip(one.of(name), parameter.shape, strict=True)]
        for path, one in known.axes.items()
        for name, parameter in known.body.get_submodule(path).named_parameters(recurse=False)
        for size in [wanted[f"{path}.{name}".removeprefix(".")]]
    )


def _could(known: Transformer, new: Sizes) -> bool:
    """Whether there are groups with which the architecture can have these sizes."""
    try:
        return new.hidden <= known.sizes.hidden and new.heads <= known.sizes.heads and _fits(known, replace(new, groups=_groups(known.sizes, new.heads)))
    except RecipeError:
        return False


def _chosen(known: Transformer, new: Sizes, done: Mapping[str, Tensor]) -> Kept:
    """The units that stay: those that do most."""
    old = known.sizes

    def most(scores: Tensor, count: int) -> Tensor:
        return scores.argsort(descending=True, stable=True)[:count].sort().values

    heads, groups = list[Tensor](), list[Tensor]()
    for path in known.readers("query"):
        by_group = done[path].view(old.groups, -1)
        chosen = most(by_group.sum(1), new.groups)
        inside = torch.stack([most(by_group[group], new.heads // new.groups) for group in chosen.tolist()])
        heads.append((chosen[:, None] * by_group.shape[1] + inside).flatten())
        groups.append(chosen)
    units = tuple(most(done[path], new.mlp) for path in known.readers("mlp"))
    return Kept(most(done["hidden"], new.hidden), tuple(heads), tuple(groups), units)


def _resized(model: nn.Module, known: Transformer, new: Sizes, kept: Kept) -> nn.Module:
    """A model of transformers of the new sizes, with what stays of the weights."""
    held = transformers.inner(model)
    assert held is not None
    fresh = transformers.resized(held, _config(known, new))
    with torch.no_grad():
        for path, axes in known.axes.items():
            target = fresh.get_submodule(path)
            for name, parameter in known.body.get_submodule(path).named_parameters(recurse=False):
                found = parameter
                for axis, role in enumerate(axes.of(name)):
                    index = kept.index(role, known.layer(path), known.sizes)
                    found = found if index is None else found.index_select(axis, index.to(found.device))
                target.get_parameter(name).copy_(found)
    made = copy.copy(model)
    made._modules = dict(model._modules)
    return _put(made, held, fresh).eval()


def _put(model: nn.Module, held: Any, fresh: Any) -> nn.Module:
    """Put a model of transformers in the place of another within a module."""
    if model is held:
        return fresh
    name = next(name for name, child in model.named_children() if child is held)
    setattr(model, name, fresh)
    return model


def _narrowed(model: nn.Module, known: Transformer, kept: Kept) -> nn.Module:
    """A model of ours without what goes."""
    made, keep = copy.deepcopy(model), dict[Port, Tensor]()
    for path, axes in known.axes.items():
        module, layer = known.body.get_submodule(path), known.layer(path)
        linear = isinstance(module, nn.Linear)
        for role, side in ((axes.gives, "out" if linear else "through"), (axes.reads, "in" if linear else "through")):
            index = kept.index(role, layer, known.sizes) if role else None
            if index is not None:
                keep[Port(path, side)] = index
        if axes.reads == "query" and layer is not None:
            keep[Port(path.rpartition(".")[0], "heads")] = kept.heads[layer]
    narrow(made, keep)
    return made
