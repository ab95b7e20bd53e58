"""A black box behind a real server: plain JSON and OpenAI's chat form, asked once, resumed after trouble."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.served import Server, gives

from limbeck.core.errors import DataError, MismatchError, RecipeError
from limbeck.core.knowledge import Reads
from limbeck.core.lookup import build
from limbeck.core.task import default_task
from limbeck.tasks.classify import Classify


def shares(row: Any) -> list[float]:
    return [0.8, 0.1, 0.1] if row[0] > 0 else [0.1, 0.2, 0.7]


@pytest.fixture
def server(server: Server) -> Server:
    """It answers rows of numbers with probabilities."""
    server.answer = lambda asked: {"probabilities": [shares(row) for row in asked["inputs"]]}
    return server


def rows(server: Server) -> int:
    """How many rows it was asked about."""
    return sum(len(one["inputs"]) for one in server.asked)


def teacher(server: Server, source: dict[str, Any] | None = None, **options: Any) -> Any:
    told = {"kind": "http", "url": server.url, "backoff": 0.0, **(source or {})}
    made = build("teachers", "blackbox", {"source": told, "classes": 3, **options})
    made.prepare(Reads(), default_task())
    return made


def batch(count: int, start: int = 0) -> dict[str, torch.Tensor]:
    values = torch.arange(start, start + count)
    return {"input": torch.where(values % 2 == 0, 1.0, -1.0)[:, None] * (values + 1.0)[:, None], "id": values}


@pytest.mark.parametrize("parallel", [1, 4])
def test_it_answers_so_many_rows_at_a_time_in_their_order(server: Server, parallel: int) -> None:
    said = teacher(server, {"rows": 3, "parallel": parallel})(batch(10)).main.logits
    assert sorted(len(one["inputs"]) for one in server.asked) == [1, 3, 3, 3]
    torch.testing.assert_close(said.softmax(1), torch.tensor([[0.8, 0.1, 0.1], [0.1, 0.2, 0.7]]).repeat(5, 1), atol=1e-5, rtol=0)


def test_its_labels_and_its_logits(server: Server) -> None:
    server.answer = lambda asked: {"labels": [0 if row[0] > 0 else 2 for row in asked["inputs"]], "logits": [[1.0, 2.0, -3.0]] * len(asked["inputs"])}
    assert teacher(server, answers="labels")(batch(4)).main.logits.argmax(1).tolist() == [0, 2, 0, 2]
    assert teacher(server, answers="logits")(batch(1)).main.logits.tolist() == [[1.0, 2.0, -3.0]]
    with pytest.raises(DataError, match="answers with labels, logits, and not with 'probabilities': say by `answers` what it gives"):
        teacher(server)(batch(1))


@pytest.mark.parametrize("parallel", [1, 3])
def test_an_error_half_way_keeps_what_was_labelled_and_the_next_run_asks_for_the_rest(server: Server, tmp_path: Path, parallel: int) -> None:
    whole = server.answer
    server.answer = lambda asked: whole(asked) if asked["inputs"][0][0] != 5.0 else gives(None, 500)
    how = {"rows": 2, "retries": 1, "parallel": parallel}
    with pytest.raises(DataError, match="gave no answer after 2 tries: status 500"):
        teacher(server, how, keep=str(tmp_path))(batch(10))
    done = {json.dumps(one) for one in server.asked if one["inputs"][0][0] != 5.0}
    server.answer = whole
    server.asked.clear()
    said = teacher(server, how, keep=str(tmp_path))(batch(10)).main.logits
    assert len(said) == 10 and rows(server) == 10 - 2 * len(done) and len(done) >= 2
    server.asked.clear()
    assert torch.equal(teacher(server, how, keep=str(tmp_path))(batch(10)).main.logits, said)
    assert not server.asked


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"probabilities": [[0.8, 0.1, 0.1]]}, "asked about 2 inputs and answers with 1 rows"),
        ({"probabilities": [[0.8, 0.1, 0.1], [0.8, 0.8, 0.1]]}, "example 9 does not sum to 1"),
        ({"probabilities": [[0.8, 0.1, 0.1], [0.8, math.nan, 0.1]]}, "example 9 holds NaN"),
        ({"probabilities": [[0.8, 0.2], [0.8, 0.2]]}, "knows 2 classes and the task has 3"),
        ({"probabilities": [[0.8, 0.1, 0.1], None]}, "no table of numbers"),
        ({"probabilities": None}, "asked about 2 inputs and answers with no rows"),
        ([1, 2], "answers with list, and not with 'probabilities'"),
        (gives(None, 403), "refuses with status 403"),
    ],
)
def test_a_wrong_answer_is_one_line_and_what_came_before_is_kept(server: Server, tmp_path: Path, said: Any, message: str) -> None:
    whole = server.answer
    asking = teacher(server, keep=str(tmp_path))
    asking(batch(8))
    server.answer = lambda asked: said
    with pytest.raises(DataError, match=message):
        asking(batch(2, start=8))
    server.answer = whole
    server.asked.clear()
    teacher(server, keep=str(tmp_path))(batch(10))
    assert rows(server) == 2


def test_the_answers_of_one_address_are_not_another_s(server: Server, tmp_path: Path) -> None:
    teacher(server, keep=str(tmp_path))(batch(2))
    with pytest.raises(MismatchError, match="source: url: "):
        teacher(server, {"url": server.url + "/v2"}, keep=str(tmp_path))


def test_the_key_comes_from_the_environment(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="environment variable NO_SUCH_KEY, which is not set: export NO_SUCH_KEY="):
        teacher(server, {"key": "NO_SUCH_KEY"})
    monkeypatch.setenv("SUCH_A_KEY", "s3cret")
    teacher(server, {"key": "SUCH_A_KEY"}, keep=str(tmp_path))(batch(1))
    assert [one["Authorization"] for one in server.headers] == ["Bearer s3cret"]
    assert "s3cret" not in (tmp_path / "source.json").read_text()


def chat(**tokens: float) -> dict[str, Any]:
    top = [{"token": token.replace("_", " "), "logprob": math.log(p)} for token, p in tokens.items()]
    return {"choices": [{"logprobs": {"content": [{"token": "x", "logprob": 0.0, "top_logprobs": top}]}}]}


def model(server: Server, **more: Any) -> dict[str, Any]:
    return {"kind": "openai", "model": "m", "prompt": "Class of {input} ({id})?", "tokens": ["cat", "dog", "owl"], "url": server.url, **more}


def test_log_probabilities_of_tokens_become_probabilities_of_classes(server: Server) -> None:
    server.answer = lambda asked: chat(Cat=0.3, _cat=0.2, dog=0.1, the=0.3)
    said = teacher(server, model(server, system="Be brief.", request={"seed": 3}), floor=1e-3)(batch(1)).main.logits
    torch.testing.assert_close(said.softmax(1), torch.tensor([[0.5 / 0.6, 0.1 / 0.6, 0.0]]) * (1 - 3e-3) + 1e-3, atol=1e-5, rtol=0)
    assert server.asked[0] == {
        "model": "m", "max_tokens": 1, "temperature": 0, "logprobs": True, "top_logprobs": 20, "seed": 3,
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Class of [1.0] (0)?"}],
    }  # fmt: skip


def test_each_example_is_asked_about_by_itself_and_once(server: Server, tmp_path: Path) -> None:
    server.answer = lambda asked: chat(cat=0.9, dog=0.05, owl=0.05) if "[-" in asked["messages"][0]["content"] else chat(cat=0.1, dog=0.1, owl=0.8)
    for _ in range(2):
        said = teacher(server, model(server, parallel=3), keep=str(tmp_path))(batch(6)).main.logits
        assert said.argmax(1).tolist() == [2, 0] * 3
    assert len(server.asked) == 6


def test_the_classes_names_are_the_tokens_where_none_are_given(server: Server) -> None:
    task = Classify({"train": [(torch.ones(2, 1), torch.tensor([0, 1]))]}, class_names=["no", "yes"])
    server.answer = lambda asked: chat(Yes=0.6, No=0.2)
    made = build("teachers", "blackbox", {"source": {key: value for key, value in model(server).items() if key != "tokens"}})
    made.prepare(Reads(), task)
    torch.testing.assert_close(made(batch(1)).main.logits.softmax(1), torch.tensor([[0.25, 0.75]]), atol=1e-5, rtol=0)


def test_a_prompt_may_be_a_function(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_prompt.py").write_text("def ask(value, example):\n    return f'{example}:{value.sum():g}'\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    server.answer = lambda asked: chat(cat=1.0)
    teacher(server, model(server, prompt="python:my_prompt:ask"))(batch(1, start=4))
    assert server.asked[0]["messages"][0]["content"] == "4:5"


def test_what_a_language_model_may_fail_at(server: Server) -> None:
    server.answer = lambda asked: {"choices": [{"message": {"content": "cat"}}]}
    with pytest.raises(DataError, match=r"gives no choices.*top_logprobs: ask a model that returns log-probabilities"):
        teacher(server, model(server))(batch(1))
    server.answer = lambda asked: chat(The=0.9, A=0.1)
    with pytest.raises(DataError, match="none of the classes' tokens 'cat', 'dog', 'owl' is among the likely ones 'The', 'A'"):
        teacher(server, model(server))(batch(1))
    with pytest.raises(RecipeError, match="each must be a text of its own"):
        teacher(server, model(server, tokens=["a", " A", "b"]))
    with pytest.raises(RecipeError, match="names neither"):
        teacher(server, model(server, prompt="what?"))
    with pytest.raises(RecipeError, match="leave answers out"):
        teacher(server, model(server), answers="log_probabilities")
