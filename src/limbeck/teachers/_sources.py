"""What may stand behind a black box, as a recipe writes it, and how each is asked.

Shapes: N inputs asked about at once, F values of one input, M training examples, C classes.
"""

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from limbeck.bridges import estimators, onnx_runtime
from limbeck.bridges.http import Line
from limbeck.core.errors import ArtifactError, DataError, MismatchError, RecipeError
from limbeck.core.files import sha256
from limbeck.core.lookup import build, find, source_digest
from limbeck.core.task import Task

__all__ = ["Called", "Fitted", "Folder", "Http", "Onnx", "OpenAI", "Served", "Source", "Voice"]

Ids = Sequence[int] | None
_NUMBERS = 512
"""Training examples that are read at once to fit an estimator."""


@dataclass(frozen=True)
class Voice:
    """How a black box is asked: `say(inputs [N, ...], ids)` gives its answers, of `rows` inputs at a time, `parallel` times at once."""

    say: Callable[[np.ndarray, Ids], Any]
    rows: int | None = None
    parallel: int = 1


class _Source(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _hashed(kind: str) -> str:
    """The digest of the file behind a `python:` name, or nothing where it cannot be found: opening the source says so."""
    try:
        return source_digest(kind)
    except RecipeError:
        return ""


class Folder(_Source):
    """A folder that keeps answers over runs."""

    path: Path = Field(exclude=True)

    @model_validator(mode="before")
    @classmethod
    def _short(cls, told: Any) -> Any:
        return {"path": told} if isinstance(told, (str, Path)) else told


class Called(_Source):
    """A Python function: `python:package.module:name`, called with a NumPy array."""

    kind: Literal["python"] = "python"
    call: str = Field(pattern=r"^python:", description="the function: inputs [N, ...] to answers")
    flat: bool = Field(default=False, description="give the inputs as rows [N, F]")

    @model_serializer(mode="wrap")
    def _with_source(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {**handler(self), "digest": _hashed(self.call)}

    def open(self, task: Task, field: str, answers: str) -> Voice:
        call = find("teachers", self.call)
        return Voice(lambda inputs, ids: call(inputs.reshape(len(inputs), -1) if self.flat else inputs))


class Fitted(_Source):
    """An estimator of scikit-learn's manner, fitted to a training split before step one; inputs are rows `[N, F]`."""

    kind: Literal["fitted"] = "fitted"
    estimator: str = Field(pattern=r"^python:", description="its class, such as python:sklearn.ensemble:RandomForestClassifier")
    options: dict[str, Any] = Field(default={}, description="what its class is made with")
    seed: int = Field(default=0, ge=0, description="its random_state, where it takes one")
    task: dict[str, Any] | None = Field(default=None, exclude=True, description="the task whose training split it is fitted to; the stage's own where left out")

    @model_serializer(mode="wrap")
    def _with_source(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        data = {} if self.task is None else {"data": self.fitted_to(None).fingerprint()}
        return {**handler(self), "digest": _hashed(self.estimator)} | data

    def fitted_to(self, own: Task | None) -> Task:
        """The task that it is fitted to, `own` unless it names another."""
        if self.task is None:
            assert own is not None
            return own
        return build("tasks", str(self.task.get("kind")), {name: value for name, value in self.task.items() if name != "kind"})

    def open(self, task: Task, field: str, answers: str) -> Voice:
        inputs, labels = list[torch.Tensor](), list[torch.Tensor]()
        asked, to = task.facts(), self.fitted_to(task)
        if to.facts().in_shape != asked.in_shape or to.facts().class_names != asked.class_names:
            raise MismatchError(
                f"the estimator is fitted to inputs of {list(to.facts().in_shape)} in {to.facts().classes} classes, and asked about {list(asked.in_shape)} in "
                f"{asked.classes}: give source.task the same inputs and classes"
            )
        for raw in to.loader("train", batch_size=_NUMBERS, whole=True).batches(0):
            batch = to.batch(raw)
            if field not in batch or "label" not in batch:
                raise MismatchError(f"an estimator is fitted to {field!r} and 'label' of the training split, whose batches have {', '.join(batch)}")
            inputs.append(batch[field].flatten(1).float().cpu())
            labels.append(batch["label"].cpu())
        y = torch.cat(labels)
        if y.ndim != 1 or y.is_floating_point():
            raise MismatchError("an estimator is fitted to one class for each example, and the task's labels are something else")
        ask = estimators.fitted(
            self.estimator, self.options, torch.cat(inputs).numpy(), y.numpy(), classes=asked.classes, seed=self.seed, labels_only=answers == "labels"
        )
        return Voice(lambda rows, ids: ask(rows.reshape(len(rows), -1)))


class Onnx(_Source):
    """An ONNX file, computed by onnxruntime on the processor."""

    kind: Literal["onnx"] = "onnx"
    path: Path = Field(exclude=True, description="the file")
    output: str | None = Field(default=None, description="the output that answers; the first where it is left out")
    flat: bool = Field(default=False, description="give the inputs as rows [N, F]")

    @model_serializer(mode="wrap")
    def _with_source(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {**handler(self), "digest": sha256(self.path) if self.path.is_file() else ""}

    def open(self, task: Task, field: str, answers: str) -> Voice:
        if not self.path.is_file():
            raise ArtifactError(f"there is no ONNX file {self.path}: look at source.path")
        session = onnx_runtime.session(self.path)

        def say(inputs: np.ndarray, ids: Ids) -> np.ndarray:
            asked = torch.from_numpy(inputs.reshape(len(inputs), -1) if self.flat else inputs)
            return onnx_runtime.run(session, asked, output=self.output).numpy()

        return Voice(say)


class Served(_Source):
    """An address on the network."""

    url: str = Field(description="where requests are posted")
    key: str | None = Field(default=None, exclude=True, description="the environment variable that holds the bearer token")
    timeout: float = Field(default=60.0, gt=0, exclude=True, description="seconds without a byte after which a try is given up")
    retries: int = Field(default=5, ge=0, exclude=True, description="further tries where the line or the server fails")
    backoff: float = Field(default=1.0, ge=0, exclude=True, description="seconds before the second try; twice that before each further one, up to a minute")
    per_second: float | None = Field(default=None, gt=0, exclude=True, description="requests that may begin in a second; any number where it is left out")
    parallel: int = Field(default=1, ge=1, le=64, exclude=True, description="requests under way at once")

    def line(self) -> Line:
        headers: dict[str, str] = {}
        if self.key is not None:
            if not os.environ.get(self.key):
                raise RecipeError(f"source.key names the environment variable {self.key}, which is not set: export {self.key}=...")
            headers["Authorization"] = f"Bearer {os.environ[self.key]}"
        return Line(self.url, headers=headers, timeout=self.timeout, retries=self.retries, backoff=self.backoff, per_second=self.per_second)


class Http(Served):
    """A server of plain JSON: `{"inputs": [N, ...]}` there and `{"probabilities": [N, C]}` back, under the name that `answers` says."""

    kind: Literal["http"] = "http"
    rows: int = Field(default=64, ge=1, exclude=True, description="inputs in one request")
    flat: bool = Field(default=False, description="give the inputs as rows [N, F]")

    def open(self, task: Task, field: str, answers: str) -> Voice:
        line = self.line()

        def say(inputs: np.ndarray, ids: Ids) -> Any:
            told = line.post({"inputs": (inputs.reshape(len(inputs), -1) if self.flat else inputs).tolist()})
            if not isinstance(told, dict) or answers not in told:
                has = ", ".join(map(str, told)) if isinstance(told, dict) else type(told).__name__
                raise DataError(f"{self.url} answers with {has or 'nothing'}, and not with {answers!r}: say by `answers` what it gives")
            return told[answers]

        return Voice(say, self.rows, self.parallel)


class OpenAI(Served):
    """A language model behind an OpenAI-style chat endpoint, one request for each example: the probabilities of the first token of its answer.

    A class has the sum of the probabilities of the returned tokens that read as its own token, spaces and case aside; classes are brought to a sum of one.
    """

    kind: Literal["openai"] = "openai"
    model: str = Field(description="the model's name at the server")
    prompt: str = Field(description="what is asked: text with {input} and {id} in it, or python:package.module:function of (input [...], id)")
    tokens: list[str] | None = Field(default=None, description="one token for each class; the names of the task's classes where it is left out")
    top: int = Field(default=20, ge=1, description="how many likely tokens are asked for")
    system: str | None = Field(default=None, description="a message before the prompt")
    request: dict[str, Any] = Field(default={}, description="further fields of the request, over those that are sent")

    @model_serializer(mode="wrap")
    def _with_source(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {**handler(self), "digest": _hashed(self.prompt)}

    def open(self, task: Task, field: str, answers: str) -> Voice:
        if answers != "probabilities":
            raise RecipeError(f"answers is {answers}, and log-probabilities of tokens are made probabilities of classes already: leave answers out")
        tokens = [token.strip().casefold() for token in self.tokens or task.facts().class_names]
        if len(set(tokens)) < len(tokens) or "" in tokens:
            raise RecipeError(
                f"the classes' tokens are {', '.join(map(repr, tokens))}, spaces and case aside: each must be a text of its own; give source.tokens"
            )
        write, line = _writer(self.prompt), self.line()
        before = [{"role": "system", "content": self.system}] if self.system else []
        fixed = {"model": self.model, "max_tokens": 1, "temperature": 0, "logprobs": True, "top_logprobs": self.top, **self.request}

        def say(inputs: np.ndarray, ids: Ids) -> list[list[float]]:
            example = None if ids is None else ids[0]
            told = line.post({**fixed, "messages": [*before, {"role": "user", "content": write(inputs[0], example)}]})
            return [_shares(_top(told, self.url), tokens)]

        return Voice(say, 1, self.parallel)


Source = Annotated[Called | Fitted | Onnx | Http | OpenAI, Field(discriminator="kind")]


def _writer(prompt: str) -> Callable[[np.ndarray, int | None], str]:
    if prompt.startswith("python:"):
        return find("teachers", prompt)
    if "{input}" not in prompt and "{id}" not in prompt:
        raise RecipeError("source.prompt names neither {input} nor {id}: every example would be asked the same")
    return lambda value, example: prompt.replace("{id}", str(example)).replace("{input}", json.dumps(np.round(value, 4).tolist()))


def _top(told: Any, url: str) -> list[Mapping[str, Any]]:
    """The likely tokens of an answer's first place."""
    try:
        found = told["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        if found and all(isinstance(one["token"], str) and isinstance(one["logprob"], (int, float)) for one in found):
            return found
    except (KeyError, IndexError, TypeError):
        pass
    raise DataError(f"{url} gives no choices[0].logprobs.content[0].top_logprobs: ask a model that returns log-probabilities of tokens")


def _shares(top: Sequence[Mapping[str, Any]], tokens: Sequence[str]) -> list[float]:
    """The probability of each class's token among the likely ones, brought to a sum of one.

    >>> _shares([{"token": " Yes", "logprob": -1.0}, {"token": "yes", "logprob": -1.0}, {"token": "No", "logprob": -1.0}], ["yes", "no"])
    [0.666666666667, 0.333333333333]
    """
    found = dict.fromkeys(tokens, 0.0)
    for one in top:
        token = one["token"].strip().casefold()
        if token in found:
            found[token] += math.exp(min(one["logprob"], 0.0))
    whole = sum(found.values())
    if not whole > 0:
        raise DataError(
            f"none of the classes' tokens {', '.join(map(repr, tokens))} is among the likely ones {', '.join(repr(one['token']) for one in top[:8])}"
        )
    return [round(value / whole, 12) for value in found.values()]
