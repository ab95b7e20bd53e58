"""Growing against polynomials that are known, and the network against its definition."""

import json

import numpy as np
import pytest

from limbeck.compress.grow._growth import Limits, grow, refitted, solve
from limbeck.compress.grow._network import Layer, Network, pruned, terms
from limbeck.core.errors import ArtifactError

FREE = Limits(units=8, depth=6, gain=0.01, rejoin=True, margin=None)


def grid(levels: list[float], inputs: int) -> np.ndarray:
    return np.stack([axis.ravel() for axis in np.meshgrid(*[levels] * inputs, indexing="ij")], axis=1)


def test_terms_and_their_coefficients_are_those_of_a_loop() -> None:
    draw = np.random.default_rng(0)
    a, b, y = draw.normal(size=(3, 20))
    design = terms(a, b)
    for n in range(20):
        assert design[n].tolist() == [1, a[n], b[n], a[n] ** 2, b[n] ** 2, a[n] * b[n]]
    np.testing.assert_allclose(solve(design[None], y)[0], np.linalg.lstsq(design, y)[0], rtol=1e-9)


def test_a_column_of_ones_and_zeros_has_the_shortest_solution() -> None:
    """Its square is itself: the design has no full rank."""
    draw = np.random.default_rng(0)
    a, b, y = draw.integers(0, 2, 30).astype(float), draw.normal(size=30), draw.normal(size=30)
    np.testing.assert_allclose(solve(terms(a, b)[None], y)[0], np.linalg.lstsq(terms(a, b), y, rcond=1e-10)[0], rtol=1e-8, atol=1e-10)


