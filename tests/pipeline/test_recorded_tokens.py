"""What a teacher says of each token, recorded once: by document and place, read in any order and packing that shows it the same text, and in no other."""

import copy
import multiprocessing
import os
import pickle
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from limbeck.core.errors import ArtifactError, DataError, LimbeckError, MismatchError, RecipeError
from limbeck.core.events import Event, Note, silent
from limbeck.core.files import read_json
from limbeck.core.knowledge import Hidden, Knowledge, Reads, TopK
from limbeck.core.objective import Term
from limbeck.models.encoder import Encoder
from limbeck.models.gpt import GPT
from limbeck.objectives.response.divergence import DivergenceKD
from limbeck.objectives.response.kd import KD
from limbeck.pipeline import recorded, stages
from limbeck.pipeline.check import check
from limbeck.pipeline.recorded import record
from limbeck.pipeline.run import run_recipe
from limbeck.schemes.offline import Offline
from limbeck.tasks.language import Language
from limbeck.tasks.masked import Masked
from limbeck.teachers import _store_writer
from limbeck.teachers.cached import Cached
from limbeck.teachers.frozen import Frozen

TEXT = "".join(f"speaker {number}:\nsome words of {number * number}\n\n" for number in range(30))
BYTES: Any = {"kind": "bytes"}
EXACT = {"kind": "hidden", "dtype": "float32"}


@pytest.fixture
def root(tmp_path: Path) -> str:
    (tmp_path / "text.txt").write_text(TEXT)
    return str(tmp_path / "text.txt")


def language(root: str, **how: Any) -> Language:
    return Language(**{"root": root, "tokenizer": BYTES, "context": 24, "validation": 0.0, "test": 0.0, "documents": "paragraphs", **how})


def gpt(seed: int = 0, context: int = 24) -> GPT:
    torch.manual_seed(seed)
    made = GPT((context,), 257, dim=16, depth=2, heads=2)
    with torch.no_grad():
        made.embed.weight.mul_(20)  # so that it is sure of something
    return made.eval()


def reader(folder: Path, task: Any, **options: Any) -> Cached:
    made = Cached(folder, **options)
    made.prepare(Reads(), task)
    return made


def asked(teacher: Any, task: Any) -> Frozen:
    made = Frozen(teacher)
    made.prepare(Reads(), task)
    return made


def batches(task: Any, size: int = 5, seed: int = 7) -> list[Any]:
    return list(task.loader("train", batch_size=size, seed=seed, views=1).batches(3))


def compare(ours: Knowledge, theirs: Knowledge) -> None:
    assert isinstance(ours.answer, Hidden) and isinstance(theirs.answer, Hidden) and theirs.mask is not None and ours.mask is not None
    assert torch.equal(ours.mask, theirs.mask)
    assert torch.allclose(ours.answer.states[ours.mask], theirs.answer.states[ours.mask], atol=1e-5)
    assert torch.equal(ours.answer.weight, theirs.answer.weight)


WAYS: list[dict[str, Any]] = [{"packing": "stream"}, {"packing": "isolated"}, {"packing": "padded"}, {"packing": "padded", "padding": "left"}]


@pytest.mark.parametrize("how", WAYS, ids=["stream", "isolated", "padded", "left"])
@pytest.mark.parametrize("size", [1, 4, 9])
def test_any_shuffle_and_batch_size_reads_what_the_teacher_says(root: str, tmp_path: Path, how: dict[str, Any], size: int) -> None:
    task, teacher = language(root, **how), gpt()
    cached = reader(record(teacher, task, tmp_path / "store", keep=EXACT), task)
    frozen = asked(teacher, task)
    for batch in batches(task, size):
        assert {"document", "place"} <= batch.keys()
        compare(cached(batch), frozen(batch))
    assert cached.views == 1 and not list(cached.parameters()) and not cached.state_dict()


