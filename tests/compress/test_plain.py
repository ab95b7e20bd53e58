"""A module without what only its training needed, and the one it was made from."""

import torch
from torch import nn
from torch.nn.utils import parametrizations

from limbeck.compress import plain


def test_the_given_model_stays_as_it_is() -> None:
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 3)), nn.ReLU())
    x = torch.randn(5, 4)
    expected = model(x)
    made = plain(model)
    assert list(made.state_dict()) == ["0.bias", "0.weight"]
    assert torch.equal(made(x), expected)
    assert torch.equal(model(x), expected)
    assert torch.equal(plain(model)(x), expected)
    assert "0.parametrizations.weight.original0" in model.state_dict()
    assert isinstance(made[0], nn.Linear)


def test_a_plain_model_is_copied() -> None:
    model = nn.Linear(2, 2)
    made = plain(model)
    made.weight.data.zero_()
    assert model.weight.abs().sum() > 0
