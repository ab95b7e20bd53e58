"""A server that scores the student's text, and all that may befall it."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.served import Server as Local
from tests.served import gives
from torch import Tensor

from limbeck.core.errors import DataError, MismatchError, RecipeError
from limbeck.core.knowledge import Reads, TopK
from limbeck.core.lookup import build
from limbeck.core.task import Batch, Task
from limbeck.teachers._completions import distribution
from limbeck.teachers.server import Server

V = 257


def log_p(prefix: list[int]) -> Tensor:
    """What the model behind the server says after some tokens."""
    draw = torch.Generator().manual_seed(sum((one + 1) * 31 ** (at % 6) for at, one in enumerate(prefix)) % (1 << 31))
    return (3 * torch.randn(V, generator=draw, dtype=torch.float64)).log_softmax(0)


def prompt_logprobs(asked: Any) -> Any:
    """As vLLM answers: the k likeliest and the token itself, by id."""
    tokens, found = asked["prompt"], [None]
    for place in range(1, len(tokens)):
        said = log_p(tokens[:place])
        best = dict.fromkeys([*said.topk(asked["prompt_logprobs"]).indices.tolist(), tokens[place]])
        found.append({str(one): {"logprob": float(said[one]), "rank": 1 + int((said > said[one]).sum()), "decoded_token": "?"} for one in best})
    return {"choices": [{"text": "", "logprobs": None, "prompt_logprobs": found}]}


def text_of(one: int) -> str:
    return "<eos>" if one == 256 else chr(one) if one < 128 else f"bytes:\\x{one:02x}"


def echoed(asked: Any) -> Any:
    """As the legacy form answers: by the tokens' text."""
    tokens = asked["prompt"]
    found = [log_p(tokens[:place]) for place in range(1, len(tokens))]
    top = [None, *({text_of(one): float(said[one]) for one in said.topk(asked["logprobs"]).indices.tolist()} for said in found)]
    mine = [None, *(float(said[one]) for said, one in zip(found, tokens[1:], strict=True))]
    return {"choices": [{"logprobs": {"tokens": [text_of(one) for one in tokens], "token_logprobs": mine, "top_logprobs": top}}]}


@pytest.fixture(scope="module")
def sums(tmp_path_factory: pytest.TempPathFactory) -> Task:
    path = tmp_path_factory.mktemp("sums") / "train.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": f"{at % 7}+{at % 5}=", "completion": f"{at % 7 + at % 5}é"}) for at in range(30)))
    told = {"tokenizer": {"kind": "bytes"}, "context": 12, "validation": 0, "test": 0}
    return build("tasks", "language", {"data": "jsonl", "root": str(path), "packing": "padded", **told})


def batch_of(task: Task, size: int = 5, number: int = 0) -> Batch:
    return next(iter(task.loader("train", batch_size=size, seed=0).batches(number)))


def made(server: Local, task: Task, keep: Any = None, version: str = "", **source: Any) -> Server:
    told = {"url": server.url, "model": "large", "top": 6, "backoff": 0.0, **source}
    teacher = build("teachers", "server", {"source": told, "version": version, **({} if keep is None else {"keep": keep})})
    teacher.prepare(Reads(), task)
    return teacher


