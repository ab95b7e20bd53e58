"""Pruning hidden units: of perceptrons and of transformers' perceptrons, and of nothing else."""

import json
import math

import pytest
import torch
from torch import nn

from limbeck.compress import Bench
from limbeck.compress.prune.neurons import Neurons
from limbeck.core.errors import MismatchError
from limbeck.measure.size import macs
from limbeck.models.cnn import CNN
from limbeck.models.lenet import LeNet
from limbeck.models.mlp import MLP
from limbeck.models.recurrent import Recurrent
from limbeck.models.vit import ViT
from limbeck.tasks.classify import Classify


def bench_of(shape=(1, 8, 8), classes=3, examples=24):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(examples, *shape, generator=generator), torch.arange(examples) % classes
    task = Classify({"train": [(x, y)]}, classes=classes)
    return Bench(task, macs=lambda model: macs(model, x[:1]), latency_ms=lambda _: math.nan, score=lambda _: math.nan)


def test_it_is_slicing_by_hand():
    torch.manual_seed(0)
    model = MLP((1, 8, 8), 3, widths=(20, 10)).eval()
    done = Neurons(target={"ratio": 0.5}, scope="local", weighed="filters", least=1).operate(model, bench_of())
    first, second = model.layer1[0], model.layer2[0]
    a, b = (layer.weight.abs().sum(1).argsort()[layer.out_features // 2 :].sort().values for layer in (first, second))
    made = done.model.state_dict()
    assert torch.equal(made["layer1.0.weight"], first.weight[a]) and torch.equal(made["layer1.0.bias"], first.bias[a])
    assert torch.equal(made["layer2.0.weight"], second.weight[b][:, a])
    assert torch.equal(made["head.weight"], model.head.weight[:, b]) and torch.equal(made["head.bias"], model.head.bias)
    assert [(row["name"], row["channels"], row["left"]) for row in done.layers] == [("layer1.0", 20, 10), ("layer2.0", 10, 5)]


def test_units_that_nothing_reads_go_without_a_trace():
    torch.manual_seed(0)
    model = MLP((1, 8, 8), 3, widths=(20,)).eval()
    with torch.no_grad():
        model.head.weight[:, ::2] = 0
        model.layer1[0].weight[::2] *= 0.01
    made = Neurons(target={"ratio": 0.5}).operate(model, bench_of()).model
    x = torch.randn(5, 1, 8, 8)
    assert torch.allclose(made(x), model(x), atol=1e-6)
    assert torch.equal(made.layer1[0].weight, model.layer1[0].weight[1::2])


@pytest.mark.parametrize("name", ["vit", "lenet"])
def test_only_hidden_units_change_and_the_model_is_built_again(name):
    def fresh():
        torch.manual_seed(0)
        return (ViT((1, 8, 8), 3, dim=16, depth=2, heads=2) if name == "vit" else LeNet((1, 8, 8), 3, norm=True)).eval()

    model = fresh()
    done = Neurons(target={"parameters": 0.7}).operate(model, bench_of())
    changed = set(done.record["layers"])
    if name == "vit":
        assert changed == {f"blocks.{block}.mlp.{layer}" for block in (0, 1) for layer in (0, 2)}
    else:
        assert changed == {"layer3.1", "layer3.2", "layer4.0", "layer4.1", "head"}
    again = Neurons.rebuild(fresh(), json.loads(json.dumps(done.record)))
    again.load_state_dict(done.model.state_dict())
    x = torch.randn(3, 1, 8, 8)
    assert torch.equal(again(x), done.model(x))
    assert sum(one.numel() for one in again.parameters()) <= 0.7 * sum(one.numel() for one in model.parameters())


def test_a_norm_between_is_over_the_units_that_stay():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.LayerNorm(12), nn.GELU(), nn.Linear(12, 3)).eval()
    made = Neurons(target={"ratio": 0.5}).operate(model, bench_of()).model
    assert made[2].normalized_shape == (6,) and made[2].weight.shape == (6,) and made[4].in_features == 6
    made(torch.randn(2, 1, 8, 8))


@pytest.mark.parametrize(("model", "shape"), [(CNN((1, 8, 8), 3, width=4), (1, 8, 8)), (Recurrent((6, 5), 3), (6, 5))])
def test_a_model_without_hidden_units_is_refused(model, shape):
    with pytest.raises(MismatchError, match=r"prune.neurons finds nothing to prune in \w+: it has no layers of that kind with two units or more"):
        Neurons(target={"ratio": 0.5}).operate(model.eval(), bench_of(shape))


def test_a_skipped_layer_keeps_its_units():
    model = MLP((1, 8, 8), 3, widths=(20, 10)).eval()
    made = Neurons(target={"ratio": 0.5}, skip=("layer1",)).operate(model, bench_of()).model
    assert made.layer1[0].out_features == 20 and made.layer2[0].out_features == 5