def test_another_packing_of_documents_apart_reads_the_same_store_and_a_stream_does_not(root: str, tmp_path: Path) -> None:
    teacher = gpt()
    stores = {name: record(teacher, language(root, packing=name), tmp_path / name, keep=EXACT) for name in ("isolated", "stream")}
    for how in WAYS[1:]:
        task = language(root, **how)
        for batch in batches(task):
            compare(reader(stores["isolated"], task)(batch), asked(teacher, task)(batch))
        assert record(teacher, task, stores["isolated"], keep=EXACT) == stores["isolated"]
        with pytest.raises(MismatchError, match="does not fit the task: it was recorded of packing stream, and packing documents apart is asked for"):
            reader(stores["stream"], task)
    with pytest.raises(MismatchError, match=r"was recorded of context 24, and context 12 is asked for; record it for this task"):
        reader(stores["stream"], language(root, context=12))
    with pytest.raises(MismatchError, match=r"is stale: it was recorded of context 24, and context 12 is asked for; delete it, or record"):
        record(teacher, language(root, context=12), stores["stream"], keep=EXACT)


def test_another_corpus_tokenizer_or_teacher_is_refused_by_name(root: str, tmp_path: Path) -> None:
    store = record(gpt(), language(root), tmp_path / "store")
    (tmp_path / "other.txt").write_text(TEXT + "more\n")
    with pytest.raises(MismatchError, match=r"it was recorded of corpus [0-9a-f]{12}, and corpus [0-9a-f]{12} is asked for"):
        reader(store, language(str(tmp_path / "other.txt")))
    with pytest.raises(MismatchError, match=r"it was recorded of tokenizer [0-9a-f]{12}, and tokenizer [0-9a-f]{12} is asked for"):
        reader(store, language(root, tokenizer={"kind": "bpe", "size": 270}))
    with pytest.raises(MismatchError, match="is stale: it was recorded of another teacher"):
        record(gpt(1), language(root), store)
    assert record(gpt(), language(root), store, seed=9) == store, "the seed shuffles, and changes no answer"


@pytest.mark.parametrize("change", ["a token", "a place", "the cut"])
def test_tokens_in_other_company_are_refused_though_nobody_says_so(root: str, tmp_path: Path, change: str) -> None:
    task, other = language(root, packing="stream"), language(root, packing="stream", context=23)
    loader = task.loader("train", batch_size=5, views=1, whole=True)
    rows = [{name: value for name, value in batch.items() if name != "view"} for batch in loader.batches(0)]
    cached = reader(record(gpt(), rows, tmp_path / "store", task=task), task)
    cached(rows[0])
    batch = dict(rows[0])
    if change == "a token":
        batch["input"] = batch["input"].clone()
        batch["input"][:, 0] += 1
    elif change == "a place":
        batch["place"] = batch["place"].roll(1, 0)
        batch["document"] = batch["document"].roll(1, 0)
        batch["label"] = torch.zeros_like(batch["label"])
    else:
        batch = batches(other, 8)[0]
    with pytest.raises(MismatchError, match=r"stands behind other tokens than when .* was recorded \(\d+ of \d+ compared differ\): another corpus, tokenizer"):
        cached(batch)


