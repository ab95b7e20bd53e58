"""Leaving some layers: those that were named, evenly, or that matter; the model is built again, and of transformers opens again."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.pretrained import hf, loud, told
from torch import nn

from limbeck.compress.prune._stack import stack_of
from limbeck.compress.prune.layers import Layers, kept
from limbeck.core.errors import ArtifactError, MismatchError, RecipeError
from limbeck.core.lookup import build
from limbeck.core.task import Task
from limbeck.engine.runtime import Runtime
from limbeck.models.encoder import Encoder
from limbeck.models.gpt import GPT
from limbeck.pipeline.compressed import bench_of

V, T = 260, 16


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Task]:
    file = tmp_path_factory.mktemp("text") / "text.txt"
    letters = torch.randint(0, 9, (40, 40), generator=torch.Generator().manual_seed(0))
    file.write_text("\n\n".join("".join("abcdefgh "[int(one)] for one in row) for row in letters))
    how: dict[str, Any] = {"data": "text", "root": str(file), "tokenizer": {"kind": "bytes"}, "context": T, "documents": "paragraphs"}
    return {kind: build("tasks", kind, how | ({"packing": "isolated"} if kind == "language" else {"packing": "padded"})) for kind in ("language", "masked")}


def made(kind: str) -> tuple[nn.Module, str]:
    torch.manual_seed(0)
    if kind == "gpt":
        return loud(GPT((T,), V, dim=16, depth=4, heads=2)).eval(), "language"
    if kind == "encoder":
        return loud(Encoder((T,), V, dim=16, depth=4, heads=2)).eval(), "masked"
    head = "causal" if kind in ("gpt2", "llama", "gemma3_text") else "masked"
    deeper = {"gpt2": "n_layer", "distilbert": "n_layers"}.get(kind, "num_hidden_layers")
    return hf(kind, head, classes=V, config=told(kind, vocab_size=V, **{deeper: 4})), "language" if head == "causal" else "masked"


EVERY = ["gpt", "encoder", "gpt2", "llama", "bert", "distilbert"]


@pytest.mark.parametrize("kind", EVERY)
def test_what_stays_keeps_its_weights_and_is_built_again(kind: str, tasks: dict[str, Task]) -> None:
    model, task = made(kind)
    before = copy.deepcopy(model)
    done = Layers(every=2).operate(model, bench_of(tasks[task], Runtime(), 0))
    assert [row["out"] for row in done.layers] == [False, True, False, True]
    stack = done.record["stack"]
    assert len(done.model.get_submodule(stack)) == 2  # pyright: ignore[reportArgumentType]
    for new, old in ((0, 0), (1, 2)):
        for one, other in zip(done.model.get_submodule(f"{stack}.{new}").parameters(), before.get_submodule(f"{stack}.{old}").parameters(), strict=True):
            assert torch.equal(one, other)
    assert all(torch.equal(one, other) for one, other in zip(model.state_dict().values(), before.state_dict().values(), strict=True)), "the model given stays"
    again = Layers.rebuild(made(kind)[0], json.loads(json.dumps(dict(done.record))))
    again.load_state_dict(done.model.state_dict())
    x = torch.randint(0, V, (2, T))
    with torch.no_grad():
        assert torch.equal(again(x).logits, done.model(x).logits)
        assert not torch.equal(again(x).logits, before(x).logits)


@pytest.mark.parametrize("kind", ["gpt", "llama"])
def test_it_answers_as_the_layers_one_after_the_other(kind: str, tasks: dict[str, Task]) -> None:
    """The states after layers 0 and 3 alone, by hand: layers 1 and 2 made to give what they read."""
    model, task = made(kind)
    done = Layers(keep=(0, -1)).operate(model, bench_of(tasks[task], Runtime(), 0))
    stack: Any = model.get_submodule(done.record["stack"])
    for at in (1, 2):
        layer = stack[at]
        layer.forward = lambda x, *_more, **_named: x
    x = torch.randint(0, V, (2, T))
    with torch.no_grad():
        assert torch.allclose(done.model(x).logits, model(x).logits, atol=1e-5)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "bert", "distilbert", "gemma3_text"])
def test_a_folder_of_it_opens_and_says_how_many_there_are(kind: str, tasks: dict[str, Task], tmp_path: Path) -> None:
    import transformers

    model, task = made(kind)
    done = Layers(keep=(0, 3)).operate(model, bench_of(tasks[task], Runtime(), 0))
    assert done.model.plain
    x = torch.randint(0, V, (2, T))
    build("export", "transformers", {}).export(done.model, x, tmp_path / "model.safetensors")
    auto = transformers.AutoModelForCausalLM if task == "language" else transformers.AutoModelForMaskedLM
    own = auto.from_pretrained(tmp_path).eval()
    assert own.config.num_hidden_layers == 2
    with torch.no_grad():
        assert torch.allclose(own(input_ids=x).logits, done.model(x).logits, atol=1e-5)
    if task == "language":
        wanted = x[:, :4]
        for _ in range(3):
            wanted = torch.cat([wanted, done.model(wanted).logits[:, -1].argmax(-1)[:, None]], 1)
        assert torch.equal(done.model.generate(x[:, :4], 3, temperature=0), wanted), "keys and values are found by the new numbers"


@pytest.mark.parametrize("kind", ["gpt", "encoder", "llama", "distilbert"])
@pytest.mark.parametrize("by", ["cosine", "loss"])
def test_a_layer_that_does_nothing_goes_first(kind: str, by: str, tasks: dict[str, Task]) -> None:
    model, task = made(kind)
    stack: Any = model.get_submodule(Layers(every=2).operate(model, bench_of(tasks[task], Runtime(), 0)).record["stack"])
    if kind in ("gpt", "llama"):  # pre-norm: without weights it gives what it reads
        for one in stack[1].parameters():
            nn.init.zeros_(one)
    else:  # what is normalised already is normalised to itself
        for name, one in stack[1].named_parameters():
            nn.init.ones_(one) if "norm" in name and name.endswith("weight") else nn.init.zeros_(one)
        for name, one in stack[0].named_parameters():
            if "norm" in name:
                nn.init.ones_(one) if name.endswith("weight") else nn.init.zeros_(one)
    done = Layers(left=3, by=by, examples=16).operate(model, bench_of(tasks[task], Runtime(), 0))  # pyright: ignore[reportArgumentType]
    if by == "cosine" or kind in ("gpt", "llama"):
        scores = {row["name"]: row["turned" if by == "cosine" else "loss"] for row in done.layers if "turned" in row or "loss" in row}
        assert by == "loss" or min(scores, key=lambda name: scores[name]).endswith(".1")
        assert by == "loss" or done.record["keep"] == [0, 2, 3]
    assert len(done.record["keep"]) == 3


def test_the_layer_without_which_the_loss_is_lowest_goes(tasks: dict[str, Task]) -> None:
    model, _ = made("gpt")
    bench = bench_of(tasks["language"], Runtime(), 0)
    batches = list(bench.batches(16, batch_size=32))
    done = Layers(left=3, by="loss", examples=16).operate(model, bench)
    losses = []
    for at in range(4):
        other: Any = copy.deepcopy(model)
        other.blocks = nn.ModuleList(one for place, one in enumerate(other.blocks) if place != at)
        with torch.no_grad():
            losses.append(float(torch.cat([bench.losses(other, batch).flatten() for batch in batches]).double().mean()))
    assert done.record["keep"] == [at for at in range(4) if at != losses.index(min(losses))]
    assert [row["loss"] for row in done.layers] == pytest.approx(losses)


@pytest.mark.parametrize(
    ("options", "told_of"),
    [
        ({}, "one of keep: .*given is none"),
        ({"keep": (0,), "every": 2}, "given is keep and every"),
        ({"every": 5}, "2 to 4, the depth"),
        ({"every": 1}, "2 to 4, the depth"),
        ({"keep": (0, 4)}, "names layer 4, and the model has 4, from 0 to 3"),
        ({"keep": (1, 0)}, "each once and in order"),
        ({"keep": (0, 1, 2, 3)}, "each once and in order"),
        ({"left": 4}, "has 4 layers: ask for fewer"),
        ({"left": 1, "by": "cosin"}, "did you mean 'cosine'"),
        ({"every": 2, "stack": "embed"}, "which is no list of layers"),
    ],
)
def test_layers_that_cannot_be_meant(options: dict[str, Any], told_of: str, tasks: dict[str, Task]) -> None:
    with pytest.raises(RecipeError, match=told_of):
        Layers(**options).operate(made("gpt")[0], bench_of(tasks["language"], Runtime(), 0))


def test_a_model_without_a_stack_and_a_record_of_another() -> None:
    with pytest.raises(MismatchError, match="no stack of layers"):
        stack_of(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(ArtifactError, match="of another model"):
        Layers.rebuild(made("gpt")[0], {"stack": "blocks", "keep": [0, 7]})


def test_negative_places_count_from_the_end() -> None:
    assert kept(12, keep=(0, 2, 4, 7, 9, -1)) == [0, 2, 4, 7, 9, 11]
    assert kept(5, every=2) == [0, 2, 4]
