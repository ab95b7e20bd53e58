"""Every curvature against the whole matrix, made by autograd one entry at a time in float64."""

import math

import pytest
import torch
from torch import nn
from torch.autograd.functional import hessian, jacobian
from torch.func import functional_call

from limbeck.compress.prune._curvature import _cut, blocks, diagonal, exact_diagonal, hutchinson_diagonal
from limbeck.core.errors import DataError, MismatchError, RecipeError
from limbeck.tasks.classify import Classify
from limbeck.tasks.regression import Regression


def names_of(model):
    return [name for name, _ in model.named_parameters()]


def with_flat(model, flat):
    parameters = dict(model.named_parameters())
    parts = flat.split([p.numel() for p in parameters.values()])
    return {name: part.reshape(p.shape) for (name, p), part in zip(parameters.items(), parts, strict=True)}


def flat_of(tensors):
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def whole_hessian(model, x, y):
    """`[P, P]`, by autograd, of the mean cross-entropy."""
    start = flat_of(model.parameters())
    return hessian(lambda flat: nn.functional.cross_entropy(functional_call(model, with_flat(model, flat), (x,)), y), start)


def whole_gauss_newton(model, x):
    """`[P, P]`: sum_n J_n^T (diag p - p p^T) J_n / N, from the whole Jacobian."""
    start = flat_of(model.parameters())
    total = torch.zeros(len(start), len(start), dtype=torch.float64)
    for one in x.split(1):
        J = jacobian(lambda flat, one=one: functional_call(model, with_flat(model, flat), (one,))[0], start)
        p = model(one)[0].detach().softmax(0)
        total += J.T @ (torch.diag(p) - torch.outer(p, p)) @ J
    return total / len(x)


def whole_fisher(model, x, y):
    """`[P, P]`: the mean outer product of each example's own gradient."""
    rows = []
    for n in range(len(x)):
        loss = nn.functional.cross_entropy(model(x[n : n + 1]), y[n : n + 1])
        rows.append(flat_of(torch.autograd.grad(loss, list(model.parameters()))))
    stacked = torch.stack(rows)
    return stacked.T @ stacked / len(x)


@pytest.mark.parametrize("net", ["mlp", "conv"])
def test_gauss_newton_and_fisher_diagonals_are_those_of_the_whole_matrices(net, data, bench, request):
    model = request.getfixturevalue(net)
    x, y = data
    found = diagonal(model, names_of(model), bench, examples=12, curvature="gauss_newton")
    torch.testing.assert_close(flat_of(found.values()), whole_gauss_newton(model, x).diagonal())
    found = diagonal(model, names_of(model), bench, examples=12, curvature="empirical")
    torch.testing.assert_close(flat_of(found.values()), whole_fisher(model, x, y).diagonal())


def test_exact_diagonal_is_the_hessians(mlp, data, bench):
    found = exact_diagonal(mlp, names_of(mlp), bench, examples=12)
    torch.testing.assert_close(flat_of(found.values()), whole_hessian(mlp, *data).diagonal())
    assert (flat_of(found.values()) < 0).any()  # which Gauss-Newton's never is


def test_gauss_newton_is_the_hessian_of_a_linear_model(data, bench):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(32, 3)).double()
    found = diagonal(model, names_of(model), bench, examples=12, curvature="gauss_newton")
    torch.testing.assert_close(flat_of(found.values()), whole_hessian(model, *data).diagonal())
    torch.testing.assert_close(flat_of(exact_diagonal(model, names_of(model), bench, examples=12).values()), whole_hessian(model, *data).diagonal())


def test_hutchinson_comes_to_the_hessians_diagonal_by_its_own_variance(mlp, data, bench):
    true = whole_hessian(mlp, *data)
    draws = 400
    found = flat_of(hutchinson_diagonal(mlp, names_of(mlp), bench, examples=12, draws=draws).values())
    parts = [whole_hessian(mlp, x, y) / 2 for x, y in zip(data[0].split(6), data[1].split(6), strict=True)]  # each batch draws its own signs
    deviation = torch.stack([(part - torch.diag(part.diagonal())).square().sum(1) for part in parts]).sum(0).div(draws).sqrt()
    errors = (found - true.diagonal()) / deviation
    assert errors.abs().max() < 5
    assert 0.8 < errors.square().mean().sqrt() < 1.25  # not less noisy than theory has it, either


class Seen(nn.Module):
    """Examples see each other, as nodes of a graph do."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(32, 3), nn.Linear(3, 3)

    def forward(self, x):
        h = self.first(x.flatten(1)).tanh()
        return self.last(h + h.roll(1, 0))


class Tied(nn.Module):
    """A weight that works in its layer and outside it."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(32, 3), nn.Linear(3, 3)

    def forward(self, x):
        return self.last(self.first(x.flatten(1)).tanh()) @ self.last.weight