def test_the_likeliest_and_the_rest_of_each_token_under_400_bytes(root: str, tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text(TEXT * 12)
    task, teacher = language(str(tmp_path / "long.txt"), packing="isolated"), gpt()
    notes: list[str] = []
    keep = {"kind": "topk", "k": 64, "temperature": 1.0}
    store = record(teacher, task, tmp_path / "store", keep=keep, listener=lambda event: notes.append(event.text) if isinstance(event, Note) else None)
    header = read_json(store / "store.json")
    size = sum(path.stat().st_size for path in store.rglob("*") if path.is_file()) / header["records"]
    assert header["records"] == task.facts().preprocess["tokens"]["train"]
    assert 258 < size < 300
    assert f"{size:.4g} bytes a token; topk, k 64, temperature 1.0: it errs by" in notes[-1]
    for batch in batches(task)[:4]:
        said, whole = reader(store, task)(batch), asked(teacher, task)(batch)
        assert isinstance(said.answer, TopK)
        p = whole.main.logits.softmax(-1)
        counted = whole.mask
        assert counted is not None
        kept = p.gather(-1, said.answer.indices)
        assert torch.allclose(said.answer.log_probs.exp()[counted], kept[counted], atol=2e-3)
        assert torch.allclose(said.answer.log_tail.exp()[counted], 1 - kept.sum(-1)[counted], atol=2e-3)


def test_samples_are_read_as_frequencies_that_teach_by_the_forward_kl_alone(root: str, tmp_path: Path) -> None:
    task, teacher = language(root), gpt()
    store = record(teacher, task, tmp_path / "store", keep={"kind": "samples", "count": 20})
    batch = batches(task)[0]
    said = reader(store, task)(batch).answer
    assert isinstance(said, TopK) and said.temperature == 1.0
    counts = said.log_probs[said.log_tail.isinf()].exp() * 20
    assert torch.allclose(counts, counts.round(), atol=1e-4) and torch.allclose(counts.sum(-1), torch.full_like(counts[:, 0], 20.0))
    student = gpt(3)
    loss = Offline(student, Cached(store), [Term(DivergenceKD())], task, batch)(batch).loss
    loss.backward()
    assert all(one.grad is not None and one.grad.isfinite().all() for one in student.parameters())
    Offline(gpt(3), Cached(store), [Term(KD(temperature=1.0))], task, batch)(batch)
    with pytest.raises(MismatchError, match=r"only the forward KL's gradient is unbiased then, and jsd was asked for: take divergence: forward_kl"):
        Offline(gpt(3), Cached(store), [Term(DivergenceKD(divergence="jsd"))], task, batch)
    with pytest.raises(MismatchError, match=r"temperature is 2.*valid there alone: take temperature: 1"):
        Offline(gpt(3), Cached(store), [Term(KD(temperature=2.0))], task, batch)
    with pytest.raises(RecipeError, match=r"keep.count is 300, and the teacher knows 257 classes"):
        record(teacher, task, tmp_path / "many", keep={"kind": "samples", "count": 300})


def test_prompts_are_not_stored_and_a_label_where_none_was_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\n".join(f'{{"prompt": "what is {one}?", "completion": "it is {one}"}}' for one in range(8)))
    task = Language(data="jsonl", root=str(tmp_path / "a.jsonl"), tokenizer=BYTES, context=32, packing="isolated", validation=0.0, test=0.0)  # pyright: ignore[reportArgumentType]
    store = record(gpt(context=32), task, tmp_path / "store")
    assert read_json(store / "store.json")["records"] == task.facts().preprocess["tokens"]["train"] == 8 * 8
    (batch,) = batches(task, task.facts().examples)
    reader(store, task)(batch)
    batch["label"][0, 2] = 5
    with pytest.raises(MismatchError, match=r"place 2 of document \d was not recorded \(1 of \d+ tokens in this batch\).*holds the tokens that counted"):
        reader(store, task)(batch)
    batch["document"] = torch.where(batch["document"] >= 0, batch["document"] + 80, -1)
    with pytest.raises(MismatchError, match=r"document \d+ was not recorded .*holds 8 documents, 0 to 7; another corpus or split"):
        reader(store, task)(batch)


def losses(teacher: Any, task: Any, student: Callable[[], Any], views: int = 1) -> list[float]:
    torch.manual_seed(5)
    loader = task.loader("train", batch_size=6, seed=2, views=views)
    scheme = Offline(student(), teacher, [Term(DivergenceKD(divergence="jsd", temperature=1.5, hard=0.5))], task, next(loader.batches(0)))
    step = torch.optim.AdamW(scheme.parameters(), lr=3e-3)
    found = []
    for epoch in range(3):
        for batch in loader.batches(epoch):
            step.zero_grad()
            loss = scheme(batch).loss
            loss.backward()
            step.step()
            found.append(loss.item())
    return found


@pytest.mark.parametrize("packing", ["stream", "isolated"])
def test_a_student_of_exact_states_has_the_losses_of_one_taught_by_the_teacher_itself(root: str, tmp_path: Path, packing: Any) -> None:
    task, teacher = language(root, packing=packing), gpt()

    def student() -> GPT:
        return GPT((24,), 257, dim=12, depth=1, heads=2)

    exact = losses(Cached(record(teacher, task, tmp_path / "exact", keep=EXACT)), task, student)
    theirs = losses(teacher, task, student)
    rough = losses(Cached(record(teacher, task, tmp_path / "rough", keep={"kind": "hidden", "dtype": "int8"})), task, student)
    far, near = (max(abs(one - other) for one, other in zip(found, theirs, strict=True)) for found in (rough, exact))
    assert near < 3e-6 < far < 3e-3, "the test can tell"
    assert theirs[-1] < theirs[0]


def test_masked_tokens_of_several_views(root: str, tmp_path: Path) -> None:
    task = Masked(root=root, tokenizer=BYTES, context=24, validation=0.0, test=0.0, share=0.3)
    torch.manual_seed(0)
    classes = task.facts().classes
    teacher = Encoder((24,), classes, dim=16, depth=1, heads=2).eval()
    store = record(teacher, task, tmp_path / "store", views=2, keep=EXACT, seed=2)
    cached, frozen = reader(store, task), asked(teacher, task)
    loader = task.loader("train", batch_size=4, seed=2, views=2)
    for epoch in (0, 1, 2):
        for batch in loader.batches(epoch):
            compare(cached(batch), frozen(batch))
    with pytest.raises(MismatchError, match=r"stands behind other tokens|was not recorded"):
        cached(next(task.loader("train", batch_size=4, seed=3, views=2).batches(0)))
    exact = losses(Cached(store), task, lambda: Encoder((24,), classes, dim=8, depth=1, heads=2), views=2)
    assert exact == pytest.approx(losses(teacher, task, lambda: Encoder((24,), classes, dim=8, depth=1, heads=2), views=2), rel=1e-4)


def test_a_wish_is_measured_told_and_kept_to(root: str, tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text(TEXT * 20)
    task, notes = language(str(tmp_path / "long.txt")), list[str]()

    def hear(event: Event) -> None:
        notes.append(event.text if isinstance(event, Note) else "")

    for name, keep, kind in (
        ("bytes", {"kind": "auto", "bytes": 33.0}, "hidden"),
        ("nats", {"kind": "auto", "nats": 0.0}, "hidden"),
        ("few", {"kind": "auto", "bytes": 12.0}, "topk"),
    ):
        store = record(gpt(), task, tmp_path / name, keep=keep, listener=hear)
        header = read_json(store / "store.json")
        size = sum(path.stat().st_size for path in store.rglob("*") if path.is_file()) / header["records"]
        assert header["chosen"]["keep"]["kind"] == kind and header["measured"]["tokens"] == 2048
        assert size == pytest.approx(header["measured"]["bytes"], abs=1.0)
        assert name == "nats" or size <= keep["bytes"]
        assert "measured on 2,048 tokens: hidden float32: " in notes[-2] and "this is kept: " in notes[-2] and "measured on 2,048 tokens" in notes[-1]
        assert reader(store, task)(batches(task)[0]).answer.classes == 257
        assert record(gpt(), task, store, keep=keep) == store
    assert read_json(tmp_path / "nats" / "store.json")["chosen"]["keep"]["dtype"] == "float32"
    with pytest.raises(RecipeError, match=r"keep.bytes is 2, and nothing is kept in so few; the closest is topk 1: .* bytes a token"):
        record(gpt(), task, tmp_path / "none", keep={"kind": "auto", "bytes": 2.0})
    with pytest.raises(MismatchError, match="keep: auto measures a sample before it records, and batches may come only once"):
        record(gpt(), batches(task), tmp_path / "once", keep={"kind": "auto", "bytes": 99.0}, task=task)


def write(root: str, folder: Path, rank: int, world: int, pause: float = 0.0) -> "tuple[Any, Any]":
    """A process that records its part, and a count of the batches that it has added."""
    fork = multiprocessing.get_context("fork")
    count = fork.Value("i", 0)

    def work() -> None:
        _store_writer.SHARD_BYTES, recorded.TOKENS_AT_ONCE = 1, 48
        add = _store_writer.Writer.add

        def slowly(self: Any, *args: Any, **how: Any) -> None:
            add(self, *args, **how)
            count.value += 1
            time.sleep(pause)

        _store_writer.Writer.add = slowly
        record(gpt(), language(root, packing="isolated"), folder, keep=EXACT, rank=rank, world=world)

    process = fork.Process(target=work)
    process.start()
    return process, count


def test_two_processes_write_their_parts_at_once_and_a_killed_one_goes_on(root: str, tmp_path: Path) -> None:
    folder = tmp_path / "store"
    (first, _), (second, count) = write(root, folder, 0, 2), write(root, folder, 1, 2, pause=0.2)
    while count.value < 4:
        time.sleep(0.01)
    os.kill(second.pid, signal.SIGKILL)
    first.join()
    second.join()
    assert (first.exitcode, second.exitcode) == (0, -signal.SIGKILL) and not folder.exists()
    with pytest.raises(ArtifactError, match="its writing did not come to an end: record it again, which goes on from there"):
        Cached(folder)
    third, again = write(root, folder, 1, 2)
    third.join()
    rows = language(root, packing="isolated").facts().examples
    assert third.exitcode == 0
    assert again.value <= -(-(rows // 2) // 2) - 3, "what was written is taken over"
    assert {path.name for path in folder.iterdir()} >= {"part-0-of-2", "part-1-of-2", "store.json", "heads.safetensors"}
    assert {path.suffix for path in (folder / "part-0-of-2").iterdir()} == {".bin", ".json"}
    assert not folder.with_name("store.partial").exists()
    task = language(root, packing="isolated")
    for batch in batches(task, 7):
        compare(reader(folder, task)(batch), asked(gpt(), task)(batch))
    (single,) = {record(gpt(), task, tmp_path / "single", keep=EXACT)}
    assert read_json(single / "store.json")["records"] == read_json(folder / "store.json")["records"]


def test_both_parts_done_at_the_same_time_close_the_store_once(root: str, tmp_path: Path) -> None:
    folder = tmp_path / "store"
    for process, _ in [write(root, folder, rank, 3) for rank in range(3)]:
        process.join()
        assert process.exitcode == 0
    assert Cached(folder).views == 1 and not folder.with_name("store.partial").exists()


@pytest.mark.parametrize(
    "file", ["part-0-of-1/00-output-main-states.bin", "heads.safetensors", "starts.bin", "documents.bin", "store.json", "part-0-of-1/store.json"]
)
def test_a_flipped_byte_and_a_cut_file_are_found(root: str, tmp_path: Path, file: str) -> None:
    store = record(gpt(), language(root), tmp_path / "store", keep={"kind": "hidden"})
    Cached(store)
    data = bytearray((store / file).read_bytes())
    data[len(data) // 2] ^= 1
    time.sleep(0.01)
    (store / file).write_bytes(data)
    with pytest.raises(ArtifactError, match="damaged"):
        Cached(store)
    (store / file).write_bytes(data[:-1])
    with pytest.raises(ArtifactError, match=r"has \d+ bytes, not \d+|is not JSON|damaged"):
        Cached(store, verify=False)
    (store / file).unlink()
    with pytest.raises(ArtifactError, match=r"is missing|is no store"):
        Cached(store, verify=False)


def test_copies_and_what_is_sent_to_another_process_open_it_again(root: str, tmp_path: Path) -> None:
    task = language(root)
    teacher = reader(record(gpt(), task, tmp_path / "store"), task)
    batch = batches(task)[0]
    expected = teacher(batch).main.logits
    assert torch.equal(copy.deepcopy(teacher)(batch).main.logits, expected)
    assert len(pickle.dumps(teacher._store)) < 500
    child = os.fork()
    if child == 0:
        os._exit(0 if torch.equal(teacher(batch).main.logits, expected) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_what_cannot_be_recorded(root: str, tmp_path: Path) -> None:
    with pytest.raises(MismatchError, match=r"a row has 24 tokens, and GPT has positions for 8: build it for longer rows, or lower the task's context"):
        record(gpt(context=8), language(root), tmp_path / "a")
    nothing = {"input": torch.ones(2, 4, dtype=torch.long), "label": torch.full((2, 4), -100), "id": torch.arange(2)}
    with pytest.raises(DataError, match="there is nothing to record"):
        record(gpt(), [nothing], tmp_path / "b", task=language(root))
    with pytest.raises(DataError, match="place 0 of document 1 came twice in view 0"):
        record(gpt(), [{**nothing, "label": torch.ones(2, 4, dtype=torch.long), "id": torch.ones(2, dtype=torch.long)}], tmp_path / "c", task=language(root))
    with pytest.raises(MismatchError, match="has neither these nor 'id'"):
        record(gpt(), [{"input": nothing["input"], "label": nothing["input"]}], tmp_path / "d", task=language(root))
    with pytest.raises(RecipeError, match=r"keep: \{kind: hidden\} is of answers for each token of a text"):
        record(
            torch.nn.Linear(4, 3),
            [{"input": torch.randn(2, 4), "label": torch.zeros(2).long(), "id": torch.arange(2)}],
            tmp_path / "e",
            keep={"kind": "hidden"},
        )
    with pytest.raises(MismatchError, match="this is process 2 of 2"):
        record(gpt(), language(root), tmp_path / "f", rank=2, world=2)
    broken = gpt()
    with torch.no_grad():
        broken.embed.weight[ord("s")] = float("nan")
    with pytest.raises(DataError, match=r"states of example .* is not finite"):
        record(broken, language(root), tmp_path / "g", keep={"kind": "hidden"})
    (tmp_path / "empty.jsonl").write_text('{"text": " "}')
    with pytest.raises(DataError, match="text is empty"):
        record(gpt(), Language(data="jsonl", root=str(tmp_path / "empty.jsonl"), tokenizer=BYTES), tmp_path / "h")


def test_a_store_of_tokens_and_a_task_without_them_do_not_fit(root: str, tmp_path: Path) -> None:
    cached = reader(record(gpt(), language(root), tmp_path / "store"), language(root))
    with pytest.raises(MismatchError, match="holds what was said of each token, and the batch is no rows of tokens"):
        cached({"input": torch.zeros(2, 3), "label": torch.zeros(2, dtype=torch.long), "id": torch.arange(2)})
    for options, told in (({"keep": cached.keep, "views": 2}, "views: 1, and views: 2"), ({"features": ["norm"]}, r"features: \[\], and features: \['norm'\]")):
        with pytest.raises(LimbeckError, match=told):
            Cached(tmp_path / "store", **options)


def test_layers_of_tokens_teach_hints(root: str, tmp_path: Path) -> None:
    task, teacher = language(root), gpt()
    cached = Cached(record(teacher, task, tmp_path / "store", features=["norm"]))
    cached.prepare(Reads(features=frozenset({"norm"})), task)
    batch = batches(task)[0]
    said, whole = cached(batch).feature("norm"), teacher(batch["input"]).states
    counted = batch["label"] != -100
    assert torch.allclose(said[counted], whole[counted], atol=1e-5)


def tree(root: str, **students: Any) -> dict[str, Any]:
    task = {"kind": "language", "data": "text", "root": root, "tokenizer": BYTES, "context": 24, "documents": "paragraphs", "validation": 0.1, "test": 0.1}
    model = {"kind": "gpt", "dim": 16, "depth": 1, "heads": 2}
    plain = {
        "kind": "distill", "model": {**model, "dim": 8}, "epochs": 2, "batch_size": 4,
        "teacher": {"kind": "cached", "of": "teacher", "keep": {"kind": "hidden", "dtype": "float32"}},
        "objectives": [{"kind": "response.divergence", "divergence": "jsd", "temperature": 2.0}, {"kind": "supervised"}],
    }  # fmt: skip
    stages: dict[str, Any] = {"teacher": {"kind": "train", "model": model, "epochs": 1, "batch_size": 4}}
    stages |= {name: {**copy.deepcopy(plain), **change} for name, change in students.items()}
    return {"name": "toy", "task": task, "stages": stages, "measure": {"latency": False}}


def weights(out: Path, stage: str) -> dict[str, Tensor]:
    from limbeck.core.artifact import Artifact
    from limbeck.pipeline.modules import read_tensors

    return read_tensors(Artifact.open(out / "stages" / stage).path / "last.safetensors")


def test_a_recipe_of_store_and_teacher_agree_and_the_body_is_never_loaded_again(root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, heard = tmp_path / "run", list[str]()
    made = tree(root, student={}, frozen={"teacher": {"kind": "frozen", "of": "teacher"}})
    check(made)
    run_recipe(made, out=out, listener=lambda event: heard.append(event.text) if isinstance(event, Note) else None)
    (line,) = [one for one in heard if one.startswith("recorded ")]
    assert "hidden, dtype float32: it errs by 0 nats" in line
    one, other = weights(out, "student"), weights(out, "frozen")
    assert all(torch.allclose(one[name], value, atol=2e-5) for name, value in other.items())
    (store,) = (out / "knowledge").iterdir()

    def refuse(*_: Any) -> None:
        raise AssertionError("the teacher's body was loaded")

    for module in (stages, recorded):
        monkeypatch.setattr(module, "load", refuse)
    monkeypatch.setattr(stages, "load_module", refuse)
    run_recipe(tree(root, student={}, second={"batch_size": 7, "reseed": 3, "epochs": 1}), out=out, listener=silent)
    assert list((out / "knowledge").iterdir()) == [store], "another shuffle and batch size read the same store"


def test_a_recipe_of_the_likeliest_of_masked_tokens(root: str, tmp_path: Path) -> None:
    keep = {"kind": "topk", "k": 16, "temperature": 1.0}
    made = tree(
        root, student={"teacher": {"kind": "cached", "of": "teacher", "views": 2, "keep": keep}, "objectives": [{"kind": "response.divergence", "hard": 0.5}]}
    )
    made["task"] = {"kind": "masked", "data": "text", "root": root, "tokenizer": BYTES, "context": 24, "validation": 0.1, "test": 0.1}
    for stage in made["stages"].values():
        stage["model"]["kind"] = "encoder"
    check(made)
    assert run_recipe(made, out=tmp_path / "run", listener=silent).stages["student"]["metrics"]
    (store,) = (tmp_path / "run" / "knowledge").iterdir()
    assert read_json(store / "store.json")["chosen"]["keep"]["k"] == 16


def test_a_check_refuses_what_could_not_be_taught(root: str) -> None:
    def cached(**keep: Any) -> dict[str, Any]:
        return {"teacher": {"kind": "cached", "of": "teacher", "keep": keep}}

    for change, error, told in (
        (cached(kind="topk", k=4, temperature=1.0), MismatchError, "at temperature 2.*valid there|temperature is 2.*valid there"),
        ({**cached(kind="samples", count=8, temperature=2.0)}, MismatchError, "only the forward KL's gradient is unbiased"),
        (cached(kind="auto"), RecipeError, "one of bytes and nats"),
        (cached(kind="hidden", dtype="int4"), RecipeError, "keep.*dtype"),
        (cached(kind="hiden"), RecipeError, "did you mean 'hidden'"),
    ):
        with pytest.raises(error, match=told):
            check(tree(root, student=change))
    assert check(tree(root, student=cached(kind="auto", bytes=99.0)))
