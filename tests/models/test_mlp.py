"""`mlp`: its layers, its dropout, and what it refuses."""

import pytest
import torch
from torch import nn

from limbeck.core.errors import RecipeError
from limbeck.core.lookup import build
from limbeck.models.mlp import MLP


def test_it_is_linear_relu_linear() -> None:
    model = MLP((1, 2, 3), 4, widths=(5, 7)).double()
    x = torch.randn(8, 1, 2, 3, dtype=torch.float64)
    state = model.state_dict()
    hidden = (x.reshape(8, 6) @ state["layer1.0.weight"].T + state["layer1.0.bias"]).clamp(min=0)
    hidden = (hidden @ state["layer2.0.weight"].T + state["layer2.0.bias"]).clamp(min=0)
    assert torch.allclose(model(x), hidden @ state["head.weight"].T + state["head.bias"])
    assert len(state) == 6


def test_the_parameters_of_hintons_student() -> None:
    model = MLP((1, 28, 28), 10, widths=(800, 800))
    assert sum(p.numel() for p in model.parameters()) == 784 * 800 + 800 + 800 * 800 + 800 + 800 * 10 + 10


def test_no_widths_make_a_linear_classifier() -> None:
    model = build("models", "mlp", {"widths": []}, (3,), 2)
    assert [name for name, _ in model.named_parameters()] == ["head.weight", "head.bias"]
    assert model(torch.zeros(1, 3)).shape == (1, 2)


def test_dropout_is_where_it_was_asked_for() -> None:
    assert not [m for m in MLP((4,), 2, widths=(3, 3)).modules() if isinstance(m, nn.Dropout)]
    model = MLP((4,), 2, widths=(300, 300), dropout=0.5, input_dropout=0.2)
    assert [(name, m.p) for name, m in model.named_modules() if isinstance(m, nn.Dropout)] == [("input_dropout", 0.2), ("layer1.2", 0.5), ("layer2.2", 0.5)]
    x = torch.randn(2, 4)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


@pytest.mark.parametrize(
    ("options", "told"), [({"widths": (8, 0)}, "width of MLP is 0"), ({"dropout": 1.0}, "dropout is 1;"), ({"input_dropout": -0.1}, "input_dropout is -0.1")]
)
def test_what_cannot_be_meant_is_refused(options: dict[str, float], told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        build("models", "mlp", options, (4,), 2)
