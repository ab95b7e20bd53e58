"""Any model of the library transformers: causal, masked, or a classifier of rows.

Wolf et al., "Transformers: State-of-the-Art Natural Language Processing", EMNLP 2020, arXiv:1910.03771.

Shapes: N rows, T tokens, D width of the states, V vocabulary, C classes.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from limbeck.bridges import peft, transformers
from limbeck.bridges._transformers_answer import Form, Way, check_rows, form_of, given, keeps, memory, placed, states, way_of
from limbeck.core.errors import MismatchError, RecipeError, did_you_mean
from limbeck.core.knowledge import Dense, Hidden

from ._arguments import check_classes
from ._generate import check_generate, generated, within
from ._transformer import length_of

__all__ = ["HF"]

Precision = Literal["float32", "bfloat16", "float16"]


class HF(nn.Module):
    """A model of transformers, by `kind: hf:NAME_OR_PATH`, with its weights or the same architecture begun anew.

    Each token is answered by a `Hidden`, the states `[N, T, D]` before the output embedding, and that embedding, with the scale and cap that the model puts
    on its logits: they are found by asking it, and where an answer is no such thing, by logits `[N, T, V]` that the model multiplies out, which is said.
    A row is answered by logits `[N, C]`. Documents in one row are kept apart, and padding on the left is not seen, in a way that the model was seen to honour.

    The model of the library is `model`, and its layers are read by their own paths (`model.transformer.h.0`, ...). Weights come from safetensors alone, and
    code that a model brings is never run. What an artifact keeps is the whole configuration and all weights, those of adapters apart.

    Args:
        of: a folder that holds config.json and model.safetensors, or a model of the hub, OWNER/NAME; null where config says all.
        head: causal (the next token of each token), masked (each token) or classification (a row); what the task asks for where it is left out.
        pretrained: whether to begin with the weights that are there, or anew.
        config: options of the configuration that differ from those that are there, by the architecture's own names.
        revision: a branch, tag or commit of the hub's.
        attention: sdpa (torch's fused kernels) or eager (its probabilities can be read).
        dtype: what weights are held in.
        adapter: {kind: lora, r, alpha, targets, dropout}: nothing but low-rank adapters learns, and what a classifier has after the model's body.

    Raises:
        RecipeError: an architecture that transformers has no code for, or options that cannot be meant.
        DataError: no such model, no safetensors, or weights that are missing.
        MismatchError: examples that are no rows of tokens, more tokens than the model embeds or has positions for, weights of other shapes.
        MissingDependency: transformers, or for an adapter peft, is not installed.
    """

    def __init__(
        self,
        in_shape: tuple[int, ...],
        classes: int,
        *,
        of: str | None,
        head: transformers.Head | None = None,
        pretrained: bool = True,
        config: dict[str, Any] | None = None,
        revision: str | None = None,
        attention: Literal["sdpa", "eager"] = "sdpa",
        dtype: Precision = "float32",
        adapter: peft.LoRA | None = None,
    ) -> None:
        super().__init__()
        length, name = length_of("HF", in_shape), of or "config"
        check_classes("HF", classes)
        self.head: transformers.Head = _checked(head)
        changes = dict(config or {}) | ({"num_labels": classes} if self.head == "classification" else {})
        adapter = peft.LoRA.model_validate(adapter) if isinstance(adapter, Mapping) else adapter
        self.said: list[str] = []
        if of is None and pretrained:
            pretrained = False
        precision: torch.dtype = getattr(torch, dtype)
        if of is None:
            begun = (
                changes if "architectures" in changes else {one: changes.pop(one) for one in ("model_type", "auto_map") if one in changes}
            )  # whole, or one's own
            told = transformers.config_of(begun, {} if begun is changes else changes, name)
            self.model = transformers.fresh(self.head, told, attention, precision)
        else:
            folder = transformers.located(of, revision)
            told = transformers.config_of(folder, changes, name)
            if pretrained:
                self.model, self.said = transformers.pretrained(self.head, folder, told, attention, precision, name)
            else:
                self.model = transformers.fresh(self.head, told, attention, precision)
        self._fits(name, length, classes)
        if adapter is not None:
            prefix = self.model.base_model_prefix
            outside = tuple(one for one, _ in self.model.named_children() if one != prefix) if self.head == "classification" else ()
            peft.adapted(self.model, adapter, outside)
        self._options: dict[str, Any] = {"attention": attention, "dtype": dtype, "adapter": adapter.model_dump(mode="json") if adapter else None}
        self._how: dict[str, Any] = {"use_cache": False} if self.head == "causal" else {}
        self._way: Way | None = None
        self._keeps: bool | None = None
        self._form: Form | None = None
        if self.head == "classification":
            check_rows(self.model, name)
        else:
            self._form = form_of(self.model, **self._how)
            if self._form is None:
                self.said.append(f"{name} answers by more than one linear layer: its logits are multiplied out whole, and no loss is streamed")
        self.register_state_dict_post_hook(_once)
        self.register_load_state_dict_pre_hook(_everywhere)

    def _fits(self, name: str, length: int, classes: int) -> None:
        """Refuse a model for more tokens than it can read."""
        self.context, self.vocabulary = length, transformers.sizes(self.model).vocabulary
        most = transformers.sizes(self.model).positions
        if most is not None and length > most:
            raise MismatchError(f"the task has rows of {length} tokens, and {name} has positions for {most}: lower the task's context to {most} or less")
        if self.head != "classification" and classes > self.vocabulary:
            raise MismatchError(
                f"the task's vocabulary has {classes} tokens, and {name} embeds {self.vocabulary}: use the model's own tokenizer (tokenizer: {{kind: hf, "
                f"root: {name}}}), or begin anew with as many (pretrained: false, config: {{vocab_size: {classes}}})"
            )

    @property
    def options(self) -> dict[str, Any]:
        """What builds the same architecture again, wherever the model came from."""
        return {"of": None, "head": self.head, "pretrained": False, "config": transformers.told_of(self.model.config), **self._options}

    @property
    def plain(self) -> bool:
        """Whether `options` make every layer as it is, adapters aside: False where layers were taken away that the configuration still has, or made smaller."""
        own = {name.replace(".base_layer.", "."): list(one.shape) for name, one in self.model.named_parameters(remove_duplicate=False) if ".lora_" not in name}
        return own == transformers.shapes(self.model)

    def forward(self, input: Tensor, segment: Tensor | None = None, position: Tensor | None = None, attention: Tensor | None = None) -> Tensor | Dense | Hidden:
        """Token ids `[N, T]` to what is said of each token, or of the row.

        `segment [N, T]`: attention stays within the tokens of one number; `position [N, T]`, from 0 within each segment where it is not given; `attention
        [N, T]`: 1 for what may be looked at, 0 for padding.

        Raises:
            MismatchError: more tokens than the model was built for, or segments that this architecture does not keep apart.
        """
        if input.shape[1] > self.context:
            raise MismatchError(
                f"a row has {input.shape[1]} tokens, and HF was built for {self.context}: build it for longer rows, or lower the task's context"
            )
        how = dict(self._how)
        if attention is not None:
            how["attention_mask"] = attention
        if segment is not None:
            how |= given(self._apart(input.shape[1]), segment, within(segment) if position is None else position, next(self.model.parameters()).dtype)
        elif position is not None:
            how["position_ids"] = position
        if self.head == "classification":
            return self.model(input_ids=input, **how).logits
        return self._said(input, how)

    def _said(self, input: Tensor, how: Mapping[str, Any]) -> Dense | Hidden:
        found = states(self.model, input, **how) if self._form is not None else None
        if found is None or self._form is None:
            return Dense(self.model(input_ids=input, **how).logits)
        return self._form.hidden(*found)

    def _apart(self, length: int) -> Way:
        """How this model keeps documents apart, found once."""
        if self._way is None:
            kind = self.model.config.model_type
            if self.head != "causal" or (found := way_of(self.model, **self._how)) is None:
                raise MismatchError(
                    f"a model of type {kind} does not keep documents in one row apart, nor leaves padding on the left unseen: set packing: padded, with "
                    "padding: right, or packing: stream"
                )
            window = getattr(self.model.config.get_text_config(), "sliding_window", None)
            if found == "mask" and isinstance(window, int) and window < self.context:
                raise MismatchError(f"a model of type {kind} looks back {window} tokens, and not where documents share rows of {length}: set packing: padded")
            self._way = found
        return self._way

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
        """Return the prompt `[N, L]` and `tokens` more, each read once, as `models.gpt` does; the model draws in the mode that it is in.

        Raises:
            MismatchError: an empty prompt, more tokens in all than the model has positions for, or a model that predicts no next token.
            RecipeError: a temperature below zero, or a top_k outside the vocabulary.
        """
        if self.head != "causal":
            raise MismatchError(f"a {self.head} model predicts no next token: generate with a causal one")
        most = transformers.sizes(self.model).positions or math.inf
        check_generate("HF", prompt, tokens, most, temperature, top_k, self.vocabulary)
        return generated(self.reading, prompt, tokens, temperature=temperature, top_k=top_k, eos=eos, segment=segment, generator=generator)

    def reading(self, segment: Tensor) -> "_Reading":
        """Return a reading of rows piece by piece, each token once: `segment [N, T]` of all that may come, 0 where it is padding on the left.

        Raises:
            MismatchError: padding that this architecture does not leave unseen.
        """
        if bool((segment == 0).any()):
            self._apart(segment.shape[1])
        return _Reading(self, segment)

    @property
    def keeps(self) -> bool:
        """Whether a token that was read need not be read again, found once."""
        if self._keeps is None:
            self._keeps = keeps(self.model)
        return self._keeps


class _Reading:
    """What a model has read of some rows, keys and values kept; one that was seen not to keep them (a state space model, say) reads all again."""

    def __init__(self, model: HF, segment: Tensor) -> None:
        self._model, self._segment = model, segment.ne(0).long()
        self._kept = memory(model.model) if model.keeps else None
        self._read = segment[:, :0]

    def __call__(self, tokens: Tensor) -> Dense | Hidden:
        """Read the next tokens `[N, L]` and say what comes after the last of them, `[N]` predictions."""
        start = self._read.shape[1]
        self._read = torch.cat([self._read, tokens], 1)
        seen = self._segment[:, : self._read.shape[1]]
        if self._kept is None:
            said = self._model(self._read, None if bool(seen.all()) else seen)
        else:
            said = self._model._said(tokens, self._kept | placed(seen, start))
        assert not isinstance(said, Tensor), "a causal model answers each token"
        return replace(said, states=said.states[:, -1]) if isinstance(said, Hidden) else Dense(said.logits[:, -1])

    def take(self, rows: Tensor) -> None:
        """Go on with these rows, `[M]`; a row may come several times."""
        self._segment, self._read = self._segment.index_select(0, rows), self._read.index_select(0, rows)
        if self._kept is not None:
            self._kept["past_key_values"].batch_select_indices(rows)


def _checked(head: str | None) -> transformers.Head:
    match head:
        case "causal" | "masked" | "classification":
            return head
        case None:
            raise RecipeError("head of models.hf says what is answered: causal, masked or classification; a recipe's task of text says it by itself")
    raise RecipeError(f"no head {head!r} for models.hf{did_you_mean(head, ('causal', 'masked', 'classification'))}")


def _tied(module: nn.Module) -> dict[str, str]:
    """Path of a weight that stands somewhere else too -> the first of its paths."""
    first: dict[int, str] = {}
    return {name: first[id(one)] for name, one in module.named_parameters(remove_duplicate=False) if first.setdefault(id(one), name) != name}


def _once(module: nn.Module, state: dict[str, Any], prefix: str, _metadata: object) -> None:
    """Keep a tied weight once."""
    for name in _tied(module):
        state.pop(f"{prefix}{name}", None)


def _everywhere(module: nn.Module, state: dict[str, Any], prefix: str, *_more: object) -> None:
    """Find a tied weight by each of its paths."""
    for name, kept in _tied(module).items():
        if f"{prefix}{kept}" in state:
            state.setdefault(f"{prefix}{name}", state[f"{prefix}{kept}"])
