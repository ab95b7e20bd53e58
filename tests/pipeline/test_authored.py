"""Recipes in which models write, and in which they read in tokens of their own: from text to a student, and what is refused before."""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from limbeck.core.artifact import Artifact
from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.events import Event, Note, silent
from limbeck.pipeline.check import check
from limbeck.pipeline.run import Run, run_recipe

FIT: dict[str, Any] = {"epochs": 1, "batch_size": 8, "optimizer": {"kind": "adam", "lr": 0.01}}
GPT = {"kind": "gpt", "dim": 16, "depth": 1, "heads": 2}
DISTILL = {"kind": "distill", "teacher": {"kind": "frozen", "of": "teacher"}, "model": {"kind": "gpt", "dim": 8, "depth": 1, "heads": 2}, **FIT}
BYTES, BPE = {"kind": "bytes"}, {"kind": "bpe", "size": 280}


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "sums.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": f"{at % 9} and {at % 7} is ", "completion": f"{at % 9 + at % 7}"}) for at in range(80)))
    return path


def task(book: Path, tokenizer: dict[str, Any], context: int) -> dict[str, Any]:
    return {
        "kind": "language",
        "data": "jsonl",
        "root": str(book),
        "tokenizer": tokenizer,
        "context": context,
        "packing": "padded",
        "test": 0.1,
        "validation": 0.1,
    }


def tree(book: Path, **stages: Any) -> dict[str, Any]:
    teacher = {"kind": "train", "model": GPT, **FIT}
    return {"name": "sums", "task": task(book, BPE, 20), "stages": {"teacher": teacher, **stages}, "measure": {"latency": False}}


WRITTEN = {
    **DISTILL,
    "transfer": {"kind": "written", "of": "teacher", "how": {"kind": "beam", "size": 2}, "tokens": 4, "shard": 20},
    "objectives": [{"kind": "supervised"}],
}
ON_POLICY = {**DISTILL, "scheme": {"kind": "on_policy", "share": 0.5, "tokens": 3}, "objectives": [{"kind": "response.divergence", "divergence": "jsd"}]}
MINILLM = {**DISTILL, "scheme": {"kind": "minillm", "tokens": 3}, "objectives": [{"kind": "supervised"}]}


def other(book: Path, **more: Any) -> dict[str, Any]:
    own = {"kind": "own_tokens", "of": "teacher"}
    transfer = {"kind": "retokenized", "partner": task(book, BPE, 20)}
    return {**DISTILL, "task": {"tokenizer": BYTES, "context": 24}, "teacher": own, "transfer": transfer, **more}


ALIGNED = [{"kind": "sequence.aligned", "weight": 0.5}, {"kind": "sequence.uld", "weight": 0.2}, {"kind": "supervised"}]


@pytest.fixture(scope="module")
def ran(book: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, list[Event]]:
    heard: list[Event] = []
    recipe = tree(book, written=WRITTEN, on_policy=ON_POLICY, minillm=MINILLM, aligned=other(book, objectives=ALIGNED))
    return run_recipe(recipe, out=tmp_path_factory.mktemp("run"), listener=heard.append), heard


def test_they_run_from_text_to_a_student(ran: tuple[Run, list[Event]]) -> None:
    run, heard = ran
    parts = {}
    for name in ("written", "on_policy", "minillm", "aligned"):
        (row,) = json.loads((run.out / "stages" / name / "history.json").read_text())["epochs"]
        assert row["train_loss"] is not None and 0 < run.stages[name]["metrics"]["test_perplexity"] < 1000
        parts[name] = {*row["parts"]}
    assert parts == {
        "written": {"supervised"}, "on_policy": {"divergence", "divergence_own"}, "minillm": {"policy", "reverse_kl", "supervised"},
        "aligned": {"aligned", "uld", "supervised"},
    }  # fmt: skip
    notes = [event.text for event in heard if isinstance(event, Note)]
    assert any("teacher writes the transfer set: " in one for one in notes)


def test_what_was_written_is_kept_beside_the_run_and_read_again(ran: tuple[Run, list[Event]], book: Path) -> None:
    run, _ = ran
    (folder,) = (run.out / "knowledge").glob("written-*")
    shards = sorted(folder.glob("*.safetensors"))
    rows = [load_file(one) for one in shards]
    assert len(shards) == -(-sum(len(one["ids"]) for one in rows) // 20) and all((one["label"] >= 0).any() for one in rows)
    before = {one: one.stat().st_mtime_ns for one in shards}
    more = {**WRITTEN, "epochs": 2}
    again = run_recipe(tree(book, written=more), out=run.out, listener=silent)
    assert again.stages["teacher"]["reused"] and not again.stages["written"]["reused"]
    assert {one: one.stat().st_mtime_ns for one in sorted(folder.glob("*.safetensors"))} == before, "more epochs write nothing anew"
    assert Artifact.open(run.out / "stages" / "written").name == "written"


@pytest.mark.parametrize(
    ("stage", "error", "match"),
    [
        (
            lambda book: {**DISTILL, "task": {"tokenizer": BYTES}},
            MismatchError,
            r"other vocabularies, .* tokens of kind bpe and 257 tokens of kind bytes.*sequence\.uld",
        ),
        (
            lambda book: {**WRITTEN, "task": {"tokenizer": BYTES}},
            MismatchError,
            r"the writer teacher of stage s and its task have other vocabularies.*sequence\.uld",
        ),
        (lambda book: other(book, teacher={"kind": "frozen", "of": "teacher"}), MismatchError, r"other vocabularies.*own_tokens"),
        (lambda book: other(book, objectives=[{"kind": "response.kd"}]), MismatchError, r"response\.kd of stage s compares class by class.*sequence\.uld"),
        (lambda book: other(book, objectives=ALIGNED, transfer={"kind": "real"}), RecipeError, r"transfer: \{kind: retokenized, partner: \.\.\.\}"),
        (lambda book: {**WRITTEN, "transfer": {"kind": "written"}}, RecipeError, "name it, of: stage"),
        (lambda book: {**WRITTEN, "teacher": {"kind": "cached", "of": "teacher"}}, MismatchError, "a cached teacher knows what the data say"),
        (lambda book: {**ON_POLICY, "teacher": {"kind": "cached", "of": "teacher"}}, MismatchError, "knows what was recorded of the data"),
    ],
    ids=["frozen", "written", "wrong-teacher", "response", "no-partner", "no-writer", "cached", "cached-on-policy"],
)
def test_what_does_not_fit_is_refused_before_step_one(book: Path, stage: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        check(tree(book, s=stage(book)))
