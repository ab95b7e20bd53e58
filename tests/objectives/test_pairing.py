"""Which layers `auto` pairs, on real models and on shapes that would lead it astray."""

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from limbeck.core.ask import ask
from limbeck.core.errors import MismatchError
from limbeck.core.knowledge import Reads
from limbeck.core.lookup import build
from limbeck.core.task import default_task
from limbeck.objectives._pairing import pair

IMAGES = torch.zeros(2, 3, 16, 16)
TOKENS = torch.zeros(2, 7, dtype=torch.long)
Shapes = dict[str, tuple[int, ...]]


@torch.no_grad()
def shapes(model: nn.Module, x: Tensor = IMAGES) -> Shapes:
    return dict(ask(model.eval(), {"input": x}, Reads(shapes=True), default_task(), side="student").shapes)


def ours(kind: str, size: int = 16, **options: Any) -> Shapes:
    return shapes(build("models", kind, options, in_shape=(3, size, size), classes=10), torch.zeros(2, 3, size, size))


def of(stages: Shapes, wish: Any = "stages", classes: int = 10) -> list[str]:
    """The student's layers, paired with itself."""
    pairs = pair(wish, stages, stages, classes, "X")
    assert all(one == other for one, other in pairs), "a model's layers are its own twins"
    return [one for one, _ in pairs]


LAYERS = ["layer1", "layer2", "layer3"]


@pytest.mark.parametrize(
    ("kind", "options", "stages"),
    [
        ("cnn", {}, LAYERS),
        ("resnet", {"depth": 8}, LAYERS),
        ("resnet", {"depth": 14, "width": 2}, LAYERS),
        ("wrn", {"depth": 10}, ["layer1", "layer2", "norm"]),
        ("mlp", {"widths": [16, 16, 8]}, LAYERS),
        ("mlp", {"widths": [10]}, ["layer1"]),
        ("mlp", {"widths": [12]}, ["layer1"]),
    ],
)
def test_the_stages_of_every_model_of_ours(kind: str, options: dict[str, Any], stages: list[str]) -> None:
    found = ours(kind, **options)
    assert of(found) == stages
    assert of(found, "last") == stages[-1:]
    assert of(found, "middle") == [stages[len(stages) // 2]]
    assert of(found, "vector") == ["head:in"]


def test_a_vision_transformer_s_stages_are_its_blocks() -> None:
    found = ours("vit")
    blocks = of(found)
    assert blocks == [f"blocks.{index}" for index in range(len(blocks))] and len(blocks) > 1
    assert of(found, "vector") == ["head:in"]


def test_a_flat_network() -> None:
    convolutions = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3, padding=1), nn.ReLU())
    net = nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 10), nn.LogSoftmax(-1))
    assert of(shapes(net)) == ["2", "5"]
    assert of(shapes(net), "vector") == ["8:in"], "what follows the classifier only changes the answer's form"
    dense = nn.Sequential(nn.Flatten(), nn.Linear(768, 32), nn.ReLU(), nn.Linear(32, 10), nn.ReLU(), nn.Linear(10, 10))
    assert of(shapes(dense)) == ["2"], "neither the flattened input nor what gives the answer's shape"
    assert of(shapes(dense), "vector") == ["5:in"]
    assert of(shapes(nn.Sequential(nn.Flatten(), nn.Linear(768, 10), nn.ReLU(), nn.Linear(10, 10)))) == ["2"]


def test_a_wrapped_network_has_the_same_stages() -> None:
    class Wrapped(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x)

    net = build("models", "cnn", {}, in_shape=(3, 16, 16), classes=10)
    assert of(shapes(Wrapped(net))) == [f"inner.{layer}" for layer in LAYERS[:2]] + ["inner.layer3"]
    assert of(shapes(Wrapped(net)), "vector") == ["inner.head:in"]


def test_blocks_of_torch_and_of_one_resolution() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
            self.embedding, self.encoder, self.head = nn.Embedding(5, 8), nn.TransformerEncoder(layer, 3, enable_nested_tensor=False), nn.Linear(8, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.encoder(self.embedding(x)).mean(1))

    assert of(shapes(Tokens(), TOKENS)) == ["encoder.layers.0", "encoder.layers.1", "encoder.layers.2"]
    isotropic = nn.Sequential(nn.Conv2d(3, 4, 4, 4), *(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.GELU()) for _ in range(3)))
    net = nn.Sequential(isotropic, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))
    assert of(shapes(net)) == ["0.1", "0.2", "0.3"], "where no resolution tells stages apart, blocks do"
    assert of(shapes(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.Flatten(), nn.Linear(784, 10)))) == ["2"]


@pytest.mark.parametrize(
    ("model", "config", "x", "stages", "vector"),
    [
        ("BertForSequenceClassification", {"vocab_size": 9, "num_hidden_layers": 2}, TOKENS, ["bert.encoder.layer.0", "bert.encoder.layer.1"], "classifier"),
        ("ViTForImageClassification", {"num_hidden_layers": 2, "patch_size": 4, "image_size": 16}, IMAGES, ["vit.layers.0", "vit.layers.1"], "classifier"),
        (
            "ResNetForImageClassification",
            {"embedding_size": 4, "hidden_sizes": [4, 8, 16], "depths": [1, 1, 1]},
            torch.zeros(2, 3, 64, 64),
            ["resnet.embedder.embedder", "resnet.encoder.stages.0", "resnet.encoder.stages.1", "resnet"],
            "classifier.1",
        ),
        (
            "ConvNextForImageClassification",
            {"hidden_sizes": [4, 8, 16, 32], "depths": [1, 1, 2, 1]},
            torch.zeros(2, 3, 64, 64),
            ["convnext.encoder.stages.0", "convnext.encoder.stages.1", "convnext.encoder.stages.2", "convnext"],
            "classifier",
        ),
    ],
)
def test_models_of_transformers(model: str, config: dict[str, Any], x: Tensor, stages: list[str], vector: str) -> None:
    transformers = pytest.importorskip("transformers")
    kind = getattr(transformers, model)
    small = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 16} if "num_hidden_layers" in config else {}
    found = shapes(kind(kind.config_class(num_labels=10, **small, **config)), x)
    assert of(found) == stages
    assert of(found, "vector") == [f"{vector}:in"]


