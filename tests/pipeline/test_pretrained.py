"""Models of transformers in recipes: as teachers as they come, as students, made smaller, adapted, saved back; and all of it in one's own loop."""

import copy
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tests.pretrained import V, folder, hf, tokenizer, told

import limbeck
from limbeck.core.artifact import Artifact
from limbeck.core.errors import DataError, MismatchError, RecipeError
from limbeck.models.hf import HF
from limbeck.pipeline.check import check
from limbeck.pipeline.recipe import load_recipe
from limbeck.pipeline.resolve import make_tasks, stage_hashes

W = 289
"""Tokens of the tokenizer."""


@pytest.fixture
def here(tmp_path: Path) -> Path:
    own = tokenizer(tmp_path / "tokens")
    assert len(own) == W
    letters = torch.randint(0, 8, (60, 24), generator=torch.Generator().manual_seed(0))
    words = ["the", "cat", "sat", "on", "mat", "hello", "there", "you"]
    (tmp_path / "text.txt").write_text("\n\n".join(" ".join(words[int(one)] for one in row) for row in letters))
    (tmp_path / "train.tsv").write_text("".join(f"{' '.join(words[int(one)] for one in row[:5])}\t{'ab'[int(row[0]) % 2]}\n" for row in letters))
    folder(tmp_path / "gpt2", "gpt2", "causal", vocab_size=len(own), n_layer=4)
    folder(tmp_path / "bert", "bert", "masked", vocab_size=len(own), num_hidden_layers=4)
    own.save_pretrained(tmp_path / "gpt2")
    return tmp_path


def recipe(here: Path, kind: str, **stages: Any) -> Path:
    file = here / "recipe.yaml"
    data: dict[str, Any] = {"data": "tsv", "root": "."} if kind == "text" else {"data": "text", "root": "text.txt", "documents": "paragraphs"}
    task = {"kind": kind, **data, "tokenizer": {"kind": "hf", "root": "tokens"}, "context": 16, "validation": 0.2, "test": 0.2}
    usual = {"epochs": 1, "batch_size": 16}
    full = {name: (usual | stage if stage["kind"] in ("train", "distill") else stage) for name, stage in stages.items()}
    file.write_text(yaml.safe_dump({"name": "hf", "task": task, "stages": full, "measure": {"latency": False}}, sort_keys=False))
    return file


def answers(path: Path) -> tuple[Any, torch.Tensor, torch.Tensor]:
    golden = load_file(path / "golden.safetensors")
    return limbeck.load(path), golden["inputs"], golden["outputs"]


