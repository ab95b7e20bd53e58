"""Taking out whole blocks."""

import json
import math

import pytest
import torch
from torch import nn

from limbeck.compress import Bench
from limbeck.compress.prune.blocks import Blocks, influence
from limbeck.core.errors import ArtifactError, DataError, MismatchError, RecipeError
from limbeck.core.lookup import build
from limbeck.measure.size import macs
from limbeck.tasks.classify import Classify


def bench_of(shape=(1, 8, 8), classes=3, examples=24):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(examples, *shape, generator=generator), torch.arange(examples) % classes
    task = Classify({"train": [(x, y)]}, classes=classes)
    return Bench(task, macs=lambda model: macs(model, x[:1]), latency_ms=lambda _: math.nan, score=lambda _: math.nan)


MODELS = {
    "resnet": ({"depth": 20}, [f"layer{stage}.{block}" for stage in (1, 2, 3) for block in (1, 2)]),
    "wrn": ({"depth": 16, "width": 1}, ["layer1.0", "layer1.1", "layer2.1", "layer3.1"]),
    "vit": ({"dim": 16, "depth": 3, "heads": 2}, ["blocks.0", "blocks.1", "blocks.2"]),
}


def fresh(kind):
    torch.manual_seed(0)
    return build("models", kind, MODELS[kind][0], in_shape=(1, 8, 8), classes=3).eval()


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("by", ["loss", "cosine"])
def test_blocks_whose_shapes_agree_go_and_the_model_is_built_again(kind, by):
    model = fresh(kind)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    done = Blocks(target={"ratio": 0.5}, by=by, examples=8).operate(model, bench_of())
    names = [row["name"] for row in done.layers]
    if kind == "resnet":  # the first block of layer1 keeps its shape too
        assert names == ["layer1.0", *MODELS[kind][1]]
    else:
        assert names == MODELS[kind][1]
    out = [row["name"] for row in done.layers if row["out"]]
    assert len(out) == math.ceil(len(names) / 2) and set(done.record["identity"]) == set(out)
    assert all(isinstance(done.model.get_submodule(path), nn.Identity) for path in out)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(torch.equal(before[name], tensor) for name, tensor in done.model.state_dict().items())
    again = Blocks.rebuild(fresh(kind), json.loads(json.dumps(done.record)))
    again.load_state_dict(done.model.state_dict())
    x = torch.randn(3, 1, 8, 8)
    assert torch.equal(again(x), done.model(x))
    assert done.metrics == {"blocks": len(names), "blocks_left": len(names) - len(out)}


