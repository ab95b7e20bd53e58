"""Our own language models as models of transformers, where one computes the very same.

Shapes: D width of a token, h heads of d = D / h.
"""

from typing import Any

import torch
from torch import Tensor, nn

from limbeck.core.errors import MismatchError

from ._transformer import Block
from .encoder import Encoder
from .gpt import GPT
from .hf import HF

__all__ = ["as_hf"]

_EPS = 1e-5


def as_hf(model: nn.Module) -> HF:
    """Return a model of transformers with the weights of one of ours: GPT-2 of a `gpt` with learnt positions, GPT-NeoX of one with rope, BERT of an `encoder`.

    One of transformers is returned as it is.

    Raises:
        MismatchError: a model that none of transformers computes, with why.
    """
    match model:
        case HF():
            return model
        case GPT() if model.position is not None:
            return _filled(model, _gpt2(model), _gpt2_weights(model))
        case GPT():
            return _filled(model, _neox(model), _neox_weights(model))
        case Encoder() if model.head is not None:
            raise MismatchError(
                "an encoder of ours that classifies rows does so by one linear layer of a state, and those of transformers have another layer before it: train "
                "one of theirs (model: {kind: hf, of: null, config: {model_type: distilbert, ...}}), or export to ONNX"
            )
        case Encoder() if isinstance(model.norm, nn.LayerNorm):
            raise MismatchError(
                "an encoder of ours with norm: pre has no counterpart in transformers, whose BERT normalises after each sum: train with norm: post"
            )
        case Encoder():
            return _filled(model, _bert(model), _bert_weights(model))
    raise MismatchError(f"a {type(model).__name__} is no language model that transformers knows: gpt, encoder and hf are; export to ONNX")


def _sizes(model: GPT | Encoder) -> dict[str, int]:
    """The sizes that all blocks have."""
    blocks: Any = model.blocks
    found = [
        {"heads": one.attention.heads, "inner": one.attention.query.out_features, "hidden": one.mlp[0].out_features} if type(one) is Block else {}
        for one in blocks
    ]
    width = model.embed.embedding_dim
    if any(one != found[0] for one in found) or found[0].get("inner") != width:
        raise MismatchError(
            f"the blocks of this {type(model).__name__} differ in size (units or heads were pruned block by block), and a configuration of transformers has "
            "one size for all: prune by prune.layers and prune.width"
        )
    return {"depth": len(blocks), "heads": found[0]["heads"], "hidden": found[0]["hidden"], "dim": width}


def _filled(model: GPT | Encoder, config: dict[str, Any], weights: dict[str, Tensor]) -> HF:
    made = HF((model.context,), model.embed.num_embeddings, of=None, head="causal" if isinstance(model, GPT) else "masked", config=config)
    own = made.model.state_dict()
    tied = {name for name in own.keys() - weights.keys() if own[name].data_ptr() in {own[one].data_ptr() for one in weights}}
    lost, strange = own.keys() - weights.keys() - tied, weights.keys() - own.keys()
    assert not lost and not strange, f"{sorted(lost)} {sorted(strange)}"
    made.model.load_state_dict(weights, strict=False)
    return made.to(next(model.parameters()).device).train(model.training)


def _joined(*layers: Any) -> tuple[Tensor, Tensor]:
    return torch.cat([one.weight for one in layers]), torch.cat([one.bias for one in layers])


def _put(found: dict[str, Tensor], path: str, layer: Any, *, turned: bool = False) -> None:
    """Put a layer's weight and bias at a path, the weight turned where the library has it so."""
    found[f"{path}.weight"] = layer.weight.detach().T if turned else layer.weight.detach()
    found[f"{path}.bias"] = layer.bias.detach()


def _gpt2(model: GPT) -> dict[str, Any]:
    sizes, rate = _sizes(model), model.drop.p
    return {
        "model_type": "gpt2", "vocab_size": model.embed.num_embeddings, "n_positions": model.context, "n_embd": sizes["dim"], "n_layer": sizes["depth"],
        "n_head": sizes["heads"], "n_inner": sizes["hidden"], "activation_function": "gelu", "layer_norm_epsilon": _EPS, "resid_pdrop": rate,
        "embd_pdrop": rate, "attn_pdrop": rate, "tie_word_embeddings": model.head is None, "bos_token_id": None, "eos_token_id": None,
    }  # fmt: skip


