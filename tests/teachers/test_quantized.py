"""States in fewer bits err by no more than they must, and draws are right on average."""

import numpy as np
import pytest
import torch

from limbeck.teachers._quantized import dequantized, drawn, quantized


@pytest.mark.parametrize(("dtype", "near"), [("float32", 0.0), ("bfloat16", 2.0**-8), ("int8", 0.5 / 127)])
def test_states_come_back_within_half_a_step(dtype: str, near: float) -> None:
    torch.manual_seed(0)
    states = torch.randn(50, 24) * torch.logspace(-3, 3, 50)[:, None]
    states[3] = 0.0
    back = dequantized(quantized(states, dtype).__getitem__, dtype)  # pyright: ignore[reportArgumentType]
    largest = states.abs() if dtype == "bfloat16" else states.abs().amax(-1, keepdim=True)
    assert back.dtype == torch.float32
    assert ((back - states).abs() <= largest * near * (1 + 1e-5)).all()
    assert torch.equal(back, states) == (dtype == "float32"), "the test can tell"


def test_draws_are_counted_none_twice_and_depend_on_their_counter_alone() -> None:
    torch.manual_seed(0)
    logits, counters = 3 * torch.randn(40, 30), torch.randint(-(2**62), 2**62, (40,))
    indices, counts = drawn(logits, counters, 12, 2.0)
    assert indices.shape == counts.shape == (40, 12)
    assert (counts.sum(-1) == 12).all()
    assert (counts >= 0).all()
    assert all(len(set(row)) == 12 for row in indices.tolist())
    order = torch.randperm(40)
    again = drawn(logits[order], counters[order], 12, 2.0)
    assert torch.equal(again[0], indices[order])
    assert torch.equal(again[1], counts[order])
    assert not torch.equal(drawn(logits, counters + 1, 12, 2.0)[1], counts)


def test_the_mean_of_many_draws_is_the_distribution() -> None:
    logits = torch.tensor([2.0, 0.5, -1.0, float("-inf"), 0.0, -6.0])
    rows, count, temperature = 4000, 5, 1.5
    indices, counts = drawn(logits.expand(rows, -1), torch.arange(rows) * 1000, count, temperature)
    found = torch.zeros(6, dtype=torch.float64).scatter_add_(0, indices.flatten(), counts.flatten().double()) / (rows * count)
    p = (logits.double() / temperature).softmax(-1)
    deviation = (p * (1 - p) / (rows * count)).sqrt()
    assert ((found - p).abs() <= 4.5 * deviation).all(), (found, p)
    assert found[3] == 0


def test_int8_of_a_row_of_zeros_has_no_scale() -> None:
    made = quantized(torch.zeros(2, 3), "int8")
    assert not made["scale"].any()
    assert made["states"].dtype == np.int8
