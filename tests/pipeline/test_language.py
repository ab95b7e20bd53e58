"""Recipes over tokens, from text to report: what is exported, measured, compared and written."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from limbeck.core.artifact import Artifact
from limbeck.core.events import Event, Note, silent
from limbeck.core.lookup import build
from limbeck.measure.statistics import by_rows
from limbeck.pipeline.modules import load, read_tensors
from limbeck.pipeline.publish import real_batch
from limbeck.pipeline.run import Run, run_recipe
from limbeck.report import write

GPT = {"kind": "gpt", "dim": 16, "depth": 2, "heads": 2}
SMALL = {"kind": "gpt", "dim": 8, "depth": 1, "heads": 2}
FIT: dict[str, Any] = {"epochs": 2, "batch_size": 4, "optimizer": {"kind": "adam", "lr": 0.01}}


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "book.txt"
    draw = np.random.default_rng(0)
    words = ["the", "still", "drips", "a", "small", "spirit", "of", "what", "was", "large", "<b>and</b>"]
    path.write_text("".join(f"{' '.join(draw.choice(words, 6))}.\n" for _ in range(90)))
    return path


@pytest.fixture(scope="module")
def causal(book: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, dict[str, Any], list[Event]]:
    task = {"kind": "language", "data": "text", "root": str(book), "tokenizer": {"kind": "bytes"}, "context": 24, "test": 0.2, "validation": 0.1}
    tree = {
        "name": "book",
        "task": task,
        "stages": {
            "teacher": {"kind": "train", "model": GPT, **FIT},
            "alone": {"kind": "train", "model": SMALL, **FIT},
            "student": {
                "kind": "distill", "teacher": {"kind": "frozen", "of": "teacher"}, "model": SMALL, **FIT,
                "objectives": [{"kind": "response.divergence", "weight": 0.5}, {"kind": "supervised", "weight": 0.5}],
            },
            "shipped": {"kind": "export", "of": "student"},
            "int8": {"kind": "quantize", "of": "shipped", "method": {"kind": "dynamic_int8", "force": True}, "min_agreement": 0.5, "min_sqnr_db": 1},
        },
        "measure": {"seconds": 0.2},
    }  # fmt: skip
    heard: list[Event] = []
    done = run_recipe(tree, out=tmp_path_factory.mktemp("run"), listener=heard.append)
    return done, task, heard


def test_a_language_model_ships_and_its_file_says_the_same(causal: tuple[Run, dict[str, Any], list[Event]]) -> None:
    run, told, _ = causal
    metrics = {name: stage["metrics"] for name, stage in run.stages.items()}
    assert metrics["shipped"]["test_loss"] == pytest.approx(metrics["student"]["test_loss"], rel=1e-5)
    assert metrics["shipped"]["parity_max_abs"] < 1e-4
    assert metrics["int8"]["file_bytes"] < metrics["shipped"]["file_bytes"]
    assert all("latency_ms_p50" in one for one in metrics.values())
    task = build("tasks", told["kind"], {name: value for name, value in told.items() if name != "kind"})
    batch = real_batch(task, 3)
    ours, file = (load(run.out / "stages" / name) for name in ("student", "shipped"))
    for length in (24, 5):  # a file reads rows of any length
        said = task.forward(file, {"input": batch["input"][:, :length]}).main.logits
        torch.testing.assert_close(said, task.forward(ours, {"input": batch["input"][:, :length]}).main.logits, rtol=1e-4, atol=1e-5)


def test_perplexity_and_bits_a_byte_come_from_the_rows_that_are_kept(causal: tuple[Run, dict[str, Any], list[Event]], book: Path) -> None:
    run, _, _ = causal
    student = Artifact.open(run.out / "stages" / "student")
    rows, metrics = read_tensors(student.path / "rows.safetensors"), student.metrics
    mean = float(rows["loss"].sum() / rows["count"].sum())
    assert metrics["test_loss"] == pytest.approx(mean) and metrics["test_perplexity"] == pytest.approx(math.exp(mean))
    text = book.read_text()
    assert metrics["test_bits_per_byte"] == pytest.approx(float(rows["loss"].sum()) / math.log(2) / student.spec["preprocess"]["bytes"]["test"])
    assert 0.15 * len(text) < student.spec["preprocess"]["bytes"]["test"] < 0.25 * len(text)
    assert metrics["test_loss_low"] < mean < metrics["test_loss_high"] and metrics["predictions"] == int(rows["count"].sum())
    alone = read_tensors(run.out / "stages" / "alone" / "rows.safetensors")
    pair = next(one for one in json.loads((run.out / "rows.json").read_text())["pairs"] if (one["a"], one["b"]) == ("student", "alone"))
    found = by_rows((rows["loss"] - alone["loss"]).numpy(), rows["count"].numpy())
    assert (pair["difference"], pair["low"], pair["high"]) == pytest.approx((found.mean, found.low, found.high))
    assert pair["difference"] == pytest.approx(metrics["test_loss"] - run.stages["alone"]["metrics"]["test_loss"])


def test_the_report_tells_perplexity_and_shows_what_is_written(causal: tuple[Run, dict[str, Any], list[Event]]) -> None:
    run, _, _ = causal
    told = json.loads((run.out / "stages" / "student" / "samples.json").read_text())["samples"]
    assert len(told) == 3 and all(len(one["prompt"]) == 5 or len(one["prompt"]) == 6 for one in told)
    assert told == json.loads((run.out / "stages" / "shipped" / "samples.json").read_text())["samples"]
    page = write(run.out).read_text()
    assert "has a perplexity of" in page and "nats a token" in page and "What they write" in page and "Bits a byte" in page
    assert "<b>and</b>" not in page


@pytest.mark.parametrize("packing", ["isolated", "padded"])
def test_documents_that_share_a_row_are_exported_with_their_segments(book: Path, tmp_path: Path, packing: str) -> None:
    task = {"kind": "language", "data": "text", "root": str(book), "tokenizer": {"kind": "bytes"}, "context": 40, "documents": "lines", "packing": packing}
    task |= {"padding": "left"} if packing == "padded" else {}
    stages = {"student": {"kind": "train", "model": SMALL, **FIT, "epochs": 1}, "shipped": {"kind": "export", "of": "student"}}
    run = run_recipe({"name": "lines", "task": task, "stages": stages, "measure": {"latency": False}}, out=tmp_path / "run", listener=silent)
    spec = Artifact.open(run.out / "stages" / "shipped").spec
    assert spec["takes"] == {"input": "int64", "segment": "int64", "position": "int64"}
    assert run.stages["shipped"]["metrics"]["test_loss"] == pytest.approx(run.stages["student"]["metrics"]["test_loss"], rel=1e-5)


def test_a_classifier_of_sentences_is_exported_with_its_padding(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    for name, count in (("train", 80), ("dev", 24), ("test", 24)):
        lines = [f"{' '.join(draw.choice(['good', 'fine'] if at % 2 else ['bad', 'dull'], draw.integers(1, 5)))}\t{at % 2}" for at in range(count)]
        (tmp_path / f"{name}.tsv").write_text("sentence\tlabel\n" + "\n".join(lines) + "\n")
    task = {"kind": "text", "data": "tsv", "root": str(tmp_path), "tokenizer": {"kind": "bytes"}, "context": 24}
    model = {"kind": "encoder", "vocabulary": 260, "dim": 16, "depth": 1, "heads": 2, "pool": "mean"}
    hidden = {**task, "kind": "masked", "packing": "padded"}
    stages = {
        "pretrained": {"kind": "train", "task": hidden, "model": {**model, "vocabulary": None}, **FIT, "epochs": 1},
        "student": {"kind": "train", "model": model, "init": "pretrained", **FIT, "epochs": 3},
        "shipped": {"kind": "export", "of": "student"},
        "int8": {"kind": "quantize", "of": "shipped", "method": {"kind": "static_int8", "examples": 40, "force": True}, "min_agreement": 0.5, "min_sqnr_db": 1},
    }
    heard: list[Event] = []
    tree = {"name": "mood", "task": task, "stages": stages, "measure": {"seconds": 0.1}}
    run = run_recipe(tree, out=tmp_path / "run", listener=heard.append)
    metrics = {name: stage["metrics"] for name, stage in run.stages.items()}
    begins = [event.text for event in heard if isinstance(event, Note) and "tensors of pretrained" in event.text]
    assert begins[0].endswith("fresh are head.weight, head.bias")
    assert metrics["shipped"]["accuracy"] == metrics["student"]["accuracy"] > 0.9
    assert all("latency_ms_p50" in one for one in metrics.values())
    assert not [event for event in heard if isinstance(event, Note) and "not measured" in event.text]


@pytest.mark.parametrize(
    "objective",
    [
        {"kind": "attention.transformer", "hidden": {"blocks.*": "blocks.*"}, "attention": {"blocks.*.attention.softmax": "blocks.*.attention.softmax"}},
        {"kind": "attention.minilm", "relations": {f"blocks.0.attention.{one}": f"blocks.2.attention.{one}" for one in ("query", "key", "value")}, "heads": 4},
        {"kind": "feature.cosine", "layers": {"norm": "norm"}},
        {"kind": "feature.patient", "layers": {"blocks.0": "blocks.2"}},
    ],
    ids=lambda one: one["kind"],
)
@pytest.mark.parametrize("kind", ["masked", "text"])
def test_encoders_learn_layer_by_layer_padding_left_out(tmp_path: Path, kind: str, objective: dict[str, Any]) -> None:
    """TinyBERT's, MiniLM's, DistilBERT's and PKD's knowledge, of masked tokens and of sentences."""
    lines = [f"{'good ' * (1 + at % 4)}film\t{at % 2}" for at in range(60)]
    (tmp_path / "train.tsv").write_text("\n".join(lines) + "\n")
    task = {"kind": kind, "data": "tsv", "root": str(tmp_path), "tokenizer": {"kind": "bytes"}, "context": 16}
    of = {"kind": "encoder", "heads": 2, "attention": "open", **({"vocabulary": 260} if kind == "text" else {})}
    masked = {} if objective["kind"] == "feature.patient" else {"mask": "attention"}
    stages = {
        "teacher": {"kind": "train", "model": {**of, "dim": 16, "depth": 3}, **FIT, "epochs": 1},
        "student": {
            "kind": "distill", "teacher": {"kind": "frozen", "of": "teacher"}, "model": {**of, "dim": 8, "depth": 1}, **FIT, "epochs": 1,
            "objectives": [{**objective, **masked}, {"kind": "supervised"}],
        },
    }  # fmt: skip
    run = run_recipe({"name": "layers", "task": task, "stages": stages, "measure": {"latency": False}}, out=tmp_path / "run", listener=silent)
    assert math.isfinite(run.stages["student"]["metrics"]["validation_loss"])
