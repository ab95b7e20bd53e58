"""The cross-entropy of tokens: against a loop in float64, whole or in chunks, from logits or from states and a head."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from limbeck.core.errors import MismatchError
from limbeck.core.knowledge import Dense, Hidden, Knowledge
from limbeck.tasks import _text_answers
from limbeck.tasks._text_answers import asked, costs, label_of, measured

N, T, D, V = 2, 5, 4, 7


@pytest.fixture
def hidden() -> Hidden:
    torch.manual_seed(0)
    states, weight, bias = (torch.randn(*shape, dtype=torch.float64).requires_grad_() for shape in ((N, T, D), (V, D), (V,)))
    return Hidden(states, weight, bias, scale=1.5, softcap=3.0)


@pytest.fixture
def labels() -> Tensor:
    made = torch.randint(0, V, (N, T), generator=torch.Generator().manual_seed(1))
    made[0, 1] = made[1, 3:] = -100
    return made


def naive(logits: Tensor, labels: Tensor) -> list[list[float]]:
    found = [[0.0] * T for _ in range(N)]
    for n in range(N):
        for t in range(T):
            if (label := int(labels[n, t])) != -100:
                z = logits[n, t].tolist()
                found[n][t] = math.log(sum(math.exp(one) for one in z)) - z[label]
    return found


@pytest.mark.parametrize("at_once", [1 << 24, 3 * V, 1])
def test_it_is_its_definition_however_many_at_once(hidden: Hidden, labels: Tensor, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_text_answers, "_LOGITS", at_once)
    logits = hidden.logits.detach()
    expected = torch.tensor(naive(logits, labels), dtype=torch.float64)
    for said in (hidden, Dense(logits)):
        knowledge = Knowledge({"main": said})
        each = costs(knowledge, labels)
        assert torch.allclose(each, expected, rtol=1e-12)
        cost, right = measured(knowledge, labels)
        assert torch.equal(cost, each.detach()[labels != -100])
        assert torch.equal(right, (logits.argmax(-1) == labels)[labels != -100].float())
        assert not cost.requires_grad


def test_gradients_are_the_same_in_chunks(hidden: Hidden, labels: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    leaves = [hidden.states, hidden.weight, hidden.bias]
    weights = torch.rand(N, T, dtype=torch.float64)
    whole = torch.autograd.grad((costs(Knowledge({"main": hidden}), labels) * weights).sum(), leaves)
    monkeypatch.setattr(_text_answers, "_LOGITS", 2 * V)
    chunked = torch.autograd.grad((costs(Knowledge({"main": hidden}), labels) * weights).sum(), leaves)
    dense = torch.autograd.grad((costs(Knowledge({"main": Dense(hidden.logits)}), labels) * weights).sum(), leaves)
    for one, other, third in zip(whole, chunked, dense, strict=True):
        assert torch.allclose(one, other, rtol=1e-12)
        assert torch.allclose(one, third, rtol=1e-12)
    assert not whole[0][labels == -100].any()


@pytest.mark.parametrize("form", ["hidden", "dense"])
def test_where_nothing_counts_the_loss_is_zero_with_a_graph(hidden: Hidden, form: str) -> None:
    nothing = torch.full((N, T), -100)
    knowledge = Knowledge({"main": hidden if form == "hidden" else Dense(hidden.logits)})
    each = costs(knowledge, nothing)
    assert each.shape == (N, T)
    gradients = torch.autograd.grad(each.sum(), [hidden.states, hidden.weight])
    assert not any(gradient.any() for gradient in gradients)
    assert measured(knowledge, nothing)[0].shape == (0,)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_are_priced_in_float32(dtype: torch.dtype, labels: Tensor) -> None:
    each = costs(Knowledge({"main": Dense(torch.full((N, T, V), 60000.0 if dtype == torch.float16 else 1e30, dtype=dtype))}), labels)
    assert each.dtype == torch.float32
    assert torch.allclose(each[labels != -100], torch.tensor(math.log(V)))


class Model(nn.Module):
    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output, self.given = output, {}

    def forward(self, input: Tensor, **given: Tensor) -> Any:
        self.given = given
        return self.output


def test_a_model_may_answer_in_several_ways_and_is_told_what_is_there(hidden: Hidden, labels: Tensor) -> None:
    logits = hidden.logits
    batch = {"input": torch.zeros(N, T, dtype=torch.long), "segment": torch.ones(N, T), "id": torch.arange(N), "label": labels}
    for output in (hidden, Dense(logits), logits, SimpleNamespace(logits=logits), {"logits": logits, "loss": None}):
        model = Model(output)
        said = asked(model, batch, ("segment", "position"), V)
        assert list(model.given) == ["segment"]
        assert torch.allclose(said.main.logits, logits)
        assert said.mask is not None
        assert torch.equal(said.mask, labels != -100)
    assert asked(Model(logits), {"input": batch["input"]}, (), V - 1).mask is None


def test_answers_that_are_none_are_refused(hidden: Hidden) -> None:
    batch = {"input": torch.zeros(N, T, dtype=torch.long)}
    for output in (None, (hidden.logits,), {"scores": 1}):
        with pytest.raises(MismatchError, match="it must give a Hidden, logits"):
            asked(Model(output), batch, (), V)
    with pytest.raises(MismatchError, match=r"gives \[2, 5, 7\] for \[2, 5\] tokens of a vocabulary of 8"):
        asked(Model(hidden), batch, (), V + 1)
    with pytest.raises(MismatchError, match="must answer each token"):
        asked(Model(hidden.logits[:, 0]), batch, (), V)
    with pytest.raises(MismatchError, match="no labels"):
        label_of(batch)