def _gpt2_weights(model: GPT) -> dict[str, Tensor]:
    assert model.position is not None
    found = {"transformer.wte.weight": model.embed.weight.detach(), "transformer.wpe.weight": model.position.weight.detach()}
    blocks: Any = model.blocks
    for at, block in enumerate(blocks):
        path, attention = f"transformer.h.{at}", block.attention
        weight, bias = _joined(attention.query, attention.key, attention.value)
        found |= {f"{path}.attn.c_attn.weight": weight.detach().T, f"{path}.attn.c_attn.bias": bias.detach()}
        _put(found, f"{path}.attn.c_proj", attention.out, turned=True)
        _put(found, f"{path}.mlp.c_fc", block.mlp[0], turned=True)
        _put(found, f"{path}.mlp.c_proj", block.mlp[2], turned=True)
        _put(found, f"{path}.ln_1", block.norm1)
        _put(found, f"{path}.ln_2", block.norm2)
    _put(found, "transformer.ln_f", model.norm)
    return found if model.head is None else {**found, "lm_head.weight": model.head.weight.detach()}


def _neox(model: GPT) -> dict[str, Any]:
    sizes, rate = _sizes(model), model.drop.p
    return {
        "model_type": "gpt_neox", "vocab_size": model.embed.num_embeddings, "max_position_embeddings": model.context, "hidden_size": sizes["dim"],
        "num_hidden_layers": sizes["depth"], "num_attention_heads": sizes["heads"], "intermediate_size": sizes["hidden"], "hidden_act": "gelu",
        "layer_norm_eps": _EPS, "use_parallel_residual": False, "hidden_dropout": rate, "attention_dropout": rate, "attention_bias": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 1.0}, "tie_word_embeddings": model.head is None,
        "bos_token_id": None, "eos_token_id": None,
    }  # fmt: skip


def _neox_weights(model: GPT) -> dict[str, Tensor]:
    found = {"gpt_neox.embed_in.weight": model.embed.weight.detach()}
    blocks: Any = model.blocks
    for at, block in enumerate(blocks):
        path, attention = f"gpt_neox.layers.{at}", block.attention
        parts = [(one.weight.detach(), one.bias.detach()) for one in (attention.query, attention.key, attention.value)]
        by_head = [torch.stack([each[part].unflatten(0, (attention.heads, -1)) for each in parts], 1).flatten(0, 2) for part in (0, 1)]
        found |= {f"{path}.attention.query_key_value.weight": by_head[0], f"{path}.attention.query_key_value.bias": by_head[1]}
        _put(found, f"{path}.attention.dense", attention.out)
        _put(found, f"{path}.mlp.dense_h_to_4h", block.mlp[0])
        _put(found, f"{path}.mlp.dense_4h_to_h", block.mlp[2])
        _put(found, f"{path}.input_layernorm", block.norm1)
        _put(found, f"{path}.post_attention_layernorm", block.norm2)
    _put(found, "gpt_neox.final_layer_norm", model.norm)
    return found if model.head is None else {**found, "lm_head.weight": model.head.weight.detach()}


def _bert(model: Encoder) -> dict[str, Any]:
    sizes, rate = _sizes(model), model.drop.p
    return {
        "model_type": "bert", "vocab_size": model.embed.num_embeddings, "max_position_embeddings": model.context, "hidden_size": sizes["dim"],
        "num_hidden_layers": sizes["depth"], "num_attention_heads": sizes["heads"], "intermediate_size": sizes["hidden"], "hidden_act": "gelu",
        "layer_norm_eps": _EPS, "type_vocab_size": 1, "hidden_dropout_prob": rate, "attention_probs_dropout_prob": rate, "pad_token_id": None,
    }  # fmt: skip


def _bert_weights(model: Encoder) -> dict[str, Tensor]:
    """BERT's segments are one of zeros."""
    assert model.transform is not None and model.bias is not None
    words = model.embed.weight.detach()
    found = {
        "bert.embeddings.word_embeddings.weight": words,
        "bert.embeddings.position_embeddings.weight": model.position.weight.detach(),
        "bert.embeddings.token_type_embeddings.weight": torch.zeros_like(words[:1]),
        "cls.predictions.bias": model.bias.detach(),
    }
    _put(found, "bert.embeddings.LayerNorm", model.embed_norm)
    blocks: Any = model.blocks
    for at, block in enumerate(blocks):
        path, attention = f"bert.encoder.layer.{at}", block.attention
        for name, layer in (("query", attention.query), ("key", attention.key), ("value", attention.value)):
            _put(found, f"{path}.attention.self.{name}", layer)
        _put(found, f"{path}.attention.output.dense", attention.out)
        _put(found, f"{path}.attention.output.LayerNorm", block.norm1)
        _put(found, f"{path}.intermediate.dense", block.mlp[0])
        _put(found, f"{path}.output.dense", block.mlp[2])
        _put(found, f"{path}.output.LayerNorm", block.norm2)
    _put(found, "cls.predictions.transform.dense", model.transform[0])
    _put(found, "cls.predictions.transform.LayerNorm", model.transform[2])
    return found
