"""What torch-pruning says of channels that hang together, and what it is taught."""

import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from limbeck.bridges.torch_pruning import Port, couplings
from limbeck.core.errors import MissingDependency


def units(model, x):
    """Free units of a model as sets of (path, side, channel), and why others stay."""
    found = couplings(model.eval(), lambda made: [made(x)])
    free = {frozenset((port.path, port.side, at) for port, at in one.places) for one in found if not one.fixed}
    return free, {one.fixed for one in found if one.fixed}


def test_a_chain_ties_filters_norms_and_what_reads_them():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 4, 3))
    found, fixed = units(model, torch.randn(2, 1, 4, 4))
    assert found == {frozenset({("0", "out", c), ("1", "through", c), *(("4", "in", 4 * c + k) for k in range(4))}) for c in range(2)}
    assert fixed == {"it is what the model answers"}


class Residual(nn.Module):
    def __init__(self, padded=0):
        super().__init__()
        self.stem, self.inner, self.head, self.padded = nn.Conv2d(1, 3, 1), nn.Conv2d(3, 3 + 2 * padded, 1), nn.Linear(3 + 2 * padded, 2), padded

    def forward(self, x):
        x = self.stem(x)
        return self.head((self.inner(x) + F.pad(x, (0, 0, 0, 0, self.padded, self.padded))).mean((2, 3)))


def test_a_sum_ties_both_of_its_terms():
    found, _ = units(Residual(), torch.randn(2, 1, 4, 4))
    assert found == {frozenset({("stem", "out", c), ("inner", "in", c), ("inner", "out", c), ("head", "in", c)}) for c in range(3)}


def test_a_shortcut_that_adds_channels_moves_them_and_keeps_its_own():
    found, fixed = units(Residual(2), torch.randn(2, 1, 4, 4))
    assert found == {frozenset({("stem", "out", c), ("inner", "in", c), ("inner", "out", c + 2), ("head", "in", c + 2)}) for c in range(3)}
    assert "a shortcut adds 4 channels of zeros there" in fixed


def test_two_channels_of_one_layer_hang_together_through_another():
    class Doubled(nn.Module):
        def __init__(self):
            super().__init__()
            self.small, self.large, self.head = nn.Linear(3, 2), nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x):
            small = self.small(x)
            return self.head(torch.cat([small, small], 1) * self.large(x))

    found, _ = units(Doubled(), torch.randn(2, 3))
    tie = [{("small", "out", c), *(("large", "out", k) for k in (c, c + 2)), *(("head", "in", k) for k in (c, c + 2))} for c in range(2)]
    assert found == {frozenset(one) for one in tie}


def test_bare_parameters_are_ports_by_their_names():
    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.shift, self.head = nn.Linear(3, 4), nn.Parameter(torch.zeros(1, 5, 4)), nn.Linear(4, 2)

        def forward(self, x):
            return self.head((self.embed(x) + self.shift).mean(1))

    found, _ = units(Shifted(), torch.randn(2, 5, 3))
    assert found == {frozenset({("embed", "out", c), ("shift", "parameter", c), ("head", "in", c)}) for c in range(4)}


def test_what_cannot_be_cut_is_said():
    packed = nn.Sequential(nn.Linear(3, 4), nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), nn.Linear(4, 2))
    _, fixed = units(packed, torch.randn(2, 5, 3))
    assert any("MultiheadAttention" in why and "cannot be cut" in why for why in fixed)
    gathers = nn.Sequential(nn.Conv2d(1, 8, 1), nn.Conv2d(8, 4, 1, groups=4), nn.Flatten(), nn.Linear(4 * 4, 2))
    found, fixed = units(gathers, torch.randn(2, 1, 2, 2))
    assert not found and any("1 (Conv2d), which cannot be cut" in why for why in fixed)


def test_the_model_is_left_as_it_was():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).train().requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        found = couplings(model, lambda made: [made(torch.randn(2, 3))])
    assert any((Port("1", "through"), 0) in one.places for one in found)
    assert model.training and not any(one.requires_grad for one in model.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_without_the_library_the_pip_line_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(MissingDependency, match=r'pruning channels needs torch-pruning: pip install "limbeck\[prune\]"'):
        couplings(nn.Linear(2, 2), lambda made: [])
