"""Pruning heads of attention."""

import json
import math
import sys

import pytest
import torch
from torch import nn

from limbeck.compress import Bench
from limbeck.compress.prune.heads import Heads
from limbeck.core.errors import MismatchError, RecipeError
from limbeck.measure.size import macs
from limbeck.models.cnn import CNN
from limbeck.models.vit import ViT
from limbeck.tasks.classify import Classify


def bench_of(shape=(1, 8, 8), classes=3, examples=24):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(examples, *shape, generator=generator), torch.arange(examples) % classes
    task = Classify({"train": [(x, y)]}, classes=classes)
    return Bench(task, macs=lambda model: macs(model, x[:1]), latency_ms=lambda _: math.nan, score=lambda _: math.nan)


def fresh():
    torch.manual_seed(0)
    return ViT((1, 8, 8), 3, dim=24, depth=2, heads=4).eval()


def test_heads_that_nothing_reads_go_without_a_trace(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_pruning", None)  # which heads do not need
    model = fresh()
    with torch.no_grad():
        for block in model.blocks:
            block.attention.out.weight.view(24, 4, 6)[:, [0, 2]] = 0
            for name in ("query", "key", "value"):
                block.attention.get_submodule(name).weight.view(4, 6, 24)[[0, 2]] *= 0.1
    done = Heads(target={"ratio": 0.5}).operate(model, bench_of())
    x = torch.randn(5, 1, 8, 8)
    with torch.no_grad():
        assert torch.allclose(done.model(x), model(x), atol=1e-6)
    for old, new in zip(model.blocks, done.model.blocks, strict=True):
        assert new.attention.heads == 2
        assert torch.equal(new.attention.key.weight, old.attention.key.weight.view(4, 6, 24)[[1, 3]].flatten(0, 1))
        assert torch.equal(new.attention.out.weight, old.attention.out.weight.view(24, 4, 6)[:, [1, 3]].flatten(1))
        assert torch.equal(new.attention.out.bias, old.attention.out.bias)
    assert [(row["name"], row["channels"], row["left"]) for row in done.layers] == [("blocks.0.attention", 4, 2), ("blocks.1.attention", 4, 2)]


def test_a_head_costs_all_its_weights_together():
    model = fresh()
    with torch.no_grad():
        for part, head in (("query", 0), ("key", 1), ("value", 2)):
            model.blocks[0].attention.get_submodule(part).weight.view(4, 6, 24)[head] += 1
    made = Heads(target={"ratio": 0.125}, normalize="none", skip=("blocks.1",)).operate(model, bench_of()).model  # one of the four
    kept = made.blocks[0].attention
    assert kept.heads == 3 and torch.equal(kept.query.weight, model.blocks[0].attention.query.weight[:18])
    assert made.blocks[1].attention.heads == 4


def test_a_model_without_some_heads_is_built_again():
    done = Heads(target={"macs": 0.85}).operate(fresh(), bench_of())
    again = Heads.rebuild(fresh(), json.loads(json.dumps(done.record)))
    again.load_state_dict(done.model.state_dict())
    x = torch.randn(3, 1, 8, 8)
    assert torch.equal(again(x), done.model(x))
    assert {block.attention.heads for block in again.blocks} <= {1, 2, 3, 4}
    assert sum(block.attention.heads for block in again.blocks) == done.metrics["units_left"] < 8


def test_one_head_at_least_stays_and_the_closest_is_said():
    with pytest.raises(RecipeError, match=r"ratio: 0.9 cannot be reached: with all gone that may go, 0.75 goes"):
        Heads(target={"ratio": 0.9}).operate(fresh(), bench_of())


def test_models_without_heads_of_their_own_are_refused():
    with pytest.raises(MismatchError, match=r"prune.heads finds nothing to prune in CNN"):
        Heads(target={"ratio": 0.5}).operate(CNN((1, 8, 8), 3, width=4).eval(), bench_of())
    packed = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1, enable_nested_tensor=False).eval()
    with pytest.raises(MismatchError, match=r"'layers.0.self_attn' is nn.MultiheadAttention, which wants its heads together as wide as its tokens"):
        Heads(target={"ratio": 0.5}).operate(packed, bench_of())
    model = fresh()
    model.blocks[0].attention.heads = 5
    with pytest.raises(MismatchError, match=r"'blocks.0.attention' has 5 heads, and 'blocks.0.attention.query' 24 channels"):
        Heads(target={"ratio": 0.5}).operate(model, bench_of())