class Attending(nn.Module):
    """Attention, whose projection is no layer that is called, over the 16 places."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(2, 1, batch_first=True)
        self.head = nn.Linear(2, 3)

    def forward(self, x):
        x = x.flatten(2).mT
        return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))


class Twice(nn.Module):
    """One layer called twice, on tokens."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        x = x.flatten(1, 2)  # [N, 8, 4]
        return self.head(self.layer(self.layer(x).tanh()).tanh().mean(1))


class Sequence(nn.Module):
    """A dilated convolution over one dimension."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv1d(4, 4, 3, padding=2, dilation=2, stride=2, groups=2), nn.Linear(16, 3)

    def forward(self, x):
        return self.head(self.conv(x.flatten(1, 2).mT).tanh().flatten(1))


@pytest.mark.parametrize("kind", [Tied, Attending, Twice, Sequence])
def test_rows_are_right_whatever_the_layers_are(kind, data, bench):
    torch.manual_seed(3)
    model = kind().double()
    found = diagonal(model, names_of(model), bench, examples=12, curvature="gauss_newton")
    torch.testing.assert_close(flat_of(found.values()), whole_gauss_newton(model, data[0]).diagonal())
    found = diagonal(model, names_of(model), bench, examples=12, curvature="empirical")
    torch.testing.assert_close(flat_of(found.values()), whole_fisher(model, *data).diagonal())


def test_a_net_whose_zeros_are_held_is_read_as_fast(mlp, data, bench, monkeypatch):
    """Hooks that mask gradients are no reason for a backward pass by example."""
    from limbeck.compress.prune import _curvature_rows
    from limbeck.compress.prune.weights import Weights

    with torch.no_grad():
        mlp[1].weight[:, ::2] = 0
    Weights.hold(mlp, {"parameters": names_of(mlp)})
    monkeypatch.setattr(_curvature_rows, "_slow", lambda *_: pytest.fail("took the slow way"))
    found = diagonal(mlp, names_of(mlp), bench, examples=12, curvature="gauss_newton")
    live = flat_of(mlp.parameters()) != 0
    torch.testing.assert_close(flat_of(found.values())[live], whole_gauss_newton(mlp, data[0]).diagonal()[live])


def test_examples_that_see_each_other_are_told_apart(data, bench_of):
    torch.manual_seed(3)
    model = Seen().double()
    x, y = data
    found = diagonal(model, names_of(model), bench_of(Classify({"train": [data]}, classes=3)), examples=12, curvature="empirical")
    losses = nn.functional.cross_entropy(model(x), y, reduction="none")
    rows = torch.stack([flat_of(torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)) for loss in losses])
    torch.testing.assert_close(flat_of(found.values()), rows.square().mean(0))


def test_gauss_newton_of_another_loss(data, bench_of):
    """Squared error: 2 J^T J."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(32, 2), nn.Tanh(), nn.Linear(2, 2)).double()
    x = data[0]
    bench = bench_of(Regression({"train": [(x, torch.randn(12, 2, dtype=torch.float64))]}))
    found = diagonal(model, names_of(model), bench, examples=12, curvature="gauss_newton")
    start = flat_of(model.parameters())
    J = jacobian(lambda flat: functional_call(model, with_flat(model, flat), (x,)), start)
    torch.testing.assert_close(flat_of(found.values()), 2 * J.square().sum(1).mean(0))


def test_one_block_is_the_whole_matrix_among_the_weights_that_live(mlp, data, bench):
    with torch.no_grad():
        mlp[1].weight[:, ::2] = 0
    live = flat_of(mlp.parameters()) != 0
    (block,) = blocks(mlp, names_of(mlp), bench, examples=12, curvature="gauss_newton", size=200, damping=1e-3)
    whole = whole_gauss_newton(mlp, data[0])[live][:, live]
    level = 1e-3 * whole.diagonal().mean()
    torch.testing.assert_close(block.matrix, whole + level * torch.eye(len(whole), dtype=torch.float64))
    weights = dict(mlp.named_parameters())
    torch.testing.assert_close(block.take(weights), flat_of(mlp.parameters())[live])


def test_blocks_are_the_whole_matrixs_own(conv, data, bench):
    made = blocks(conv, names_of(conv), bench, examples=12, curvature="empirical", size=18, damping=1e-6)
    whole = whole_fisher(conv, *data)
    starts = dict(zip(names_of(conv), torch.tensor([0, *[p.numel() for p in conv.parameters()]]).cumsum(0).tolist(), strict=False))
    level = 1e-6 * whole.diagonal().mean()
    seen = []
    for block in made:
        ((name, places),) = block.places.items()
        at = places + starts[name]
        seen += at.tolist()
        torch.testing.assert_close(block.matrix, whole[at][:, at] + level * torch.eye(len(at), dtype=torch.float64))
    assert sorted(seen) == list(range(len(whole)))
    assert [len(block.matrix) for block in made] == [18, 18, 4, 16, 16, 16, 3]  # rows of 9 two by two, those of 16 by themselves


def test_a_row_longer_than_a_block_is_cut():
    made = _cut({"w": nn.Parameter(torch.ones(2, 10)), "b": nn.Parameter(torch.ones(3))}, 4)
    assert [len(block.matrix) for block in made] == [4, 4, 2, 4, 4, 2, 3]


