"""Tiny models of transformers, with random weights, in folders: nothing is fetched in a test."""

from pathlib import Path
from typing import Any

import torch

V = 67
"""The vocabulary of every one of them."""
_SAME: dict[str, Any] = {
    "vocab_size": V, "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 40, "max_position_embeddings": 32,
}  # fmt: skip
_ENDS: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
CONFIGS: dict[str, dict[str, Any]] = {
    "gpt2": {"vocab_size": V, "n_embd": 24, "n_layer": 3, "n_head": 3, "n_positions": 32, **_ENDS},
    "llama": {**_SAME, "num_key_value_heads": 1, **_ENDS},
    "mistral": {**_SAME, "num_key_value_heads": 1, "sliding_window": 4, **_ENDS},
    "qwen3": {**_SAME, "num_key_value_heads": 1, "head_dim": 8, **_ENDS},
    "gemma2": {**_SAME, "num_key_value_heads": 1, "head_dim": 8, "final_logit_softcapping": 5.0, **_ENDS},
    "gemma3_text": {**_SAME, "num_key_value_heads": 1, "head_dim": 8, "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"] * 2,
                    "num_hidden_layers": 4, **_ENDS},
    "cohere": {**_SAME, "num_key_value_heads": 1, **_ENDS},
    "granite": {**_SAME, "num_key_value_heads": 1, "logits_scaling": 3.0, **_ENDS},
    "opt": {"vocab_size": V, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "ffn_dim": 40, "max_position_embeddings": 32,
            "word_embed_proj_dim": 24, **_ENDS},
    "bloom": {"vocab_size": V, "hidden_size": 24, "n_layer": 2, "n_head": 3, **_ENDS},
    "mamba": {"vocab_size": V, "hidden_size": 24, "num_hidden_layers": 2, "state_size": 4, **_ENDS},
    "bert": _SAME | {"pad_token_id": 0},
    "distilbert": {"vocab_size": V, "dim": 24, "n_layers": 3, "n_heads": 3, "hidden_dim": 40, "max_position_embeddings": 32},
    "roberta": _SAME | {"pad_token_id": 1},
    "albert": _SAME | {"embedding_size": 8},
    "modernbert": {**_SAME, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2},
}  # fmt: skip
"""Model type -> a configuration of a few thousand parameters."""
EAGER = {"gemma2", "bloom", "mamba"}
"""Those without torch's fused attention."""


def told(kind: str, **more: Any) -> dict[str, Any]:
    return {"model_type": kind, **CONFIGS[kind], **more}


def hf(kind: str, head: str, *, classes: int = V, context: int = 16, **options: Any) -> Any:
    """A model of kind hf with weights large enough that every layer tells."""
    from limbeck.models.hf import HF

    torch.manual_seed(0)
    attention = "eager" if kind in EAGER else "sdpa"
    options = {"of": None, "config": told(kind), "attention": attention} | options
    return loud(HF((context,), classes, head=head, **options)).eval()


def loud(model: Any) -> Any:
    with torch.no_grad():
        for one in model.parameters():
            if one.requires_grad or one.ndim > 1:
                one.mul_(4) if one.ndim > 1 else one.add_(torch.randn_like(one) * 0.1)
    return model


def folder(path: Path, kind: str, head: str, **more: Any) -> Path:
    """Write a model as transformers does."""
    from limbeck.bridges import transformers

    made = hf(kind, head, config=told(kind, **more), classes=more.get("num_labels", V) if head == "classification" else V)
    transformers.save(made.model, path)
    return path


CHAT = (
    "{{ bos_token }}{% for one in messages %}<|{{ one.role }}|>{% if one.role == 'assistant' %}{% generation %}{{ one.content }}<|end|>{% endgeneration %}"
    "{% else %}{{ one.content }}<|end|>{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""A chat template that marks what the assistant says."""
UNMARKED = CHAT.replace("{% generation %}", "").replace("{% endgeneration %}", "")


def tokenizer(path: Path, template: str | None = CHAT, **specials: str) -> Any:
    """Write a byte-level BPE with special tokens as transformers does, and return it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    names = ["<s>", "</s>", "<pad>", "<mask>", "<|user|>", "<|system|>", "<|assistant|>", "<|end|>"]
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=names, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    made.train_from_iterator(["the cat sat on the mat", "hello there, how are you"] * 8, trainer)
    specials = specials or {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "mask_token": "<mask>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=made, **specials)
    fast.chat_template = template
    fast.save_pretrained(path)
    return fast