@pytest.mark.parametrize("by", ["loss", "cosine"])
def test_a_block_that_does_nothing_goes_first_and_without_a_trace(by):
    model = fresh("vit")
    with torch.no_grad():
        for layer in (model.blocks[1].attention.out, model.blocks[1].mlp[2]):
            layer.weight.zero_()
            layer.bias.zero_()
        for index in (0, 2):
            nn.init.normal_(model.blocks[index].mlp[2].weight, std=1.0)
        nn.init.normal_(model.head.weight, std=1.0)
    x = torch.randn(24, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = model(x).argmax(1)  # so that whatever changes the answer costs
    bench = Bench(Classify({"train": [(x, labels)]}, classes=3), macs=lambda made: macs(made, x[:1]), latency_ms=lambda _: math.nan, score=lambda _: math.nan)
    done = Blocks(target={"ratio": 0.3}, by=by).operate(model, bench)
    assert done.record == {"identity": ["blocks.1"]}
    assert torch.equal(done.model(x), model(x))
    if by == "cosine":
        assert next(row["distance"] for row in done.layers if row["out"]) == pytest.approx(0, abs=1e-6)


def test_by_loss_each_block_is_the_best_that_is_left():
    model, bench = fresh("resnet"), bench_of()
    done = Blocks(target={"ratio": 0.4}, examples=24).operate(model, bench)
    batch = next(bench.batches(24))
    known, out = [row["name"] for row in done.layers], []
    for _ in done.record["identity"]:
        losses = {}
        for path in known:
            if path not in out:
                trial = Blocks.rebuild(fresh("resnet"), {"identity": [*out, path]}).eval()
                with torch.no_grad():
                    losses[path] = float(bench.losses(trial, batch).mean())
        out.append(min(losses, key=lambda path: losses[path]))
        assert next(row["loss"] for row in done.layers if row["name"] == out[-1]) == pytest.approx(losses[out[-1]], rel=1e-5)
    assert done.record["identity"] == out and len(out) == 3


def test_influence_is_one_minus_the_cosine_of_each_vector():
    read, gave = torch.randn(2, 3, 4, 5, dtype=torch.float64), torch.randn(2, 3, 4, 5, dtype=torch.float64)
    found = influence(read, gave)
    for n in range(2):
        for h in range(4):
            for w in range(5):
                a, b = read[n, :, h, w], gave[n, :, h, w]
                assert found[n, h, w].item() == pytest.approx(1 - (a @ b / (a.norm() * b.norm())).item())
    tokens = influence(read[0], gave[0])
    assert tokens.shape == (3, 4)
    assert influence(read, 3 * read).abs().max() < 1e-12


def test_blocks_can_be_named_and_spared():
    model = build("models", "ds_cnn", {"width": 8, "blocks": 3}, in_shape=(1, 16, 16), classes=3).eval()
    with pytest.raises(MismatchError, match=r"finds no residual block in DSCNN.*by among"):
        Blocks(target={"ratio": 0.3}).operate(model, bench_of((1, 16, 16)))
    done = Blocks(target={"ratio": 0.6}, among=("layer1", "layer2", "layer3"), skip=("layer2",)).operate(model, bench_of((1, 16, 16)))
    assert sorted(done.record["identity"]) == ["layer1", "layer3"]
    with pytest.raises(MismatchError, match=r"'stem' cannot be taken out: it reads \[1, 16, 16\] and gives \[8, 8, 8\]"):
        Blocks(target={"ratio": 0.3}, among=("stem",)).operate(model, bench_of((1, 16, 16)))
    with pytest.raises(RecipeError, match="no layer 'layer9'"):
        Blocks(target={"ratio": 0.3}, among=("layer9",)).operate(model, bench_of((1, 16, 16)))
    with pytest.raises(MismatchError, match="all 1 blocks are in skip"):
        Blocks(target={"ratio": 0.3}, among=("layer1",), skip=("layer1",)).operate(model, bench_of((1, 16, 16)))


def test_targets_count_what_stays_and_what_cannot_be_reached_is_said():
    model, bench = fresh("resnet"), bench_of()
    done = Blocks(target={"macs": 0.6}, by="cosine", examples=8).operate(model, bench)
    assert bench.macs(done.model) <= 0.6 * bench.macs(model)
    fewer = Blocks.rebuild(fresh("resnet"), {"identity": done.record["identity"][:-1]})
    assert bench.macs(fewer) > 0.6 * bench.macs(model)
    with pytest.raises(RecipeError, match=r"macs: 0.05 cannot be reached: with all 7 blocks out, 0\.\d+ of it stays, and that is the closest"):
        Blocks(target={"macs": 0.05}).operate(model, bench)


def test_bad_options_and_bad_records_are_refused():
    for option, words in (({"by": "cosin"}, "did you mean 'cosine'"), ({"examples": 0}, "examples of prune.blocks is 0")):
        with pytest.raises(RecipeError, match=words):
            Blocks(target={"ratio": 0.5}, **option)
    for path in ("layer9.1", ""):
        with pytest.raises(ArtifactError, match=f"takes out {path!r}, and ResNet has no such layer"):
            Blocks.rebuild(fresh("resnet"), {"identity": [path]})
    model = fresh("vit")
    with torch.no_grad():
        model.head.weight[0] = math.nan
    with pytest.raises(DataError, match="the loss is not a number"):
        Blocks(target={"ratio": 0.5}, examples=4).operate(model, bench_of())
