"""A small bidirectional encoder, for sentences and for masked tokens.

Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding", NAACL 2019, arXiv:1810.04805, sec. 3; without its segments
and its pooler: Sanh et al., "DistilBERT, a distilled version of BERT", 2019, arXiv:1910.01108, sec. 3.

Shapes: N rows, T tokens, D width of a token, V vocabulary, C classes.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from limbeck.core.errors import MismatchError, RecipeError, did_you_mean
from limbeck.core.knowledge import Hidden

from ._arguments import check_whole
from ._transformer import Block, How, begin, check_sizes, ends, length_of

__all__ = ["Encoder"]


class Encoder(nn.Module):
    """A bidirectional transformer: tokens and positions embedded and normalised, blocks, and an answer for the row or for each token.

    Where `vocabulary` is not given the classes are the tokens: each token is answered by a `Hidden`, the states after a linear layer, GELU and a norm, and the
    embedding as the head, with a bias of its own (masked language modelling). Where it is, rows are classified: logits `[N, C]` of one state by the linear
    layer `head`. `dim: 768, depth: 6, heads: 12`, 512 tokens and the vocabulary of 30,522 are DistilBERT's 66,985,530 parameters for masked tokens.

    `embed`, `blocks.I` and within it `attention` (with query, key, value, out, and in the open softmax) and `mlp`, `norm` and `head` can be read; `layer1`,
    `layer2`, `layer3` are the ends of the thirds.

    Args:
        vocabulary: V, how many tokens there are; each token is answered where it is not given.
        dim: D, the width of a token.
        depth: blocks.
        heads: heads of attention, which must divide dim.
        mlp_ratio: how many times dim the perceptron of a block is wide.
        norm: post (each sum normalised, as BERT) or pre (what a block reads normalised, with a norm at the end).
        pool: what the head reads: cls, the state of the first token; mean, that of the tokens that are no padding.
        dropout: of embeddings, attention and what is added by a block, in training.
        attention: fused (torch's kernels) or open (its probabilities can be read, and differentiated twice).

    Raises:
        MismatchError: examples that are no rows of tokens.
        RecipeError: sizes that make no transformer.
    """

    def __init__(
        self,
        in_shape: tuple[int, ...],
        classes: int,
        *,
        vocabulary: int | None = None,
        dim: int = 128,
        depth: int = 4,
        heads: int = 4,
        mlp_ratio: float = 4.0,
        norm: Literal["post", "pre"] = "post",
        pool: Literal["cls", "mean"] = "cls",
        dropout: float = 0.0,
        attention: How = "fused",
    ) -> None:
        super().__init__()
        self.context = length_of("Encoder", in_shape)
        hidden = check_sizes("Encoder", classes, dim, depth, heads, mlp_ratio, dropout, attention)
        for name, given, kinds in (("norm", norm, ("post", "pre")), ("pool", pool, ("cls", "mean"))):
            if given not in kinds:
                raise RecipeError(f"no {name} {given!r} for Encoder{did_you_mean(given, kinds)}")
        if vocabulary is not None:
            check_whole("vocabulary", vocabulary)
        self.mean = pool == "mean"
        self.embed = nn.Embedding(classes if vocabulary is None else vocabulary, dim)
        self.position = nn.Embedding(self.context, dim)
        self.embed_norm = nn.LayerNorm(dim, eps=1e-5)
        self.drop = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(dim, heads, hidden, norm=norm, dropout=dropout, how=attention) for _ in range(depth))
        for name in ends(depth).values():
            self.add_module(name, nn.Identity())
        self.norm = nn.LayerNorm(dim, eps=1e-5) if norm == "pre" else nn.Identity()
        self.transform = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.LayerNorm(dim, eps=1e-5)) if vocabulary is None else None
        self.bias = nn.Parameter(torch.zeros(classes)) if vocabulary is None else None
        self.head = None if vocabulary is None else nn.Linear(dim, classes)
        begin(self)

    def forward(self, input: Tensor, attention: Tensor | None = None) -> Tensor | Hidden:
        """Token ids `[N, T]` to logits `[N, C]`, or to what is said of each token.

        `attention [N, T]`: 1 for what may be looked at, 0 for padding, which nobody looks at; a row has one token or more. All may where it is not given.

        Raises:
            MismatchError: more tokens than the model has positions for.
        """
        length = input.shape[1]
        if length > self.context:
            raise MismatchError(
                f"a row has {length} tokens, and Encoder has positions for {self.context}: build it for longer rows, or lower the task's context"
            )
        x = self.embed(input) + self.position(torch.arange(length, device=input.device))
        x = self.drop(self.embed_norm(x))
        allowed = None if attention is None else attention.bool()[:, None, None, :]
        places = ends(len(self.blocks))
        for index, block in enumerate(self.blocks, 1):
            x = block(x, allowed)
            if index in places:
                x = self.get_submodule(places[index])(x)
        x = self.norm(x)
        if self.head is None:
            assert self.transform is not None
            return Hidden(self.transform(x), self.embed.weight, self.bias)
        return self.head(self._pooled(x, attention))

    def _pooled(self, x: Tensor, attention: Tensor | None) -> Tensor:
        if not self.mean:
            return x[:, 0]
        if attention is None:
            return x.mean(1)
        weight = attention.to(x.dtype)[..., None]
        return (x * weight).sum(1) / weight.sum(1)
