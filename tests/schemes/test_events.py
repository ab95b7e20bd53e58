"""What surprised, closed up, by a naive loop; and gradients that end where a window does, exactly."""

import pytest
import torch

from limbeck.core.lookup import build
from limbeck.schemes._events import events, surprising, truncated

N, T, C = 6, 9, 5


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("window", [1, 2, 4, 9, 20, None])
def test_no_gradient_crosses_a_window(window: int | None) -> None:
    layer = build("models", "recurrent", {"width": 4}, (T, 3), 2).layer1
    x = torch.randn(2, T, 3, requires_grad=True)
    states = truncated(layer, x, window)
    torch.testing.assert_close(states, layer(x))  # what is computed is the same
    for t in range(T):
        (gradient,) = torch.autograd.grad(states[:, t].sum(), x, retain_graph=True)
        begins = 0 if window is None else t - t % window
        assert not gradient[:, :begins].any() and not gradient[:, t + 1 :].any()
        assert all(gradient[:, step].abs().sum() > 0 for step in range(begins, t + 1))


def test_a_symbol_surprises_that_had_too_little_probability() -> None:
    logits, symbols = 2 * torch.randn(N, T, C), torch.randint(C, (N, T + 1))
    found = surprising(logits, symbols, 0.3)
    for n in range(N):
        for t in range(T + 1):
            assert found[n, t] == (t == 0 or bool(logits[n, t - 1].softmax(0)[symbols[n, t]] < 0.3))
    assert 0 < found[:, 1:].sum() < N * T
    assert surprising(1000.0 * torch.nn.functional.one_hot(symbols[:, 1:], C), symbols, 1.0).sum() == N  # the first ones alone


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_the_chunker_is_given_the_unexpected_symbols_and_nothing_else(share: float) -> None:
    symbols, surprise = torch.randint(C, (N, T + 1)), torch.rand(N, T + 1) < share
    surprise[:, 0] = True
    found = events(symbols, surprise, C)
    for n in range(N):
        at = [t for t in range(T + 1) if surprise[n, t]]
        for j, t in enumerate(at):
            assert found.inputs[n, j, :C].tolist() == [float(c == symbols[n, t]) for c in range(C)]
            assert found.inputs[n, j, C].item() == pytest.approx((t - at[j - 1]) / T if j else 0.0)
            assert bool(found.followed[n, j]) == (j + 1 < len(at))
            if j + 1 < len(at):
                assert found.following[n, j] == symbols[n, at[j + 1]]
        assert not found.inputs[n, len(at) :].any() and not found.followed[n, len(at) :].any()
        assert found.place[n].tolist() == [sum(event <= t for event in at) - 1 for t in range(T + 1)]
    assert found.inputs.shape[1] == int(surprise.sum(1).max())