def test_a_quartic_is_found_in_two_layers() -> None:
    """(a quadratic of x0, x1) times (a quadratic of x2, x3), on full grids, where each factor is what least squares finds of its pair."""

    def truth(x: np.ndarray) -> np.ndarray:
        return (2 + x[:, 0] - x[:, 0] * x[:, 1] + 0.5 * x[:, 1] ** 2) * (3 - x[:, 2] + 2 * x[:, 3] ** 2)

    rows, asked = grid([-1.0, 0.0, 1.0, 2.0], 5), grid([-0.5, 0.5, 1.5], 5)  # x4 is useless
    found = grow((rows, truth(rows)), (asked, truth(asked)), FREE)
    assert len(found.network.layers) == 2 and found.network.inputs.tolist() == [0, 1, 2, 3]
    assert found.network.units == 3
    other = np.random.default_rng(1).uniform(-2, 3, size=(50, 5))
    np.testing.assert_allclose(found.network(other), truth(other), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("seed", range(4))
def test_the_criterion_falls_until_it_ends_and_is_that_of_the_network(seed: int) -> None:
    draw = np.random.default_rng(seed)
    x = draw.normal(size=(160, 5))
    y = np.sin(x[:, 0] * x[:, 1]) + np.abs(x[:, 2]) + 0.3 * draw.normal(size=160)
    limits = Limits(units=6, depth=8, gain=0.02, rejoin=bool(seed % 2), margin=0.1)
    found = grow((x[:90], y[:90]), (x[90:], y[90:]), limits)
    assert len(found.criterion) == len(found.network.layers) + 1 > 1
    assert all(later < (1 - limits.gain) * earlier for earlier, later in zip(found.criterion, found.criterion[1:], strict=False))
    assert found.criterion[0] == pytest.approx(np.mean((y[90:] - y[:90].mean()) ** 2))
    assert found.criterion[-1] == pytest.approx(np.mean((y[90:] - found.network(x[90:])) ** 2))
    if not limits.rejoin:
        assert all(int(layer.pairs.min()) >= 5 for layer in found.network.layers[1:])


def test_noise_grows_nothing() -> None:
    draw = np.random.default_rng(0)
    x, y = draw.normal(size=(400, 3)), draw.normal(size=400)
    found = grow((x[:200], y[:200]), (x[200:], y[200:]), Limits(units=8, depth=6, gain=0.05, rejoin=True, margin=0.1))
    assert found.network.layers == () and found.network(x[:3]).tolist() == [pytest.approx(y[:200].mean())] * 3
    constant = grow((x[:9], np.full(9, 2.5)), (x[9:20], np.full(11, 2.5)), FREE)
    assert constant.network.layers == () and constant.network(x[:2]).tolist() == [2.5, 2.5]


def random_layers(seed: int = 0) -> list[Layer]:
    draw = np.random.default_rng(seed)
    return [
        Layer(np.array([[0, 1], [1, 2], [2, 3], [0, 3]]), draw.normal(size=(4, 6))),
        Layer(np.array([[4, 5], [6, 0], [7, 1]]), draw.normal(size=(3, 6))),
        Layer(np.array([[8, 9], [8, 2]]), draw.normal(size=(2, 6))),
    ]


def made(layers: tuple[Layer, ...]) -> Network:
    return Network(np.zeros(4), np.ones(4), layers, (-5.0, 5.0), 1.0, 2.0)


def test_pruning_changes_no_answer_and_leaves_what_is_used() -> None:
    layers, x = random_layers(), np.random.default_rng(1).normal(size=(30, 4))
    cut = pruned(layers, 4)
    assert [len(layer.pairs) for layer in cut] == [2, 1, 1]  # unit 11 reads 8 and 2, unit 8 reads 4 and 5
    np.testing.assert_array_equal(made(cut)(x), made(tuple(layers))(x))
    assert made(cut).inputs.tolist() == [0, 1, 2] and made(tuple(layers)).inputs.tolist() == [0, 1, 2, 3]


def test_it_answers_as_a_loop_does() -> None:
    network, x = made(tuple(random_layers())), np.random.default_rng(1).normal(size=(5, 4))
    for row in x:
        nodes = list(row)
        for layer in network.layers:
            new = [
                c[0] + c[1] * nodes[i] + c[2] * nodes[j] + c[3] * nodes[i] ** 2 + c[4] * nodes[j] ** 2 + c[5] * nodes[i] * nodes[j]
                for (i, j), c in zip(layer.pairs, layer.coefficients, strict=True)
            ]
            nodes += [min(5.0, max(-5.0, value)) for value in new]
        assert network(row[None])[0] == pytest.approx(1 + 2 * nodes[-1])


def test_fitting_again_to_the_same_rows_changes_nothing() -> None:
    draw = np.random.default_rng(0)
    x = draw.normal(size=(120, 3))
    y = x[:, 0] * x[:, 1] + x[:, 2] + 0.1 * draw.normal(size=120)
    network = grow((x[:80], y[:80]), (x[80:], y[80:]), FREE).network
    again = refitted(network, x[:80], y[:80])
    np.testing.assert_allclose(again(x), network(x), rtol=1e-6, atol=1e-8)
    assert not np.allclose(refitted(network, x, y)(x), network(x))


def test_written_and_read_it_is_the_same_to_the_bit() -> None:
    network, x = made(tuple(random_layers())), np.random.default_rng(1).normal(size=(30, 4))
    again = Network.from_dict(json.loads(json.dumps(network.to_dict())))
    np.testing.assert_array_equal(again(x), network(x))
    free = Network(np.zeros(4), np.ones(4), tuple(random_layers()), (-np.inf, np.inf), 0.0, 1.0)
    np.testing.assert_array_equal(Network.from_dict(json.loads(json.dumps(free.to_dict())))(x), free(x))


@pytest.mark.parametrize(
    ("at", "value"),
    [
        (("layers", 0, "pairs", 0, 0), 4), (("layers", 0, "pairs", 0, 0), -1), (("layers", 1, "coefficients", 0, 2), float("nan")), (("scale", 0), 0.0),
        (("layers", 0, "pairs"), [[0, 1]]), (("center",), []), (("center",), [[0.0]]), (("bounds",), [1.0]), (("layers",), 3), (("mean",), "x"),
        (("layers", 0, "pairs", 0, 0), 10**30), (("layers", 0), {}),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_damaged_is_refused(at: tuple, value: object) -> None:
    told = json.loads(json.dumps(made(tuple(random_layers())).to_dict()))
    held = told
    for key in at[:-1]:
        held = held[key]
    held[at[-1]] = value
    with pytest.raises(ArtifactError, match="no GMDH network"):
        Network.from_dict(told)
    with pytest.raises(ArtifactError, match="no GMDH network"):
        Network.from_dict([])