def tokens(blocks: int, length: int = 17) -> Shapes:
    return {f"blocks.{index // 2}{'' if index % 2 else '.mlp'}": (2, length, 8) for index in range(2 * blocks)} | {"norm": (2, length, 8), "head": (2, 10)}


def maps(*sizes: int) -> Shapes:
    return {f"layer{index}": (2, 4, size, size) for index, size in enumerate(sizes, 1)} | {"pool": (2, 4), "head": (2, 10)}


@pytest.mark.parametrize(
    ("student", "teacher", "met"),
    [
        (tokens(4), tokens(12), ["blocks.2", "blocks.5", "blocks.8", "blocks.11"]),
        (tokens(4, 17), tokens(12, 65), ["blocks.2", "blocks.5", "blocks.8", "blocks.11"]),
        (tokens(2), tokens(5), ["blocks.1", "blocks.4"]),
        (maps(16, 8, 4), tokens(12), ["blocks.3", "blocks.7", "blocks.11"]),
        (maps(16, 8, 4), maps(32, 16, 8, 4), ["layer2", "layer3", "layer4"]),
        (maps(16, 8, 4), maps(56, 28, 14, 7), ["layer1", "layer3", "layer4"]),
        (maps(16, 7), maps(32, 16, 8, 4), ["layer2", "layer4"]),
        (maps(8, 5, 4), maps(16, 8, 4), ["layer1", "layer2", "layer3"]),
        (maps(32, 16, 8), maps(128, 64, 32, 16), ["layer1", "layer3", "layer4"]),
    ],
)
def test_stages_meet_by_resolution_else_by_depth(student: Shapes, teacher: Shapes, met: list[str]) -> None:
    assert [other for _, other in pair("stages", student, teacher, 10, "X")] == met
    assert [one for one, _ in pair("stages", teacher, student, 10, "X")] == met, "either may be the deeper one"


@settings(max_examples=25, deadline=None)
@given(few=st.lists(st.integers(2, 9), min_size=1, max_size=4, unique=True), more=st.lists(st.integers(2, 9), min_size=1, max_size=6, unique=True))
def test_the_pairs_are_the_cheapest_of_all_choices_in_order(few: list[int], more: list[int]) -> None:
    few, many = sorted((sorted(few, reverse=True), sorted(more, reverse=True)), key=len)

    def cost(chosen: tuple[int, ...]) -> float:
        return sum((few[i] != many[j]) + abs((i + 1) / len(few) - (j + 1) / len(many)) for i, j in enumerate(chosen))

    found = tuple(int(other.removeprefix("layer")) - 1 for _, other in pair("stages", maps(*few), maps(*many), 10, "X"))
    assert cost(found) == pytest.approx(min(map(cost, itertools.combinations(range(len(many)), len(few)))))


def test_the_classifier_s_output_is_no_stage() -> None:
    segmenter = {"layer1": (2, 4, 8, 8), "layer2": (2, 4, 4, 4), "head": (2, 10, 16, 16)}
    assert of(segmenter) == ["layer1", "layer2"]
    language = tokens(3) | {"head": (2, 17, 10)}
    assert of(language) == ["blocks.0", "blocks.1", "blocks.2"]
    assert of(language, "vector") == ["head:in"]


def test_attention_windows_and_other_forms_are_no_stages() -> None:
    odd = {"stem": (2, 4, 4, 4), "blocks.0.softmax": (2, 4, 17, 17), "blocks.0.window": (8, 3, 8), "blocks.0": (2, 17, 8), "blocks.1": (2, 17, 8), "loss": ()}
    assert of(odd) == ["blocks.0", "blocks.1"]
    assert of({"layer1": (2, 4, 8, 8), "last": (2, 8, 8, 4), "layer2": (2, 4, 4, 4), "norm": (2, 4, 4, 16)}) == ["layer1", "layer2"]
    hybrid = maps(16, 8) | {"blocks.0": (2, 64, 8), "blocks.1": (2, 64, 8), "head": (2, 10)}
    assert of(hybrid) == ["layer1", "layer2", "blocks.0", "blocks.1"]


def test_what_cannot_be_paired_is_said() -> None:
    with pytest.raises(MismatchError, match=r"X cannot choose layers: the teacher shows none.*kind: frozen"):
        pair("stages", maps(8), {}, 10, "X")
    with pytest.raises(MismatchError, match=r"X finds no stages in the student.*layers: {mine: theirs}"):
        pair("last", {"head": (2, 10)}, maps(8), 10, "X")
    with pytest.raises(MismatchError, match=r"X finds no classifier in the student, no layer that gives \[N, 7\]"):
        pair("vector", maps(8), maps(8), 7, "X")
