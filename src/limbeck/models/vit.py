"""A vision transformer for small images.

Dosovitskiy et al., "An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale", ICLR 2021, arXiv:2010.11929, sec. 3.1;
its small sizes: Touvron et al., "Training data-efficient image transformers & distillation through attention", ICML 2021, arXiv:2012.12877, table 1.

Shapes: N examples, D width of a token, h heads, H x W an image of P x P patches, T tokens.
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from limbeck.core.errors import MismatchError, RecipeError, did_you_mean

from ._arguments import check_classes, check_whole, image_channels

__all__ = ["ViT"]


class _Attention(nn.Module):
    """Self-attention, in the open: `softmax` gives the probabilities `[N, h, T, T]` and reads the scores, which fused kernels never show."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.softmax = nn.Softmax(-1)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value))
        scores = (query @ key.transpose(-1, -2)) / math.sqrt(key.shape[-1])
        return self.out((self.softmax(scores) @ value).transpose(1, 2).flatten(2))


class _Block(nn.Module):
    """Attention and a perceptron of two layers with GELU, each of the normalised tokens and added to them."""

    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attention = _Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class _Map(nn.Module):
    """The patches' tokens as a map `[N, D, H/P, W/P]`, for whoever reads it; the network goes on with the tokens."""

    def __init__(self, high: int, wide: int) -> None:
        super().__init__()
        self.size = (high, wide)

    def forward(self, x: Tensor) -> Tensor:
        return x[:, -math.prod(self.size) :].transpose(1, 2).unflatten(2, self.size)


class _First(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, 0]


class _Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


class ViT(nn.Module):
    """A vision transformer: patches of P x P pixels, embedded linearly with a learnt position each, blocks of self-attention, a norm, one token, a linear head.

    `patch: 16, dim: 192, depth: 12, heads: 3` on 224x224 images of 1000 classes is DeiT-tiny without its distillation token, 5,717,416 parameters
    (Touvron et al. 2021, table 1: 5M); dim 384 with 6 heads is DeiT-small, 22,050,664. Its attention is computed in the open, so that it can be read and
    differentiated twice, and not by fused kernels, which are faster on long sequences. No dropout.

    Layers to read: `blocks.k [N, T, D]`, k from 0; of each, `blocks.k.attention.query`, `key` and `value [N, T, D]`, `blocks.k.attention.softmax [N, h, T, T]`,
    the probabilities, and their scores as `blocks.k.attention.softmax:in`. The ends of the first, second and last third of the blocks, patches alone, are
    the maps `layer1`, `layer2`, `layer3 [N, D, H/P, W/P]` (as many as there are blocks, where those are fewer). Then `norm [N, T, D]`, `pool [N, D]`,
    `head [N, C]`. T is the count of patches, and one more, the first, for `cls`.

    Args:
        patch: P, pixels along the side of a patch; it must divide both sides of the image.
        dim: D, the width of a token.
        depth: blocks.
        heads: heads of attention, which must divide dim.
        mlp_ratio: how many times dim the perceptron of a block is wide.
        pool: what the head reads: cls, a token of its own; mean, the average of the patches, without such a token.

    Raises:
        MismatchError: examples that are no images, or that patches do not divide.
        RecipeError: a size below one, heads that do not divide dim, or another pool.
    """

    def __init__(
        self,
        in_shape: tuple[int, ...],
        classes: int,
        *,
        patch: int = 4,
        dim: int = 128,
        depth: int = 6,
        heads: int = 4,
        mlp_ratio: float = 4.0,
        pool: Literal["cls", "mean"] = "cls",
    ) -> None:
        super().__init__()
        check_classes("ViT", classes)
        for name, size in (("patch", patch), ("dim", dim), ("depth", depth), ("heads", heads)):
            check_whole(name, size)
        channels = image_channels("ViT", in_shape, least=patch)
        if dim % heads:
            raise RecipeError(f"dim {dim} does not split into {heads} heads; heads may be {_divisors(dim)}")
        if in_shape[1] % patch or in_shape[2] % patch:
            fit = _divisors(math.gcd(in_shape[1], in_shape[2]))
            raise MismatchError(f"patches of {patch}x{patch} do not divide images of {in_shape[1]}x{in_shape[2]}; patch may be {fit}")
        if not (math.isfinite(mlp_ratio) and int(dim * mlp_ratio) >= 1):
            raise RecipeError(f"mlp_ratio is {mlp_ratio:g}; it must be finite and leave one unit or more of {dim}")
        if pool not in ("cls", "mean"):
            raise RecipeError(f"no pool {pool!r} for ViT{did_you_mean(pool, ('cls', 'mean'))}")
        high, wide = in_shape[1] // patch, in_shape[2] // patch
        self.patches = nn.Conv2d(channels, dim, patch, patch)
        self.cls = nn.Parameter(torch.zeros(1, 1, dim)) if pool == "cls" else None
        self.position = nn.Parameter(torch.zeros(1, high * wide + (pool == "cls"), dim))
        self.blocks = nn.ModuleList(_Block(dim, heads, int(dim * mlp_ratio)) for _ in range(depth))
        stages = min(3, depth)
        self._ends = {math.ceil(depth * stage / stages): f"layer{stage}" for stage in range(1, stages + 1)}
        for name in self._ends.values():
            self.add_module(name, _Map(high, wide))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.pool = _First() if pool == "cls" else _Mean()
        self.head = nn.Linear(dim, classes)
        self._begin()

    def _begin(self) -> None:
        """Weights from a normal of deviation 0.02, cut at two; biases of zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02, a=-0.04, b=0.04)
                nn.init.zeros_(module.bias)
        for token in (self.cls, self.position):
            if token is not None:
                nn.init.trunc_normal_(token, std=0.02, a=-0.04, b=0.04)

    def forward(self, x: Tensor) -> Tensor:
        """Images `[N, channels, H, W]` to logits `[N, C]`."""
        x = self.patches(x).flatten(2).transpose(1, 2)
        if self.cls is not None:
            x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], 1)
        x = x + self.position
        for index, block in enumerate(self.blocks, 1):
            x = block(x)
            if index in self._ends:
                self.get_submodule(self._ends[index])(x)
        return self.head(self.pool(self.norm(x)))


def _divisors(number: int) -> str:
    return ", ".join(str(one) for one in range(1, number + 1) if number % one == 0)
