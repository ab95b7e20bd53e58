"""Pruning channels: of every model, exactly, and so that a clean process builds it again."""

import json
import math
import sys

import pytest
import torch
from safetensors.torch import load, save
from torch import nn

from limbeck.bridges.onnx_runtime import run
from limbeck.compress import Bench
from limbeck.compress.prune.channels import Channels
from limbeck.core.errors import MismatchError, MissingDependency, RecipeError
from limbeck.core.lookup import build
from limbeck.export.onnx import Onnx
from limbeck.measure.size import macs
from limbeck.tasks.classify import Classify


def bench_of(shape=(1, 8, 8), classes=3, examples=24):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(examples, *shape, generator=generator), torch.arange(examples) % classes
    task = Classify({"train": [(x, y)]}, classes=classes)
    return Bench(task, macs=lambda model: macs(model, x[:1]), latency_ms=lambda _: math.nan, score=lambda _: math.nan)


def settled(model):
    """A model whose norms have lived: statistics, scales and shifts of their own."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            for tensor, low, high in ((module.running_mean, -1, 1), (module.running_var, 0.5, 2), (module.weight.data, 0.5, 2), (module.bias.data, -1, 1)):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)
    return model.eval()


ZOO = {
    "cnn": ({"kind": "cnn", "width": 8}, (1, 8, 8)),
    "resnet": ({"kind": "resnet", "depth": 14}, (1, 8, 8)),
    "resnet-b": ({"kind": "resnet", "depth": 8, "shortcut": "B"}, (1, 8, 8)),
    "wrn": ({"kind": "wrn", "depth": 10, "width": 1}, (1, 8, 8)),
    "mlp": ({"kind": "mlp", "widths": [32, 24]}, (1, 8, 8)),
    "ds_cnn": ({"kind": "ds_cnn", "width": 12, "blocks": 2}, (1, 16, 16)),
    "lenet": ({"kind": "lenet", "norm": True}, (1, 8, 8)),
    "vit": ({"kind": "vit", "dim": 24, "depth": 1, "heads": 2}, (1, 8, 8)),
    "vit-mean": ({"kind": "vit", "dim": 24, "depth": 2, "heads": 2, "pool": "mean"}, (1, 8, 8)),
    "recurrent": ({"kind": "recurrent", "width": 16}, (6, 5)),
    "tabular": ({"kind": "tabular", "widths": [24, 16], "numbers": 3}, (7,)),
    "exits": ({"kind": "exits", "of": {"kind": "cnn", "width": 8}, "at": ["layer1", "layer2"]}, (1, 8, 8)),
    "two_stream": ({"kind": "two_stream", "of": {"kind": "cnn", "width": 8}}, (1, 8, 8)),
}


def fresh(name):
    options, shape = ZOO[name]
    torch.manual_seed(0)
    rest = {key: value for key, value in options.items() if key != "kind"}
    return settled(build("models", options["kind"], rest, in_shape=shape, classes=3)), shape


def is_part(small, large):
    """Whether a tensor is what is left of another by taking whole rows, columns and so on away."""
    for axis in range(large.ndim):
        if small.shape[axis] == large.shape[axis]:
            continue
        rest = [other for other in range(large.ndim) if other != axis]
        if all(small.shape[other] == large.shape[other] for other in rest):
            pool = [row.flatten() for row in large.unbind(axis)]
            return all(any(torch.equal(row.flatten(), one) for one in pool) for row in small.unbind(axis))
    values = set(large.flatten().tolist())
    return small.shape == large.shape and torch.equal(small, large) if small.shape == large.shape else values.issuperset(small.flatten().tolist())


@pytest.mark.parametrize("name", ZOO)
def test_every_model_is_pruned_and_built_again(name):
    model, shape = fresh(name)
    bench = bench_of(shape)
    count = (lambda made: sum(one.numel() for one in made.parameters())) if name == "recurrent" else bench.macs
    goal = "parameters" if name == "recurrent" else "macs"
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    share = 0.75 if name in ("resnet", "tabular", "vit", "vit-mean") else 0.5
    done = Channels(target={goal: share}).operate(model, bench)
    assert 0.5 * share < count(done.model) / count(model) <= share
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())
    assert all(is_part(tensor, before[key]) for key, tensor in done.model.state_dict().items())
    assert all(row["left"] == row["channels"] for row in done.layers if row["name"].endswith("head"))
    assert sum(row["left"] for row in done.layers) < sum(row["channels"] for row in done.layers)
    again = Channels.rebuild(fresh(name)[0], json.loads(json.dumps(done.record)))
    again.load_state_dict(load(save({key: tensor.contiguous() for key, tensor in done.model.state_dict().items()})))
    x = torch.randn(4, *shape)
    with torch.no_grad():
        said, repeated = done.model(x), again.eval()(x)
    for one, other in zip(said.values(), repeated.values(), strict=True) if isinstance(said, dict) else [(said, repeated)]:
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", ["ds_cnn", "resnet-b", "vit"])
def test_what_is_left_is_exported(name, tmp_path):
    model, shape = fresh(name)
    made = Channels(target={"macs": 0.75}).operate(model, bench_of(shape)).model
    x = torch.randn(4, *shape)
    Onnx().export(made, torch.zeros(2, *shape), tmp_path / "model.onnx")
    with torch.no_grad():
        assert torch.allclose(torch.as_tensor(run(tmp_path / "model.onnx", x)), made(x), atol=1e-4)


def test_channels_that_nothing_reads_go_without_a_trace():
    model, _ = fresh("resnet-b")
    silent = {"layer1.0.conv1": ("layer1.0.norm1", "layer1.0.conv2"), "layer3.0.conv1": ("layer3.0.norm1", "layer3.0.conv2")}
    with torch.no_grad():
        for norm, reader in silent.values():
            for name in ("weight", "bias"):
                model.get_submodule(norm).get_parameter(name)[::2] = 0
            model.get_submodule(reader).weight[:, ::2] = 0
    spared = tuple(path for path, module in model.named_modules() if isinstance(module, nn.Conv2d) and path not in silent)
    made = Channels(target={"ratio": 0.5}, skip=spared, saliency={"kind": "magnitude", "p": 1}, weighed="matrices", normalize="none").operate(model, bench_of())
    # the readers' columns are zero, and yet the filters themselves are not: what counts is that just these could have gone
    chosen = Channels(target={"ratio": 0.5}, skip=spared, saliency="bn_scale", scope="local").operate(model, bench_of())
    x = torch.randn(5, 1, 8, 8)
    with torch.no_grad():
        assert torch.allclose(chosen.model(x), model(x), atol=1e-5)
    assert chosen.model.layer1[0].conv1.out_channels == model.layer1[0].conv1.out_channels // 2
    assert torch.equal(chosen.model.layer3[0].conv1.weight, model.layer3[0].conv1.weight[1::2])
    assert made.metrics["units_left"] == chosen.metrics["units_left"]


def test_it_is_slicing_by_hand():
    model, _ = fresh("cnn")
    done = Channels(target={"ratio": 0.5}, scope="local", weighed="filters", least=1).operate(model, bench_of())
    first, second, third = (model.get_submodule(path) for path in ("layer1.0", "layer2.1", "layer3.1"))
    a, b, c = (layer.weight.abs().sum((1, 2, 3)).argsort(stable=True)[layer.out_channels // 2 :].sort().values for layer in (first, second, third))
    made = done.model.state_dict()
    assert torch.equal(made["layer1.0.weight"], first.weight[a])
    assert torch.equal(made["layer2.1.weight"], second.weight[b][:, a])
    assert torch.equal(made["layer3.1.weight"], third.weight[c][:, b])
    assert torch.equal(made["layer3.2.running_mean"], model.layer3[2].running_mean[c])
    assert torch.equal(made["head.weight"], model.head.weight[:, c]) and torch.equal(made["head.bias"], model.head.bias)
    assert done.record["layers"]["layer2.1"] == {"attributes": {"in_channels": 4, "out_channels": 8}, "tensors": {"weight": [8, 4, 3, 3], "bias": [8]}}
    assert {"name": "layer2.1", "channels": 16, "left": 8} in done.layers


def test_filters_alone_or_linear_layers_alone():
    model, _ = fresh("lenet")
    conv = Channels(target={"ratio": 0.4}, only="conv").operate(model, bench_of()).model
    assert conv.layer1[0].out_channels + conv.layer2[0].out_channels < 22
    assert conv.layer3[1].out_features == 120 and conv.layer4[0].out_features == 84
    linear = Channels(target={"ratio": 0.4}, only="linear").operate(model, bench_of()).model
    assert linear.layer2[0].out_channels == 16
    assert linear.layer3[1].out_features + linear.layer4[0].out_features < 204
    with pytest.raises(MismatchError, match=r"prune.channels finds nothing to prune in MLP: head: it is what the model answers"):
        Channels(target={"ratio": 0.4}, only="conv").operate(fresh("mlp")[0], bench_of())
    with pytest.raises(RecipeError, match=r"no choice 'convs' for only of prune.channels; did you mean 'conv'"):
        Channels(target={"ratio": 0.4}, only="convs")


@pytest.mark.parametrize(
    "saliency", ["magnitude", "random", {"kind": "taylor", "examples": 16}, "lamp", {"kind": "fisher", "examples": 16}, "geometric_median", "bn_scale"]
)
def test_any_saliency_judges(saliency):
    model, _ = fresh("cnn")
    done = Channels(target={"ratio": 0.4}, saliency=saliency).operate(model, bench_of())
    assert done.metrics == {"units": 40, "units_left": 24}
    assert all(parameter.requires_grad for parameter in done.model.parameters()) and not done.model.training


def test_wanda_and_obd_read_matrices():
    model, _ = fresh("cnn")
    for kind in ("wanda", "obd"):
        done = Channels(target={"ratio": 0.4}, saliency={"kind": kind, "examples": 16}, weighed="matrices").operate(model, bench_of())
        assert done.metrics["units_left"] == 24


def test_what_shortcuts_pad_is_said():
    model, _ = fresh("resnet")
    done = Channels(target={"ratio": 0.2}).operate(model, bench_of())
    assert any("layer2.0.conv2" in line and "a shortcut adds 16 channels of zeros there" in line for line in done.said)
    assert next(row for row in done.layers if row["name"] == "layer2.0.conv2")["why"] == "a shortcut adds 16 channels of zeros there"


def test_heads_of_attention_are_left_to_their_own_surgery():
    model, _ = fresh("vit")
    done = Channels(target={"ratio": 0.3}).operate(model, bench_of())
    attention = done.model.blocks[0].attention
    assert attention.query.out_features == 24 and attention.query.in_features == done.model.head.in_features < 24
    assert any("prune.heads takes them" in line for line in done.said)


def test_frozen_stays_frozen_and_half_stays_half():
    model, _ = fresh("cnn")
    model.requires_grad_(False).to(torch.bfloat16)
    x, y = torch.randn(6, 1, 8, 8, dtype=torch.bfloat16), torch.arange(6) % 3
    bench = Bench(Classify({"train": [(x, y)]}, classes=3), macs=lambda made: macs(made, x[:1]), latency_ms=lambda _: math.nan, score=lambda _: math.nan)
    made = Channels(target={"ratio": 0.5}).operate(model, bench).model
    assert all(one.dtype == torch.bfloat16 and not one.requires_grad for one in made.parameters())


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ({"scope": "all"}, "no choice 'all' for scope"),
        ({"least": 0}, "least of prune.channels is 0"),
        ({"round_to": -1}, "round_to"),
        ({"saliency": "conv"}, "conv"),
    ],
)
def test_options_that_cannot_be_meant(option, words):
    with pytest.raises(RecipeError, match=words):
        Channels(target={"macs": 0.5}, **option)


def test_it_is_built_again_without_the_library(monkeypatch):
    done = Channels(target={"ratio": 0.5}).operate(fresh("cnn")[0], bench_of())
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    again = Channels.rebuild(fresh("cnn")[0], done.record)
    again.load_state_dict(done.model.state_dict())
    with pytest.raises(MissingDependency, match=r'pip install "limbeck\[prune\]"'):
        Channels(target={"ratio": 0.5}).operate(fresh("cnn")[0], bench_of())


def test_a_recipe_is_checked_by_its_options():
    made = build("compress", "prune.channels", {"saliency": "taylor", "target": {"macs": 0.25}, "skip": ["stem"], "round_to": 8})
    assert (made.plan.target.goal, made.plan.target.share, made.skip, made.plan.round_to) == ("macs", 0.25, ("stem",), 8)
    with pytest.raises(RecipeError, match=r"option 'target.flops' of compress.prune.channels should be 'ratio', 'macs'"):
        build("compress", "prune.channels", {"target": {"flops": 0.25}})
    with pytest.raises(RecipeError, match=r"'round_to'"):
        build("compress", "prune.channels", {"target": {"macs": 0.25}, "round_to": "even"})
