"""The block that language models are made of: self-attention and a perceptron, each added to what it read.

Vaswani et al., "Attention Is All You Need", NeurIPS 2017, arXiv:1706.03762, sec. 3.

Shapes: N rows, T tokens, S tokens to look at (T, and those before them), D width of a token, h heads of d = D / h.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.core.errors import MismatchError, RecipeError, did_you_mean

from ._arguments import check_classes, check_rate, check_whole

__all__ = ["Block", "How", "Past", "begin", "check_sizes", "ends", "length_of", "rotation"]

How = Literal["fused", "open"]
_EPS = 1e-5


class Past:
    """The keys and values `[N, h, S, d]` of what a block has read before."""

    def __init__(self) -> None:
        self._seen: tuple[Tensor, Tensor] | None = None

    def with_new(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Return all keys and values, the new ones last, and keep them."""
        self._seen = (key, value) if self._seen is None else (torch.cat([self._seen[0], key], 2), torch.cat([self._seen[1], value], 2))
        return self._seen

    def take(self, rows: Tensor) -> None:
        """Go on with these rows of what was read, `[M]`; a row may come several times."""
        if self._seen is not None:
            self._seen = (self._seen[0].index_select(0, rows), self._seen[1].index_select(0, rows))


class Attention(nn.Module):
    """Self-attention, by torch's fused kernels, or in the open: `softmax` then gives the probabilities `[N, h, T, S]` and reads the scores.

    `allowed [N or 1, 1, T or 1, S]`: who may look at whom; without it everybody at everybody, or with `causal` each token at itself and those before it.
    `turned`: the cosines and sines of rotary positions.
    """

    def __init__(self, dim: int, heads: int, dropout: float, how: How) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query, self.key, self.value = nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.softmax = nn.Softmax(-1) if how == "open" else None
        self.out = nn.Linear(dim, dim)

    def forward(
        self, x: Tensor, allowed: Tensor | None = None, causal: bool = False, turned: tuple[Tensor, Tensor] | None = None, past: Past | None = None
    ) -> Tensor:
        query, key, value = (layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value))
        if turned is not None:
            query, key = _turn(query, *turned), _turn(key, *turned)
        if past is not None:
            key, value = past.with_new(key, value)
        rate = self.dropout if self.training else 0.0
        if self.softmax is None:
            mixed = F.scaled_dot_product_attention(query, key, value, allowed, rate, is_causal=causal and allowed is None)
        else:
            if causal and allowed is None:
                allowed = torch.ones(x.shape[1], key.shape[2], dtype=torch.bool, device=x.device).tril()
            scores = (query @ key.transpose(-1, -2)) / math.sqrt(key.shape[-1])
            mixed = F.dropout(self.softmax(scores if allowed is None else scores.masked_fill(~allowed, -math.inf)), rate) @ value
        return self.out(mixed.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention and a perceptron of two layers with GELU, each added to what it read: of normalised tokens (`pre`), or the sum normalised (`post`)."""

    def __init__(self, dim: int, heads: int, hidden: int, *, norm: Literal["pre", "post"], dropout: float, how: How) -> None:
        super().__init__()
        self.pre = norm == "pre"
        self.norm1 = nn.LayerNorm(dim, eps=_EPS)
        self.attention = Attention(dim, heads, dropout, how)
        self.norm2 = nn.LayerNorm(dim, eps=_EPS)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))
        self.drop = nn.Dropout(dropout)

    def forward(
        self, x: Tensor, allowed: Tensor | None = None, causal: bool = False, turned: tuple[Tensor, Tensor] | None = None, past: Past | None = None
    ) -> Tensor:
        if self.pre:
            x = x + self.drop(self.attention(self.norm1(x), allowed, causal, turned, past))
            return x + self.drop(self.mlp(self.norm2(x)))
        x = self.norm1(x + self.drop(self.attention(x, allowed, causal, turned, past)))
        return self.norm2(x + self.drop(self.mlp(x)))


def rotation(position: Tensor, width: int, base: float = 10_000.0) -> tuple[Tensor, Tensor]:
    """Return the cosines and sines `[N, 1, T, d / 2]` of rotary positions `[N, T]`: pair i of d / 2 turns by position * base^(-2i / d).

    Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021, arXiv:2104.09864, eq. 34.
    """
    speed = base ** (-torch.arange(0, width, 2, device=position.device, dtype=torch.float32) / width)
    angle = position[:, None, :, None].float() * speed
    return angle.cos(), angle.sin()


def _turn(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Turn each pair (x_i, x_{i + d/2}) of `[N, h, T, d]` by its angle."""
    first, second = x.chunk(2, -1)
    return torch.cat([first * cosine - second * sine, first * sine + second * cosine], -1).to(x.dtype)


def ends(depth: int) -> dict[int, str]:
    """Return after which blocks the thirds of a stack end, and the names of those places: layer1, layer2, layer3.

    >>> ends(6)
    {2: 'layer1', 4: 'layer2', 6: 'layer3'}
    """
    stages = min(3, depth)
    return {math.ceil(depth * stage / stages): f"layer{stage}" for stage in range(1, stages + 1)}


def begin(model: nn.Module) -> None:
    """Weights from a normal of deviation 0.02, biases of zero."""
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)


def length_of(model: str, in_shape: Sequence[int]) -> int:
    """Return T of an example's shape (T,), or refuse another."""
    if len(in_shape) != 1 or in_shape[0] < 1:
        raise MismatchError(f"{model} reads rows of token ids (T,), not examples of shape {tuple(in_shape)}: use a task of text")
    return in_shape[0]


def check_sizes(model: str, classes: int, dim: int, depth: int, heads: int, mlp_ratio: float, dropout: float, attention: str) -> int:
    """Refuse sizes that make no transformer; return how wide a block's perceptron is."""
    check_classes(model, classes)
    for name, size in (("dim", dim), ("depth", depth), ("heads", heads)):
        check_whole(name, size)
    check_rate("dropout", dropout)
    if dim % heads:
        fit = ", ".join(str(one) for one in range(1, dim + 1) if dim % one == 0)
        raise RecipeError(f"dim {dim} does not split into {heads} heads; heads may be {fit}")
    if not (math.isfinite(mlp_ratio) and int(dim * mlp_ratio) >= 1):
        raise RecipeError(f"mlp_ratio is {mlp_ratio:g}; it must be finite and leave one unit or more of {dim}")
    if attention not in ("fused", "open"):
        raise RecipeError(f"no attention {attention!r} for {model}{did_you_mean(attention, ('fused', 'open'))}")
    return int(dim * mlp_ratio)