def test_the_quadratic_optimum_without_some_weights():
    """Against the constrained problem solved by its KKT equations: minimise d^T H d / 2 with d_Q = -w_Q."""
    torch.manual_seed(0)
    root = torch.randn(7, 7, dtype=torch.float64)
    H, w = root @ root.T + 0.1 * torch.eye(7, dtype=torch.float64), torch.randn(7, dtype=torch.float64)
    from limbeck.compress.prune._curvature import Block

    block = Block({"w": torch.arange(7)}, H)
    for gone in ([2], [0, 3, 6], list(range(7))):
        Q = torch.tensor(gone)
        E = torch.eye(7, dtype=torch.float64)[Q]
        system = torch.cat([torch.cat([H, E.T], 1), torch.cat([E, torch.zeros(len(Q), len(Q), dtype=torch.float64)], 1)])
        d = torch.linalg.solve(system, torch.cat([torch.zeros(7, dtype=torch.float64), -w[Q]]))[:7]
        removed = torch.zeros(7, dtype=torch.bool)
        removed[Q] = True
        moved = block.without(w, removed)
        torch.testing.assert_close(moved, w + d, atol=1e-9, rtol=1e-9)
        assert (moved[Q] == 0).all()

    costs, now, last = block.in_turn(w), w.clone(), 0.0
    removed = torch.zeros(7, dtype=torch.bool)
    for q in costs.argsort().tolist():  # the paper's loop, its quadratic form being the loss
        inverse = torch.linalg.inv(H[~removed][:, ~removed])
        alone = torch.full((7,), math.inf, dtype=torch.float64)
        alone[~removed] = now[~removed].square() / (2 * inverse.diagonal())
        assert int(alone.argmin()) == q
        last = max(last, alone[q].item())
        assert costs[q].item() == pytest.approx(last)
        removed[q] = True
        now = block.without(w, removed)
    torch.testing.assert_close(block.alone(w), w.square() / (2 * H.inverse().diagonal()))


def test_a_model_is_left_as_it_was(conv, bench):
    conv.train()
    conv[3].weight.requires_grad_(False)
    conv[0].weight.grad = torch.ones_like(conv[0].weight)
    before = flat_of(conv.parameters())
    for run in (
        lambda: diagonal(conv, names_of(conv), bench, examples=12, curvature="gauss_newton"),
        lambda: exact_diagonal(conv, ["3.weight"], bench, examples=12),
        lambda: hutchinson_diagonal(conv, ["3.weight"], bench, examples=12, draws=1),
    ):
        with torch.no_grad():
            run()
    assert torch.equal(flat_of(conv.parameters()), before)
    assert conv.training and not conv[3].weight.requires_grad and conv[0].weight.requires_grad
    assert torch.equal(conv[0].weight.grad, torch.ones_like(conv[0].weight)) and conv[3].weight.grad is None
    assert not conv[0]._forward_hooks


def test_what_cannot_be_measured_is_said(mlp, data, bench, bench_of):
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.Linear(32, 3).double(), nn.Linear(3, 3).double()

        def forward(self, x):
            return self.used(x.flatten(1))

    for run in (
        lambda model: diagonal(model, ["idle.weight"], bench, examples=12, curvature="empirical"),
        lambda model: diagonal(model, ["used.weight", "idle.weight"], bench, examples=12, curvature="gauss_newton"),
        lambda model: exact_diagonal(model, ["used.weight", "idle.weight"], bench, examples=12),
        lambda model: hutchinson_diagonal(model, ["used.weight", "idle.weight"], bench, examples=12, draws=1),
    ):
        with pytest.raises(MismatchError, match=r"idle.weight|depends on none"):
            run(Unused())
    with pytest.raises(MismatchError, match=r"no parameter 'nope'"):
        diagonal(mlp, ["nope"], bench, examples=12, curvature="empirical")
    with pytest.raises(DataError, match="not finite"):
        blocks(mlp.apply(lambda layer: [nn.init.constant_(p, math.nan) for p in layer.parameters(recurse=False)]), names_of(mlp), bench,
               examples=12, curvature="empirical", size=8, damping=1e-3)  # fmt: skip
    wide = nn.Sequential(nn.Flatten(), nn.Linear(32, 1200)).double()
    with pytest.raises(RecipeError, match="1200 logits"):
        diagonal(wide, names_of(wide), bench_of(Classify({"train": [data]}, classes=1200)), examples=12, curvature="gauss_newton")
    with pytest.raises(RecipeError, match="20000 at most"):
        exact_diagonal(nn.Sequential(nn.Flatten(), nn.Linear(32, 700)), ["1.weight"], bench, examples=12)


def test_a_batch_of_one(mlp, data, bench_of):
    x, y = data[0][:1], data[1][:1]
    found = diagonal(mlp, names_of(mlp), bench_of(Classify({"train": [(x, y)]}, classes=3)), examples=1, curvature="gauss_newton")
    torch.testing.assert_close(flat_of(found.values()), whole_gauss_newton(mlp, x).diagonal())
