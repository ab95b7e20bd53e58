"""What every axis of a transformer's weights is: the width of a token, heads of attention, units of the perceptron, or something that stays.

Roles: hidden (D), query (h d), key (k d: keys and values, which several heads may share), mlp (M); joined: query, key and value one after the other (GPT-2);
woven: the three head by head (GPT-NeoX); stays: vocabulary, positions, classes, the width of a head.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.bridges import transformers
from limbeck.core.errors import MismatchError

from ._stack import stack_of

__all__ = ["Axes", "Kept", "Sizes", "Transformer", "read"]

_LAYERS: tuple[tuple[str, str, str], ...] = (
    (r"(lm_head|lm_head\.decoder|embed_out|predictions\.decoder|vocab_projector|classifier|score|classifier\.out_proj|^head)$", "hidden", "stays"),
    (r"attn\.c_attn$", "hidden", "joined"),
    (r"attention\.query_key_value$", "hidden", "woven"),
    (r"(q_proj|query|q_lin)$", "hidden", "query"),
    (r"(k_proj|v_proj|key|value|k_lin|v_lin)$", "hidden", "key"),
    (r"(o_proj|self_attn\.out_proj|out_lin|attention\.dense|attention\.output\.dense|attn\.c_proj|attention\.out)$", "query", "hidden"),
    (r"(gate_proj|up_proj|fc1|intermediate\.dense|mlp\.c_fc|ffn\.lin1|dense_h_to_4h|mlp\.0)$", "hidden", "mlp"),
    (r"(down_proj|fc2|output\.dense|mlp\.c_proj|ffn\.lin2|dense_4h_to_h|mlp\.2)$", "mlp", "hidden"),
    (r"(transform\.dense|vocab_transform|pooler\.dense|pre_classifier|lm_head\.dense|classifier\.dense|^transform\.0)$", "hidden", "hidden"),
)
"""Path of a linear layer -> what it reads and what it gives; the first that fits."""
_EMBEDS = r"(wte|wpe|embed_tokens|embed_positions|word_embeddings|position_embeddings|token_type_embeddings|embed_in|^embed|^position)$"
_KNOWN = "GPT-2, GPT-NeoX, LLaMA, Mistral, Qwen, Gemma, OPT, BERT, RoBERTa and DistilBERT"


@dataclass(frozen=True)
class Sizes:
    """The sizes of a transformer: D, h, k, d and M."""

    hidden: int
    heads: int
    groups: int
    head: int
    mlp: int

    def of(self, role: str, other: int) -> int:
        """How long an axis of a role is; `other` where it stays as it is."""
        inner = self.heads * self.head
        known = {"hidden": self.hidden, "query": inner, "key": self.groups * self.head, "mlp": self.mlp, "joined": 3 * inner, "woven": 3 * inner}
        return known.get(role, other)


@dataclass(frozen=True)
class Axes:
    """What a layer reads and gives, its weight [gives, reads], and [reads, gives] where it is `turned`; of a `norm` one number for each that it gives."""

    reads: str
    gives: str
    turned: bool = False
    norm: bool = False

    def of(self, name: str) -> tuple[str, ...]:
        """The role of each axis of a parameter."""
        if name != "weight" or self.norm:
            return (self.gives,)
        return (self.reads, self.gives) if self.turned else (self.gives, self.reads)


@dataclass(frozen=True)
class Kept:
    """Which places stay: of the width of tokens `[D']`, and of each layer its heads `[h']`, its groups of keys and values `[k']` and its units `[M']`."""

    hidden: Tensor
    heads: tuple[Tensor, ...]
    groups: tuple[Tensor, ...]
    mlp: tuple[Tensor, ...]

    def index(self, role: str, layer: int | None, sizes: Sizes) -> Tensor | None:
        """Return the places of an axis that stay, None where all do."""
        if role == "stays":
            return None
        if role == "hidden":
            return self.hidden
        assert layer is not None, f"{role} outside of all layers"
        match role:
            case "query":
                return _spread(self.heads[layer], sizes.head)
            case "key":
                return _spread(self.groups[layer], sizes.head)
            case "mlp":
                return self.mlp[layer]
            case "joined":
                one = _spread(self.heads[layer], sizes.head)
                return torch.cat([one + part * sizes.heads * sizes.head for part in range(3)])
        return _spread(self.heads[layer], 3 * sizes.head)


def _spread(units: Tensor, width: int) -> Tensor:
    return (units[:, None] * width + torch.arange(width)).flatten()


@dataclass(frozen=True)
class Transformer:
    """A model whose every weight is known: `body` is the model itself, or that of transformers within it, whose paths these are."""

    body: nn.Module
    stack: str
    axes: Mapping[str, Axes]
    sizes: Sizes

    @property
    def depth(self) -> int:
        stack = self.body.get_submodule(self.stack)
        assert isinstance(stack, nn.ModuleList)
        return len(stack)

    def layer(self, path: str) -> int | None:
        """The number of the layer in which a path lies, None outside of all."""
        inside = path.removeprefix(f"{self.stack}.")
        return int(inside.partition(".")[0]) if inside != path else None

    def readers(self, role: str) -> list[str]:
        """The layers that read a role, in the order of the stack: of query, the ends of attention; of mlp, those of perceptrons."""
        return [path for path, one in self.axes.items() if one.reads == role and self.layer(path) is not None]

    @property
    def norms(self) -> list[str]:
        """The norms over the width of a token."""
        return [path for path, one in self.axes.items() if one.norm and one.gives == "hidden"]


def read(model: nn.Module) -> Transformer:
    """Find what every weight of a transformer is.

    Raises:
        MismatchError: a layer that is not known, or of another size than the rest.
    """
    held: Any = transformers.inner(model)
    body: nn.Module = model if held is None else held
    stack = stack_of(body)
    axes = {path: _axes(path, module, body) for path, module in body.named_modules() if next(iter(module.parameters(recurse=False)), None) is not None}
    found = Transformer(body, stack, axes, _sizes(body, held, axes))
    if len(found.readers("query")) != found.depth or len(found.readers("mlp")) != found.depth:
        raise _unknown(f"{stack!r}, whose layers are not one attention and one perceptron each,")
    for path, one in list(axes.items()):
        for name, parameter in body.get_submodule(path).named_parameters(recurse=False):
            for role, size in zip(one.of(name), parameter.shape, strict=True):
                if found.sizes.of(role, size) != size:
                    raise _unknown(f"{f'{path}.{name}'!r} with {size}, and not {found.sizes.of(role, size)} as the other {role} sizes,")
    return found


def _axes(path: str, module: nn.Module, body: nn.Module) -> Axes:
    own = dict(module.named_parameters(recurse=False))
    turned = type(module).__name__ == "Conv1D"
    if isinstance(module, nn.Linear) or turned:
        roles = next((one for one in _LAYERS if re.search(one[0], path)), None)
        if roles is None:
            raise _unknown(repr(path))
        return Axes(roles[1], roles[2], turned)
    if isinstance(module, nn.Embedding) and re.search(_EMBEDS, path):
        return Axes("hidden", "stays")  # its weight is [stays, hidden]
    if "norm" in type(module).__name__.lower() and all(one.ndim == 1 for one in own.values()):
        inner = re.search(r"([qk])_(norm|layernorm)$", path)
        if inner is None:
            return Axes("", "hidden", norm=True)
        wide = next(iter(own.values())).numel() > _head_of(body)
        return Axes("", {"q": "query", "k": "key"}[inner[1]] if wide else "stays", norm=True)
    if list(own) == ["bias"] and own["bias"].ndim == 1:  # of the whole vocabulary
        return Axes("", "stays", norm=True)
    raise _unknown(f"{path!r} ({type(module).__name__})")


def _unknown(what: str) -> MismatchError:
    return MismatchError(
        f"prune.width does not know {what} and so cannot make this model narrower: it knows models.gpt, models.encoder, and of transformers what is built as "
        f"{_KNOWN}; leave layers (prune.layers), or distil into a smaller model"
    )


def _head_of(body: nn.Module) -> int:
    config: Any = vars(body).get("config")
    return 0 if config is None else getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _sizes(body: nn.Module, held: Any, axes: Mapping[str, Axes]) -> Sizes:
    def size(role: str, *, gives: str) -> int:
        """How long the axis of a role is in the first layer that gives something."""
        path = next((path for path, one in axes.items() if one.gives == gives and role in one.of("weight") and not one.norm), None)
        if path is None:
            raise _unknown(f"a model without a layer from {role} to {gives}")
        return body.get_submodule(path).get_parameter("weight").shape[axes[path].of("weight").index(role)]

    hidden, query, mlp = size("hidden", gives="mlp"), size("query", gives="hidden"), size("mlp", gives="hidden")
    if held is None:
        counts = {vars(module)["heads"] for module in body.modules() if type(vars(module).get("heads")) is int}
        if len(counts) != 1:
            raise _unknown(f"attentions of {' and '.join(map(str, sorted(counts)))} heads")
        heads = counts.pop()
    else:
        heads = held.config.num_attention_heads
    head = query // heads
    key = next((path for path, one in axes.items() if one.gives == "key"), None)
    groups = heads if key is None else body.get_submodule(key).get_parameter("weight").shape[0] // head
    return Sizes(hidden, heads, groups, head, mlp)
