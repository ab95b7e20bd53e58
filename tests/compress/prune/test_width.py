"""Narrower transformers: what goes is what does least, what stays is rows and columns of the weights, and what did nothing changes nothing when it goes."""

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.pretrained import hf, loud, told
from torch import Tensor, nn

from limbeck.compress.prune._width_roles import read
from limbeck.compress.prune._width_scores import activity
from limbeck.compress.prune.width import Width
from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.lookup import build
from limbeck.core.task import Task
from limbeck.engine.runtime import Runtime
from limbeck.models.encoder import Encoder
from limbeck.models.gpt import GPT
from limbeck.pipeline.compressed import bench_of

V, T = 260, 16
GROUPED: dict[str, Any] = {"num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 4}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Task]:
    file = tmp_path_factory.mktemp("text") / "text.txt"
    letters = torch.randint(0, 9, (30, 30), generator=torch.Generator().manual_seed(0))
    file.write_text("\n\n".join("".join("abcdefgh "[int(one)] for one in row) for row in letters))
    how: dict[str, Any] = {"data": "text", "root": str(file), "tokenizer": {"kind": "bytes"}, "context": T, "documents": "paragraphs", "packing": "padded"}
    return {kind: build("tasks", kind, how) for kind in ("language", "masked")}


def made(kind: str, **more: Any) -> tuple[Any, str]:
    torch.manual_seed(0)
    if kind == "gpt":
        return loud(GPT((T,), V, dim=24, depth=2, heads=3, **more)).eval(), "language"
    if kind == "encoder":
        return loud(Encoder((T,), V, dim=24, depth=2, heads=3)).eval(), "masked"
    head = "causal" if kind in ("gpt2", "llama", "qwen3", "mistral", "gemma2", "opt") else "masked"
    return hf(kind, head, classes=V, config=told(kind, vocab_size=V, **more)), "language" if head == "causal" else "masked"


def bench(tasks: dict[str, Task], kind: str) -> Any:
    return bench_of(tasks[kind], Runtime(), 0)


EVERY = ["gpt", "encoder", "gpt2", "llama", "qwen3", "mistral", "gemma2", "opt", "bert", "roberta", "distilbert"]


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize("asked", [{"neurons": 0.5}, {"hidden": 16}, {"hidden": 16, "heads": 2, "neurons": 12}])
def test_it_is_built_again_and_of_transformers_opens_again(kind: str, asked: dict[str, Any], tasks: dict[str, Task], tmp_path: Path) -> None:
    import transformers

    model, task = made(kind)
    if asked == {"hidden": 16} and kind in ("llama", "gemma2"):  # which want a width that their heads divide
        asked = {"hidden": 15}
    before = {name: one.clone() for name, one in model.state_dict().items()}
    done = Width(**asked, examples=16).operate(model, bench(tasks, task))
    assert all(torch.equal(one, before[name]) for name, one in model.state_dict().items()), "the model given stays"
    again = Width.rebuild(made(kind)[0], json.loads(json.dumps(dict(done.record))))
    again.load_state_dict(done.model.state_dict())
    x = torch.randint(0, V, (2, T))
    with torch.no_grad():
        assert torch.equal(again(x).logits, done.model(x).logits)
    sizes = read(done.model).sizes
    assert sizes.hidden == asked.get("hidden", 24) and sizes.head == 8
    assert sum(one.numel() for one in done.model.parameters()) < sum(one.numel() for one in model.parameters())
    if kind not in ("gpt", "encoder"):
        assert done.model.plain
        build("export", "transformers", {}).export(done.model, x, tmp_path / "model.safetensors")
        auto = transformers.AutoModelForCausalLM if task == "language" else transformers.AutoModelForMaskedLM
        own = auto.from_pretrained(tmp_path, attn_implementation="eager" if kind == "gemma2" else "sdpa").eval()
        assert own.config.hidden_size == sizes.hidden and own.config.num_attention_heads == sizes.heads
        with torch.no_grad():
            assert torch.allclose(own(input_ids=x).logits, done.model(x).logits, atol=1e-5)


def rows(model: nn.Module, path: str, name: str = "weight") -> Tensor:
    return model.get_submodule(path).get_parameter(name)


@pytest.mark.parametrize("kind", ["gpt", "encoder", "gpt2", "llama", "bert", "distilbert"])
def test_units_that_do_nothing_change_nothing_when_they_go(kind: str, tasks: dict[str, Task]) -> None:
    """Units of each layer are silenced, others in every layer, and as many go as are silent."""
    model, task = made(kind)
    known = read(model)
    for at, path in enumerate(known.readers("mlp")):
        silent = (torch.arange(5) * 3 + at) % known.sizes.mlp
        for giver in (one for one, axes in known.axes.items() if axes.gives == "mlp" and known.layer(one) == known.layer(path)):
            module: Any = known.body.get_submodule(giver)
            with torch.no_grad():
                (module.weight.T if known.axes[giver].turned else module.weight)[silent] = 0
                if module.bias is not None:
                    module.bias[silent] = 0
    done = Width(neurons=known.sizes.mlp - 5, examples=8).operate(model, bench(tasks, task))
    x = torch.randint(0, V, (2, T))
    with torch.no_grad():
        assert torch.allclose(done.model(x).logits, model(x).logits, atol=2e-5)


@pytest.mark.parametrize(("kind", "more", "heads"), [("gpt", {}, 2), ("gpt", {"positions": "rope"}, 1), ("llama", GROUPED, 4)])
def test_heads_that_give_nothing_change_nothing_when_they_go(kind: str, more: dict[str, Any], heads: int, tasks: dict[str, Task]) -> None:
    """Values are silenced, of the second group of LLaMA's with the two heads that share it."""
    model, task = made(kind, **more)
    known = read(model)
    gone = known.sizes.groups * (known.sizes.heads - heads) // known.sizes.heads
    for path in (one for one in known.axes if one.endswith(("value", "v_proj"))):
        module: Any = known.body.get_submodule(path)
        with torch.no_grad():
            module.weight.view(known.sizes.groups, known.sizes.head, -1)[1 : 1 + gone] = 0
            if module.bias is not None:
                module.bias.view(known.sizes.groups, -1)[1 : 1 + gone] = 0
    done = Width(heads=heads, examples=8).operate(model, bench(tasks, task))
    x = torch.randint(0, V, (2, T))
    with torch.no_grad():
        assert torch.allclose(done.model(x).logits, model(x).logits, atol=2e-5)
    assert read(done.model).sizes.groups == known.sizes.groups - gone


def test_as_many_heads_of_each_group_go_where_that_can_be(tasks: dict[str, Task]) -> None:
    model, task = made("llama", **GROUPED)
    done = Width(heads=3, examples=8).operate(model, bench(tasks, task))
    assert (read(done.model).sizes.heads, read(done.model).sizes.groups) == (3, 3)
    config = done.model.model.config
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (3, 3, 4)


def test_channels_that_are_empty_change_nothing_when_they_go(tasks: dict[str, Task]) -> None:
    """Of LLaMA's: a norm over D' channels is one over D of which the others are zero, times sqrt(D' / D)."""
    model, task = made("llama")
    known, empty = read(model), torch.tensor([2, 5, 11, 17, 23, 0])
    with torch.no_grad():
        for path, axes in known.axes.items():
            weight = rows(known.body, path)
            if axes.gives == "hidden" and not axes.norm:
                weight[empty] = 0
            elif path.endswith("embed_tokens"):
                weight[:, empty] = 0
    done = Width(hidden=18, examples=8).operate(model, bench(tasks, task))
    made_ = copy.deepcopy(done.model)
    with torch.no_grad():
        for path in read(made_).norms:
            rows(read(made_).body, path).mul_(math.sqrt(24 / 18))
        x = torch.randint(0, V, (2, T))
        assert torch.allclose(made_(x).logits, model(x).logits, rtol=1e-3, atol=1e-4)
        assert not torch.allclose(done.model(x).logits, model(x).logits, rtol=1e-3, atol=1e-4)


def places(old: Tensor, new: Tensor) -> list[int]:
    """Which columns of `old` the columns of `new` are."""
    return [next(at for at in range(old.shape[1]) if torch.equal(old[:, at], column)) for column in new.T]


def test_every_axis_of_a_gpt_2_is_cut_where_it_should_be(tasks: dict[str, Task]) -> None:
    model, task = made("gpt2")
    done = Width(hidden=16, neurons=30, examples=8).operate(model, bench(tasks, task))
    old, new = model.model.transformer, done.model.model.transformer
    hidden = places(old.wte.weight, new.wte.weight)
    assert hidden == sorted(hidden) and len(hidden) == 16
    assert torch.equal(new.wpe.weight, old.wpe.weight[:, hidden])
    for before, after in zip(old.h, new.h, strict=True):
        inner = places(before.attn.c_proj.weight[:, hidden].T, after.attn.c_proj.weight.T)
        assert inner == [*range(inner[0], inner[0] + 8), *range(inner[8], inner[8] + 8)] and inner[0] % 8 == inner[8] % 8 == 0, "whole heads"
        three = [part * 24 + one for part in range(3) for one in inner]
        assert torch.equal(after.attn.c_attn.weight, before.attn.c_attn.weight[hidden][:, three])
        assert torch.equal(after.attn.c_attn.bias, before.attn.c_attn.bias[three])
        units = places(before.mlp.c_proj.weight[:, hidden].T, after.mlp.c_proj.weight.T)
        assert torch.equal(after.mlp.c_fc.weight, before.mlp.c_fc.weight[hidden][:, units])
        assert torch.equal(after.mlp.c_fc.bias, before.mlp.c_fc.bias[units])
        for name in ("ln_1", "ln_2"):
            assert torch.equal(rows(after, name), rows(before, name)[hidden]) and torch.equal(rows(after, name, "bias"), rows(before, name, "bias")[hidden])
    assert torch.equal(new.ln_f.weight, old.ln_f.weight[hidden])
    assert done.model.model.lm_head.weight is new.wte.weight


@pytest.mark.parametrize("kind", ["bert", "distilbert", "encoder"])
def test_a_head_of_masked_tokens_is_cut_too(kind: str, tasks: dict[str, Task]) -> None:
    model, task = made(kind)
    done = Width(hidden=16, examples=8).operate(model, bench(tasks, task))
    embed, transform = {
        "bert": ("bert.embeddings.word_embeddings", "cls.predictions.transform.dense"),
        "distilbert": ("distilbert.embeddings.word_embeddings", "vocab_transform"),
        "encoder": ("embed", "transform.0"),
    }[kind]
    old, new = (one if kind == "encoder" else one.model for one in (model, done.model))
    hidden = places(rows(old, embed), rows(new, embed))
    assert torch.equal(rows(new, transform), rows(old, transform)[hidden][:, hidden])
    assert torch.equal(rows(new, transform, "bias"), rows(old, transform, "bias")[hidden])


def test_what_units_do_is_the_l2_over_rows_of_the_mean_over_tokens(tasks: dict[str, Task]) -> None:
    model, task = made("gpt")
    made_bench, known = bench(tasks, task), read(model)
    batches = [{"input": torch.randint(0, V, (3, 6))}, {"input": torch.randint(0, V, (2, 6)), "segment": torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6])}]
    found = activity(model, known, batches, made_bench)
    wanted = {path: torch.zeros(96 if "mlp" in path else 3 if "attention" in path else 24, dtype=torch.float64) for path in [*found] if path != "hidden"}
    for batch in batches:
        seen: dict[str, Tensor] = {}
        hooks = [
            known.body.get_submodule(path).register_forward_hook(
                lambda _m, args, out, path=path, seen=seen: seen.update({path: out if "norm" in path else args[0]})
            )
            for path in wanted
        ]  # fmt: skip
        with torch.no_grad():
            model(**batch)
        for hook in hooks:
            hook.remove()
        for path, x in seen.items():
            size = x.double().view(*x.shape[:2], 3, 8).norm(dim=-1) if "attention" in path else x.double().abs()
            for row in range(len(x)):
                real = batch["segment"][row] != 0 if "segment" in batch else torch.ones(6, dtype=torch.bool)
                wanted[path] += size[row][real].mean(0).square()
    for path, total in wanted.items():
        assert torch.allclose(found[path], total.sqrt(), rtol=1e-5), path
    assert torch.allclose(found["hidden"], sum(wanted[path].sqrt() for path in known.norms), rtol=1e-5)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("kind", "asked", "error", "told_of"),
    [
        ("gpt", {}, RecipeError, "told nothing to make smaller"),
        ("gpt", {"hidden": 1.5}, RecipeError, "a share above 0 and below 1"),
        ("gpt", {"hidden": 25}, RecipeError, "hidden of prune.width is 25, and the model has 24"),
        ("bert", {"heads": 2}, MismatchError, "cannot have tokens 24 wide with 2 heads of 8.*hidden: 24 and heads: 3"),
        ("llama", {"hidden": 16}, MismatchError, "cannot have tokens 16 wide with 3 heads of 8: ask for hidden: 15 and heads: 3"),
        ("gpt2", {"hidden": 20}, MismatchError, "ask for hidden: 16 and heads: 2"),
        ("albert", {"neurons": 0.5}, MismatchError, "no stack of layers|prune.width does not know"),
        ("modernbert", {"neurons": 0.5}, MismatchError, r"prune\.width does not know 'model\.layers\.0\.attn\.Wqkv'|prune.width does not know"),
    ],
)
def test_what_cannot_be_reached_is_said(kind: str, asked: dict[str, Any], error: type[Exception], told_of: str, tasks: dict[str, Task]) -> None:
    model, task = made(kind)
    with pytest.raises(error, match=told_of):
        Width(**asked, examples=8).operate(model, bench(tasks, task))


def test_groups_that_cannot_be_shared(tasks: dict[str, Task]) -> None:
    model, task = made("llama", **GROUPED)
    with pytest.raises(RecipeError, match="5 heads do not share 3 groups of keys and values as 6 do: the nearest that can be is heads: 4"):
        Width(heads=5, examples=8).operate(model, bench(tasks, task))


def test_adapters_are_merged_first(tasks: dict[str, Task]) -> None:
    model = hf("llama", "causal", classes=V, config=told("llama", vocab_size=V), adapter={"r": 2})
    with pytest.raises(MismatchError, match="has adapters beside them: export it"):
        Width(neurons=0.5).operate(model, bench(tasks, "language"))