def test_a_teacher_as_it_comes_and_a_student_that_needs_no_folder(here: Path) -> None:
    file = recipe(
        here, "language",
        teacher={"kind": "given", "model": {"kind": "hf:gpt2"}},
        student={"kind": "distill", "teacher": {"kind": "frozen", "of": "teacher"}, "model": {"kind": "hf:gpt2", "pretrained": False, "config": {"n_layer": 1}},
                 "objectives": [{"kind": "response.divergence"}]},
        folder={"kind": "export", "of": "student", "format": "transformers"},
        onward={"kind": "train", "init": "folder"},
    )  # fmt: skip
    check(file)
    limbeck.run(file, out=here / "out")
    stages = here / "out" / "stages"
    own = HF((16,), W, of=str(here / "gpt2"), head="causal").eval()
    kept = limbeck.load(stages / "teacher")
    assert all(torch.equal(one, other) for one, other in zip(own.parameters(), kept.parameters(), strict=True)), "a given model is as it comes"
    assert Artifact.open(stages / "teacher").metrics["test_perplexity"] > 1
    shutil.rmtree(here / "gpt2")
    shutil.rmtree(here / "tokens")
    code = """
import sys, torch, limbeck
from safetensors.torch import load_file
for path in sys.argv[1:]:
    golden = load_file(path + "/golden.safetensors")
    with torch.no_grad():
        assert torch.allclose(limbeck.load(path)(golden["inputs"]).logits, golden["outputs"], atol=1e-5), path
"""
    done = subprocess.run([sys.executable, "-c", code, *(str(stages / one) for one in ("student", "folder", "onward"))], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_what_is_saved_back_opens_by_itself(here: Path) -> None:
    import transformers

    file = recipe(
        here, "language",
        student={"kind": "train", "model": {"kind": "hf:gpt2"}},
        shipped={"kind": "export", "of": "student", "format": "transformers"},
        ours={"kind": "train", "model": {"kind": "gpt", "dim": 16, "depth": 1, "heads": 2}},
        theirs={"kind": "export", "of": "ours", "format": "transformers"},
    )  # fmt: skip
    limbeck.run(file, out=here / "out")
    for name in ("shipped", "theirs"):
        path = here / "out" / "stages" / name
        found, x, wanted = answers(path)
        own = transformers.AutoModelForCausalLM.from_pretrained(path).eval()
        with torch.no_grad():
            assert torch.allclose(own(input_ids=x).logits, wanted, atol=1e-5)
            assert torch.allclose(found(x).logits, wanted, atol=1e-5)
        words, first = transformers.AutoTokenizer.from_pretrained(path), transformers.AutoTokenizer.from_pretrained(here / "tokens")
        assert words("the cat", add_special_tokens=False)["input_ids"] == first("the cat", add_special_tokens=False)["input_ids"]
        assert words.chat_template == first.chat_template
        assert own.config.eos_token_id == own.generation_config.eos_token_id == words.eos_token_id == first.eos_token_id
        assert Artifact.open(path).metrics["parity_max_abs"] < 1e-4
    with pytest.raises(RecipeError, match="takes a graph, and 'shipped' gives a module"):
        check(recipe(here, "language", student={"kind": "train", "model": {"kind": "hf:gpt2"}},
                             shipped={"kind": "export", "of": "student", "format": "transformers"}, int8={"kind": "quantize", "of": "shipped"}))  # fmt: skip


def test_a_classifier_with_half_the_layers_is_distilled_and_ships_with_its_classes(here: Path) -> None:
    import transformers

    file = recipe(
        here, "text",
        teacher={"kind": "train", "model": {"kind": "hf:bert"}},
        half={"kind": "compress", "of": "teacher", "method": {"kind": "prune.layers", "every": 2}},
        narrow={"kind": "compress", "of": "half", "method": {"kind": "prune.width", "hidden": 16, "neurons": 0.5, "examples": 8}},
        student={"kind": "distill", "teacher": {"kind": "frozen", "of": "teacher"}, "init": "narrow"},
        shipped={"kind": "export", "of": "student", "format": "transformers"},
    )  # fmt: skip
    check(file)
    limbeck.run(file, out=here / "out")
    path = here / "out" / "stages" / "shipped"
    own = transformers.AutoModelForSequenceClassification.from_pretrained(path).eval()
    assert (own.config.num_hidden_layers, own.config.hidden_size, own.config.num_attention_heads, own.config.intermediate_size) == (2, 16, 2, 20)
    assert own.config.id2label == {0: "a", 1: "b"}
    for name in ("narrow", "student", "shipped"):
        found, x, wanted = answers(here / "out" / "stages" / name)
        seen = load_file(here / "out" / "stages" / name / "golden.safetensors").get("attention")
        assert seen is None
        assert found(x).shape == wanted.shape == (8, 2)


def test_adapters_alone_learn_and_ship_merged(here: Path) -> None:
    file = recipe(
        here, "language",
        teacher={"kind": "given", "model": {"kind": "hf:gpt2"}},
        student={"kind": "distill", "teacher": {"kind": "frozen", "of": "teacher"}, "model": {"kind": "hf:gpt2", "adapter": {"kind": "lora", "r": 2}},
                 "objectives": [{"kind": "supervised"}], "optimizer": {"kind": "adam", "lr": 0.05}},
        shipped={"kind": "export", "of": "student", "format": "transformers"},
    )  # fmt: skip
    limbeck.run(file, out=here / "out")
    before, after = (load_file(here / "out" / "stages" / one / "model.safetensors") for one in ("teacher", "student"))
    for name, value in before.items():
        own = after[name] if name in after else after[name.replace("c_attn.", "c_attn.base_layer.")]
        assert torch.equal(own, value), name
    assert any("lora_B" in name and value.any() for name, value in after.items())
    found, x, _ = answers(here / "out" / "stages" / "shipped")
    with torch.no_grad():
        assert torch.allclose(found(x).logits, limbeck.load(here / "out" / "stages" / "student")(x).logits, atol=1e-4)
    assert not [name for name in load_file(here / "out" / "stages" / "shipped" / "model.safetensors") if "lora" in name]


def test_a_stages_hash_is_of_what_the_folder_holds(here: Path) -> None:
    def hashed(file: Path) -> str:
        made = load_recipe(file)
        return stage_hashes(made, "student", make_tasks(made)["student"], {})[0]

    first = hashed(recipe(here, "language", student={"kind": "train", "model": {"kind": "hf:gpt2"}}))
    shutil.copytree(here / "gpt2", here / "other")
    assert hashed(recipe(here, "language", student={"kind": "train", "model": {"kind": "hf:other"}})) == first
    assert hashed(recipe(here, "language", student={"kind": "train", "model": {"kind": "hf", "of": "other"}})) == first
    begun = hashed(recipe(here, "language", student={"kind": "train", "model": {"kind": "hf:gpt2", "pretrained": False}}))
    folder(here / "other", "gpt2", "causal", vocab_size=W, n_layer=2)
    assert hashed(recipe(here, "language", student={"kind": "train", "model": {"kind": "hf:other"}})) != first != begun


def test_a_model_of_the_hub_is_addressed_by_its_commit(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's own cache, as a fetched model leaves it; nothing is fetched."""
    from huggingface_hub import constants

    from limbeck.bridges import transformers as bridge

    commit = "0123456789abcdef0123456789abcdef01234567"
    place = here / "cache" / "models--someone--small"
    shutil.copytree(here / "gpt2", place / "snapshots" / commit)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(here / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert bridge.content("someone/small") == {"name": "someone/small", "commit": commit}
    made = HF((16,), W, of="someone/small", head="causal")
    assert all(torch.equal(one, two) for one, two in zip(made.parameters(), HF((16,), W, of=str(here / "gpt2"), head="causal").parameters(), strict=True))
    with pytest.raises(DataError, match="cannot be had from the hub"):
        HF((16,), W, of="someone/else", head="causal")


def test_in_ones_own_call_and_loop(tmp_path: Path) -> None:
    from limbeck.core.lookup import find

    (tmp_path / "text.txt").write_text("the cat sat on the mat\n" * 40)
    task: Any = find("tasks", "language")(data="text", root=str(tmp_path / "text.txt"), tokenizer={"kind": "bytes"}, context=16)
    teacher, student = (hf(kind, "causal", classes=257, config=told(kind, vocab_size=260)) for kind in ("gpt2", "llama"))
    how: dict[str, Any] = {"objectives": [find("objectives", "response.divergence")()], "training": {"batch_size": 16}}
    done = limbeck.distill(teacher, student, task, epochs=1, out=tmp_path / "out", **how)
    assert done.student is student
    again, x = limbeck.load(tmp_path / "out" / "student"), torch.randint(0, 257, (2, 16))
    assert torch.equal(again(x).logits, student(x).logits)
    kd = limbeck.Offline(student, teacher, [find("objectives", "response.divergence")()], task)
    batch = next(iter(task.loader("train", batch_size=4).batches(0)))
    kd(batch).loss.backward()
    assert all(one.grad is None for one in teacher.parameters()) and any(one.grad is not None for one in student.parameters())
    with torch.no_grad():
        same = limbeck.Offline(teacher, copy.deepcopy(teacher), [find("objectives", "response.divergence")()], task)
        assert float(same(batch).loss) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "opt", "gemma2"])
def test_a_document_costs_the_same_however_it_is_laid_out(kind: str, tmp_path: Path) -> None:
    """Alone, side by side with others, padded on the left and on the right: the sum over all documents of all their tokens' losses."""
    from limbeck.core.lookup import find

    (tmp_path / "text.txt").write_text("\n\n".join("the cat sat on the mat and saw it"[: 4 + at] for at in range(20)))
    model = hf(kind, "causal", context=32, classes=257, config=told(kind, vocab_size=257))
    found = []
    for how in ({"packing": "isolated"}, {"packing": "padded"}, {"packing": "padded", "padding": "left"}):
        task: Any = find("tasks", "language")(
            data="text", root=str(tmp_path / "text.txt"), documents="paragraphs", tokenizer={"kind": "bytes"}, context=32, validation=0, test=0, **how
        )
        with torch.no_grad():
            costs = [task.loss(task.forward(model, batch), batch).double().sum() for batch in task.loader("train", batch_size=7, whole=True).batches(0)]
        found.append(float(torch.stack(costs).sum()))
    assert found[1:] == pytest.approx([found[0]] * 2, rel=1e-5)


@pytest.mark.parametrize(
    ("kind", "stage", "error", "told_of"),
    [
        ("language", {"kind": "given"}, RecipeError, "needs either `path` .* or `model` .*neither"),
        ("language", {"kind": "given", "model": {"kind": "gpt"}}, RecipeError, "gpt begins anew"),
        ("language", {"kind": "given", "model": {"kind": "hf:nowhere"}}, DataError, "nowhere is no folder here, and cannot be had"),
        ("language", {"kind": "given", "model": {"kind": "hf:gpt2"}, "task": {"tokenizer": {"kind": "bytes"}}}, MismatchError,
         r"reads token 0 as '<s>', and the task's tokenizer as '<00>': .*\{kind: hf, root: .*objectives\.sequence\.uld"),
        ("language", {"kind": "train", "model": {"kind": "hf:gpt2"}, "task": {"context": 64}}, MismatchError, "rows of 64 tokens, and .* positions for 32"),
        ("masked", {"kind": "train", "model": {"kind": "hf:gpt2"}}, RecipeError, "GPT2Config has no head for masked answers"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_said_before_anything_runs(
    kind: str, stage: dict[str, Any], error: type[Exception], told_of: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(error, match=told_of):
        check(recipe(here, kind, teacher=stage))


def test_a_task_of_images_has_no_use_for_one(here: Path) -> None:
    tree = {"name": "x", "task": {"kind": "image", "data": "digits"}, "stages": {"one": {"kind": "train", "model": {"kind": "hf", "of": str(here / "gpt2")}}}}
    with pytest.raises(MismatchError, match="reads tokens, and the task is"):
        check(tree)


def test_the_written_out_form_is_what_is_kept(here: Path) -> None:
    made = load_recipe(recipe(here, "language", student={"kind": "train", "model": {"kind": "hf:gpt2"}}))
    stage: Any = made.stages["student"]
    assert stage.model.kind == "hf" and stage.model.options["of"] == str(here / "gpt2")
    assert json.loads(json.dumps(made.model_dump(mode="json")))["stages"]["student"]["model"] == {"kind": "hf", "of": str(here / "gpt2")}
    assert V < W