def check(said: TopK, batch: Batch) -> None:
    for row in range(len(batch["input"])):
        for at in range(batch["input"].shape[1]):
            if batch["label"][row, at] >= 0:
                first = int((batch["segment"][row] == batch["segment"][row, at]).int().argmax()) if "segment" in batch else 0
                truth = log_p(batch["input"][row, first : at + 1].tolist())
                assert said.indices[row, at].tolist() == truth.topk(said.indices.shape[-1]).indices.tolist()
                torch.testing.assert_close(said.log_probs[row, at].double(), truth.topk(said.indices.shape[-1]).values, rtol=1e-5, atol=1e-6)
    whole = said.log_probs.double().exp().sum(-1) + said.log_tail.double().exp()
    torch.testing.assert_close(whole, torch.ones_like(whole), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("api", ["prompt_logprobs", "echo"])
def test_it_says_what_the_model_behind_it_says(server: Local, sums: Task, api: str) -> None:
    server.answer = prompt_logprobs if api == "prompt_logprobs" else echoed
    batch = batch_of(sums)
    said = made(server, sums, api=api)(batch)
    assert isinstance(said.answer, TopK) and said.answer.classes == V and said.mask is not None and torch.equal(said.mask, batch["label"] >= 0)
    check(said.answer, batch)
    assert len(server.asked) == 5
    for asked, x, label in zip(server.asked, batch["input"].tolist(), batch["label"].tolist(), strict=True):
        last = max(at for at, one in enumerate(label) if one >= 0)
        assert asked["prompt"] == [*x[: last + 1], label[last]] and asked["model"] == "large"


def test_documents_that_share_a_row_are_asked_about_apart(server: Local, sums: Task, tmp_path: Path) -> None:
    server.answer = prompt_logprobs
    path = tmp_path / "lines.txt"
    path.write_text("abc\nde\nfghij\nk\n" * 5)
    options = {"root": str(path), "documents": "lines", "tokenizer": {"kind": "bytes"}, "context": 12, "packing": "isolated", "validation": 0, "test": 0}
    task = build("tasks", "language", options)
    batch = batch_of(task, 3)
    said = made(server, task, top=4)(batch).answer
    assert isinstance(said, TopK) and max(len(asked["prompt"]) for asked in server.asked) <= 7 and len(server.asked) > 3
    check(said, batch)


def test_a_student_learns_from_it_on_what_it_writes(server: Local, sums: Task) -> None:
    server.answer = prompt_logprobs
    torch.manual_seed(0)
    student = build("models", "gpt", {"dim": 8, "depth": 1, "heads": 2}, in_shape=(12,), classes=V)
    objectives = [build("objectives", "response.divergence", {"divergence": "reverse_kl"})]
    batch = batch_of(sums, 3)
    scheme = build("schemes", "on_policy", {"share": 1.0}, student, made(server, sums, "memory"), objectives, sums, batch, sums.facts())
    loss = scheme(batch).loss
    loss.backward()
    assert loss.isfinite() and all(value.grad.isfinite().all() for value in student.parameters() if value.grad is not None)


def test_nothing_is_paid_twice(server: Local, sums: Task, tmp_path: Path) -> None:
    server.answer = prompt_logprobs
    batch = batch_of(sums)
    teacher = made(server, sums, str(tmp_path / "kept"))
    first = teacher(batch).answer
    again = teacher({name: value.flip(0) for name, value in batch.items()}).answer
    other = made(server, sums, str(tmp_path / "kept"))(batch).answer
    assert isinstance(first, TopK) and isinstance(again, TopK) and isinstance(other, TopK) and len(server.asked) == 5
    assert torch.equal(again.log_probs.flip(0), first.log_probs) and torch.equal(other.indices, first.indices) and torch.equal(other.log_tail, first.log_tail)
    with pytest.raises(MismatchError, match="keeps the answers of another black box"):
        made(server, sums, str(tmp_path / "kept"), version="2")
    made(server, sums)(batch)
    made(server, sums)(batch)
    assert len(server.asked) == 15, "without a place to keep them answers are asked again"


def test_what_was_fetched_is_kept_where_the_server_drops_half_way(server: Local, sums: Task, tmp_path: Path) -> None:
    batch, calls = batch_of(sums), []

    def failing(asked: Any) -> Any:
        calls.append(asked)
        return prompt_logprobs(asked) if len(calls) <= 3 else gives({"error": "gone"}, 503)

    server.answer = failing
    with pytest.raises(DataError, match=r"gave no answer after 2 tries: status 503.*run again when it is back"):
        made(server, sums, str(tmp_path / "kept"), retries=1)(batch)
    assert len(calls) == 5
    server.answer = prompt_logprobs
    server.asked.clear()
    said = made(server, sums, str(tmp_path / "kept"))(batch).answer
    assert isinstance(said, TopK) and len(server.asked) == 2, "the three that were answered are not asked again"
    check(said, batch)


def test_fewer_log_probabilities_than_were_asked_for_are_refused_and_the_rest_is_kept(server: Local, sums: Task, tmp_path: Path) -> None:
    batch, calls = batch_of(sums), []

    def fewer(asked: Any) -> Any:
        calls.append(asked)
        return prompt_logprobs({**asked, "prompt_logprobs": 5} if len(calls) == 3 else asked)

    server.answer = fewer
    with pytest.raises(DataError, match=r"was asked for 6 log-probabilities and gives 5: set source.top: 5; what came before is kept"):
        made(server, sums, str(tmp_path / "kept"))(batch)
    server.asked.clear()
    made(server, sums, str(tmp_path / "kept"))(batch)
    assert len(server.asked) == 3


def damaged(change: Any) -> Any:
    def answer(asked: Any) -> Any:
        told = prompt_logprobs(asked)
        change(told["choices"][0]["prompt_logprobs"])
        return told

    return answer


@pytest.mark.parametrize(
    ("answer", "error", "match"),
    [
        (lambda asked: {"choices": []}, DataError, r"gives no choices\[0\].prompt_logprobs"),
        (lambda asked: {"choices": [{"text": "a chat"}]}, DataError, "say by source.api how it does"),
        (damaged(lambda found: found.__delitem__(slice(3, None))), DataError, r"answers about 3 of \d+ tokens: what came before is kept"),
        (damaged(lambda found: found[5].update({"300": {"logprob": -0.1}})), MismatchError, r"tells of token 300, and the vocabulary has 257.*sequence\.uld"),
        (damaged(lambda found: [found[5].update({one: {"logprob": -0.1}}) for one in [*found[5]]]), DataError, "must be natural logarithms"),
        (damaged(lambda found: found[5].update({one: {"logprob": float("nan")} for one in [*found[5]]})), DataError, "natural logarithms"),
    ],
)
def test_answers_that_cannot_be_meant(server: Local, sums: Task, answer: Any, error: type[Exception], match: str) -> None:
    server.answer = answer
    with pytest.raises(error, match=match):
        made(server, sums)(batch_of(sums))


def test_a_server_of_another_tokenizer_is_refused(server: Local, sums: Task) -> None:
    server.answer = lambda asked: prompt_logprobs({**asked, "prompt": [one % 250 + 1 for one in asked["prompt"]], "prompt_logprobs": 6})
    with pytest.raises(MismatchError, match=r"does not read token \d+ where it was sent: it has another tokenizer; match it by objectives\.sequence\.uld"):
        made(server, sums)(batch_of(sums))
    server.answer = lambda asked: echoed({**asked, "prompt": [one % 250 + 1 for one in asked["prompt"]]})
    with pytest.raises(MismatchError, match="another tokenizer"):
        made(server, sums, api="echo")(batch_of(sums))


def test_several_at_once_within_a_limit_and_with_a_key(server: Local, sums: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    server.answer = prompt_logprobs
    monkeypatch.setenv("A_KEY", "secret")
    said = made(server, sums, key="A_KEY", parallel=3, per_second=1000.0)(batch_of(sums)).answer
    assert isinstance(said, TopK) and len(server.asked) == 5 and all(one["Authorization"] == "Bearer secret" for one in server.headers)
    check(said, batch_of(sums))
    monkeypatch.delenv("A_KEY")
    with pytest.raises(RecipeError, match="A_KEY, which is not set"):
        made(server, sums, key="A_KEY")


def test_it_shows_nothing_else(server: Local, sums: Task) -> None:
    teacher = build("teachers", "server", {"source": {"url": server.url, "model": "large"}})
    with pytest.raises(MismatchError, match="shows nothing else"):
        teacher.prepare(Reads(features=frozenset({"norm"})), sums)
    with pytest.raises(MismatchError, match=r"input \[2, 3\].*take a task of text"):
        made(server, sums)({"input": torch.zeros(2, 3), "label": torch.zeros(2, dtype=torch.int64)})
    for source in (
        {"url": "ftp://x", "model": "m"},
        {"url": server.url},
        {"url": server.url, "model": "m", "top": 0},
        {"url": server.url, "model": "m", "ap": 1},
    ):
        with pytest.raises(RecipeError):
            build("teachers", "server", {"source": source}).prepare(Reads(), sums)


def test_a_distribution_sums_to_one_whatever_was_rounded() -> None:
    whole = distribution({at: math.log(p) for at, p in enumerate((0.5, 0.3, 0.2001))}, 3, 3, "it")
    assert math.isclose(sum(math.exp(one) for one in whole[:3]), 1, rel_tol=1e-6) and whole[3:].tolist() == [0, 1, 2]
    part = distribution({7: math.log(0.6), 3: math.log(0.4004), -1: -9.0, 5: -30.0}, 2, 9, "it")
    assert part[2:].tolist() == [7, 3] and sum(math.exp(one) for one in part[:2]) < 1 + 1e-7
    with pytest.raises(DataError, match=r"come to 1\.2"):
        distribution({0: math.log(0.8), 1: math.log(0.4)}, 2, 9, "it")
