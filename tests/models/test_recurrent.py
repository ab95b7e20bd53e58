"""`recurrent`: its states by a naive loop, how it reads examples of each rank, and what it refuses."""

import math

import pytest
import torch

from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.lookup import build
from limbeck.core.tap import Tap
from limbeck.models.recurrent import Recurrent


def test_it_is_elman_s_network() -> None:
    model = Recurrent((4, 3), 2, width=5).double()
    x = torch.randn(6, 4, 3, dtype=torch.float64)
    state = model.state_dict()
    w, b, u = (state[f"layer1.{name}"].tolist() for name in ("input.weight", "input.bias", "state.weight"))
    with torch.no_grad(), Tap(model, ["layer1"]) as tap:
        logits = model(x)
    for n in range(6):
        h = [0.0] * 5
        for t in range(4):
            h = [math.tanh(b[i] + sum(w[i][d] * x[n, t, d].item() for d in range(3)) + sum(u[i][j] * h[j] for j in range(5))) for i in range(5)]
            torch.testing.assert_close(tap.features["layer1"][n, t], torch.tensor(h, dtype=torch.float64))
        torch.testing.assert_close(logits[n], state["head.weight"] @ torch.tensor(h, dtype=torch.float64) + state["head.bias"])


def test_going_on_from_a_state_is_going_on() -> None:
    layer = Recurrent((7, 3), 2, width=5).layer1
    x = torch.randn(2, 7, 3)
    whole = layer(x)
    torch.testing.assert_close(layer(x[:, 3:], layer(x[:, :3])[:, -1]), whole[:, 3:])


def test_an_image_is_its_rows_one_after_another() -> None:
    model = Recurrent((2, 4, 3), 5, width=6)
    x = torch.randn(3, 2, 4, 3)
    rows = torch.stack([torch.stack([torch.cat([image[0, row], image[1, row]]) for row in range(4)]) for image in x])
    assert model(x).equal(model(rows))
    with torch.no_grad(), Tap(model, ["layer1"]) as tap:
        model(x)
    assert tap.features["layer1"].shape == (3, 4, 6)


def test_a_vector_is_one_step() -> None:
    model = Recurrent((4,), 5)
    x = torch.randn(3, 4)
    assert model(x).equal(model(x.unsqueeze(1)))


def test_what_cannot_be_meant_is_refused() -> None:
    with pytest.raises(MismatchError, match="Recurrent reads sequences"):
        Recurrent((1, 2, 3, 4), 2)
    with pytest.raises(MismatchError, match="Recurrent reads sequences"):
        Recurrent((0, 3), 2)
    with pytest.raises(RecipeError, match="width is 0"):
        build("models", "recurrent", {"width": 0}, (4, 3), 2)
