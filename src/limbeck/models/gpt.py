"""A small causal language model.

Radford et al., "Language Models are Unsupervised Multitask Learners", 2019 (GPT-2), sec. 2.3.

Shapes: N rows, T tokens, D width of a token, V vocabulary.
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from limbeck.core.errors import MismatchError, RecipeError, did_you_mean
from limbeck.core.knowledge import Hidden

from ._generate import check_generate, generated, within
from ._transformer import Block, How, Past, begin, check_sizes, ends, length_of, rotation

__all__ = ["GPT"]


class GPT(nn.Module):
    """A causal transformer: tokens embedded, blocks that normalise what they read (pre-norm), a norm, and a head over the vocabulary.

    Its answer is a `Hidden`, the normalised states `[N, T, D]` and the head's weight `[V, D]`, whose `logits` nobody need multiply out. With `dim: 768,
    depth: 12, heads: 12`, 1,024 tokens and the vocabulary of 50,257 it is GPT-2 small, 124,439,808 parameters. Parameters: V D (the embedding, and the head
    where it is tied) + V D (a head of its own) + T D (learnt positions) + depth ((4 + 2 r) D^2 + (9 + r) D) + 2 D, with r the ratio of the perceptron.

    `embed`, `blocks.I.attention` (with query, key, value, out, and in the open softmax), `blocks.I.mlp` and `norm` can be read; `layer1`, `layer2`, `layer3`
    are the ends of the thirds.

    Args:
        dim: D, the width of a token.
        depth: blocks.
        heads: heads of attention, which must divide dim.
        mlp_ratio: how many times dim the perceptron of a block is wide.
        positions: learned (a vector for each) or rope (queries and keys turned; dim / heads must be even).
        tied: whether the head is the embedding.
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
        dim: int = 128,
        depth: int = 4,
        heads: int = 4,
        mlp_ratio: float = 4.0,
        positions: Literal["learned", "rope"] = "learned",
        tied: bool = True,
        dropout: float = 0.0,
        attention: How = "fused",
    ) -> None:
        super().__init__()
        self.context = length_of("GPT", in_shape)
        hidden = check_sizes("GPT", classes, dim, depth, heads, mlp_ratio, dropout, attention)
        if positions not in ("learned", "rope"):
            raise RecipeError(f"no positions {positions!r} for GPT{did_you_mean(positions, ('learned', 'rope'))}")
        if positions == "rope" and dim // heads % 2:
            raise RecipeError(f"a head of dim {dim} / {heads} heads is {dim // heads} wide; rope turns pairs: make it even")
        self.embed = nn.Embedding(classes, dim)
        self.position = nn.Embedding(self.context, dim) if positions == "learned" else None
        self.drop = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(dim, heads, hidden, norm="pre", dropout=dropout, how=attention) for _ in range(depth))
        self._width = dim // heads
        for name in ends(depth).values():
            self.add_module(name, nn.Identity())
        self.norm = nn.LayerNorm(dim, eps=1e-5)
        self.head = None if tied else nn.Linear(dim, classes, bias=False)
        begin(self)
        for name, parameter in self.named_parameters():
            if name.endswith(("attention.out.weight", "mlp.2.weight")):  # 2 depth of them are added up
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * depth))

    def forward(self, input: Tensor, segment: Tensor | None = None, position: Tensor | None = None) -> Hidden:
        """Token ids `[N, T]` to what is said of the token after each.

        `segment [N, T]`: attention stays within the tokens of one number; `position [N, T]`, from 0 within each segment where it is not given.

        Raises:
            MismatchError: more tokens than the model has positions for.
        """
        return self._said(self._read(input, segment, segment, position, None))

    @torch.no_grad()
    def generate(
        self,
        prompt: Tensor,
        tokens: int,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        eos: int | None = None,
        segment: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return the prompt `[N, L]` and `tokens` more, each read once: keys and values of what was read are kept.

        `temperature`: 0 takes the likeliest token; `top_k` draws among that many of the likeliest; after its `eos` a row goes on with it. Prompts of several
        lengths are padded on the left, and `segment [N, L]` is 0 there and 1 in the prompt. The model draws in the mode that it is in.

        Raises:
            MismatchError: an empty prompt, or more tokens in all than the model has positions for.
            RecipeError: a temperature below zero, or a top_k outside the vocabulary.
        """
        check_generate("GPT", prompt, tokens, self.context, temperature, top_k, self.embed.num_embeddings)
        return generated(self.reading, prompt, tokens, temperature=temperature, top_k=top_k, eos=eos, segment=segment, generator=generator)

    def reading(self, segment: Tensor) -> "_Reading":
        """Return a reading of rows piece by piece, each token once: `segment [N, T]` of all that may come, 0 where it is padding."""
        return _Reading(self, segment)

    def _said(self, states: Tensor) -> Hidden:
        return Hidden(states, (self.embed if self.head is None else self.head).weight)

    def _read(self, input: Tensor, mine: Tensor | None, others: Tensor | None, position: Tensor | None, pasts: list[Past] | None) -> Tensor:
        """The states of some tokens; `mine` are their segments, `others` those of all that have been read, these the last."""
        length = input.shape[1]
        if length > self.context:
            raise MismatchError(f"a row has {length} tokens, and GPT has positions for {self.context}: build it for longer rows, or lower the task's context")
        if position is None:
            position = torch.arange(length, device=input.device)[None] if mine is None else within(mine)
        allowed = None
        if mine is not None and others is not None:
            before = torch.ones(length, others.shape[1], dtype=torch.bool, device=input.device).tril(others.shape[1] - length)
            allowed = ((mine[:, :, None] == others[:, None, :]) & before)[:, None]
        x = self.embed(input)
        if self.position is not None:
            x = x + self.position(position)
        x = self.drop(x)
        turned = rotation(position, self._width) if self.position is None else None
        places = ends(len(self.blocks))
        for index, block in enumerate(self.blocks, 1):
            x = block(x, allowed, True, turned, None if pasts is None else pasts[index - 1])
            if index in places:
                x = self.get_submodule(places[index])(x)
        return self.norm(x)


class _Reading:
    """What a GPT has read of some rows, keys and values kept; what it is asked about carries no gradient where its caller records none."""

    def __init__(self, model: GPT, segment: Tensor) -> None:
        self._model, self._segment, self._position = model, segment, within(segment)
        self._pasts = [Past() for _ in model.blocks]
        self._end = 0

    def __call__(self, tokens: Tensor) -> Hidden:
        """Read the next tokens `[N, L]` and say what comes after the last of them, `[N]` predictions."""
        start, self._end = self._end, self._end + tokens.shape[1]
        new, seen = slice(start, self._end), slice(0, self._end)
        states = self._model._read(tokens, self._segment[:, new], self._segment[:, seen], self._position[:, new], self._pasts)
        return self._model._said(states[:, -1])

    def take(self, rows: Tensor) -> None:
        """Go on with these rows, `[M]`; a row may come several times."""
        self._segment, self._position = self._segment.index_select(0, rows), self._position.index_select(0, rows)
        for past in self._pasts:
            past.take(rows)
