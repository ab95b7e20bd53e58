"""Reading layers by path."""

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.tap import Tap, check_paths


class Net(nn.Module):
    """3 -> 4 -> 2, with one choice of what stands between."""

    def __init__(self, between: nn.Module | None = None) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.between = between or nn.ReLU()
        self.last = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.between(self.first(x)))


class Functional(Net):
    """The same with an in-place operation that no module shows."""

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        F.relu(hidden, inplace=True)
        return self.last(hidden)


class AddsInPlace(Net):
    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        hidden.view(-1).add_(1)  # through a view
        return self.last(hidden)


class Twice(nn.Module):
    """One layer, two names, called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.alias = self.layer

    def forward(self, x: Tensor) -> Tensor:
        return self.alias(self.layer(x))


class Gives(nn.Module):
    """A layer that gives whatever it was told."""

    def __init__(self, output: object) -> None:
        super().__init__()
        self.output = output

    def forward(self, x: Tensor) -> object:
        return self.output


def hooks(model: nn.Module) -> Iterator[object]:
    return (hook for module in model.modules() for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values()))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(5, 3)


def test_a_record_is_what_the_layer_gives(x: Tensor):
    net = Net()
    with Tap(net, ["first", "between"]) as tap:
        out = net(x)
    assert torch.equal(tap.features["first"], net.first(x))
    assert torch.equal(tap.features["between"], net.first(x).relu())
    assert torch.equal(net.last(tap.features["between"]), out)
    assert list(tap.features) == ["first", "between"]


def test_the_empty_path_is_the_model_itself(x: Tensor):
    net = Net()
    with Tap(net, [""]) as tap:
        out = net(x)
    assert tap.features[""] is out


def test_no_paths_cost_nothing(x: Tensor):
    net = Net()
    with Tap(net, []) as tap:
        assert not list(hooks(net))
        net(x)
    assert tap.features == {}


@pytest.mark.parametrize("between", [nn.ReLU(inplace=True), nn.Hardswish(inplace=True), nn.Sequential(nn.ReLU(inplace=True))])
def test_an_in_place_layer_does_not_overwrite_the_record(between: nn.Module, x: Tensor):
    net = Net(between)
    before = net.first(x)
    assert (before < 0).any()
    with Tap(net, ["first"]) as tap:
        net(x)
    assert torch.equal(tap.features["first"], before)


@pytest.mark.parametrize("inplace", [False, True])
def test_gradients_flow_through_a_record(inplace: bool, x: Tensor):
    net = Net(nn.ReLU(inplace=inplace))
    with Tap(net, ["first"]) as tap:
        net(x)
    tap.features["first"].pow(2).sum().backward()
    assert net.first.weight.grad is not None
    expected = (2 * net.first(x)).T @ x  # d(sum h^2)/dW = (2h)^T x
    assert torch.allclose(net.first.weight.grad, expected, atol=1e-5)


def test_the_output_and_its_gradient_are_those_of_an_untapped_model(x: Tensor):
    net = Net(nn.ReLU(inplace=True))
    plain = copy.deepcopy(net)
    plain(x).sum().backward()
    with Tap(net, ["first", "between"]):
        out = net(x)
    out.sum().backward()
    assert torch.equal(out, plain(x))
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(net.parameters(), plain.parameters(), strict=True) if a.grad is not None and b.grad is not None)
    assert all(p.grad is not None for p in net.parameters())


@pytest.mark.parametrize("kind", [Functional, AddsInPlace])
def test_a_functional_in_place_operation_is_refused(kind: type[Net], x: Tensor):
    net = kind()
    with pytest.raises(MismatchError, match=rf"what layer 'first' of {kind.__name__} gave was overwritten in place") as caught, Tap(net, ["first"]):
        net(x)
    assert "\n" not in str(caught.value)
    assert not list(hooks(net))


def test_a_copy_that_is_asked_for_makes_it_readable(x: Tensor):
    net = Functional()
    with Tap(net, ["first"], copy=True) as tap:
        net(x)
    assert torch.equal(tap.features["first"], net.first(x))


def test_without_in_place_layers_nothing_is_copied(x: Tensor):
    net = Net(nn.Identity())
    with Tap(net, ["first", "between"]) as tap:
        net(x)
    assert tap.features["first"] is tap.features["between"]


@pytest.mark.parametrize("kind", [Net, Functional])
def test_inference_mode(kind: type[Net], x: Tensor):
    net = kind()
    before = net.first(x)
    with torch.inference_mode(), Tap(net, ["first"]) as tap:
        net(x)
    assert torch.equal(tap.features["first"], before)


def test_no_grad(x: Tensor):
    net = Net()
    with torch.no_grad(), Tap(net, ["first"]) as tap:
        net(x)
    assert not tap.features["first"].requires_grad


def test_a_layer_called_twice_gives_its_last_call(x: Tensor):
    net = Twice()
    with Tap(net, ["layer"]) as tap:
        out = net(x)
    assert tap.features["layer"] is out


def test_a_shared_layer_goes_by_each_of_its_names(x: Tensor):
    net = Twice()
    with Tap(net, ["layer", "alias"]) as tap:
        out = net(x)
    assert tap.features["layer"] is out
    assert tap.features["alias"] is out
    assert not list(hooks(net))


@pytest.mark.parametrize("wrap", [lambda t: (t, None), lambda t: [t, t + 1], lambda t: ((t, 1), 2)], ids=["tuple", "list", "nested"])
def test_a_tuple_gives_its_first_tensor(wrap, x: Tensor):
    inner = torch.randn(2, 2)
    net = Gives(wrap(inner))
    with Tap(net, [""]) as tap:
        net(x)
    assert tap.features[""] is inner


@pytest.mark.parametrize(("output", "name"), [(None, "NoneType"), ({"a": "b"}, "dict"), ((), "tuple"), (("a", torch.zeros(1)), "tuple")])
def test_what_is_no_tensor_is_refused(output: object, name: str, x: Tensor):
    net = nn.Sequential(Gives(output))
    with pytest.raises(MismatchError, match=f"layer '0' gives {name}, not a tensor: name a layer"), Tap(net, ["0"]):
        net(x)
    assert not list(hooks(net))


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_hooks_go_also_when_the_block_raises(error: type[BaseException], x: Tensor):
    net = Net()
    with pytest.raises(error), Tap(net, ["first"]):
        assert len(list(hooks(net))) == 1
        raise error
    assert not list(hooks(net))


def test_an_error_of_the_model_is_not_replaced_by_one_of_the_tap():
    net = Net()
    with pytest.raises(RuntimeError, match="shape"), Tap(net, ["last"]):
        net(torch.zeros(5, 7))
    assert not list(hooks(net))


def test_hooks_of_others_stay(x: Tensor):
    net, seen = Net(), []
    net.first.register_forward_hook(lambda *_: seen.append(1))
    with Tap(net, ["first"]):
        net(x)
    net(x)
    assert len(seen) == 2


def test_a_layer_that_never_ran_is_named(x: Tensor):
    net = nn.ModuleDict({"used": nn.Linear(3, 3), "unused": nn.Linear(3, 3)})
    with pytest.raises(MismatchError, match="layer 'unused' of ModuleDict was never called"), Tap(net, ["used", "unused"]):
        net["used"](x)


def test_a_misspelt_path_names_the_nearest_and_the_side():
    with pytest.raises(RecipeError, match=r"^the student \(Net\) has no layer 'frist'; did you mean 'first'\?$"):
        Tap(Net(), ["first", "frist"], side="student")
    with pytest.raises(RecipeError, match=r"^the teacher \(Net\) has no layer 'q'; choices are between, first, last$"):
        check_paths(Net(), ["q"], "teacher")


def test_a_tap_serves_again_and_earlier_records_stay(x: Tensor):
    net = Net()
    tap = Tap(net, ["first"])
    with tap:
        net(x)
    earlier = tap.features
    with tap:
        net(2 * x)
    assert torch.equal(earlier["first"], net.first(x))
    assert torch.equal(tap.features["first"], net.first(2 * x))


def test_a_copy_of_a_model_that_was_tapped_is_its_own(x: Tensor):
    net = Net(nn.ReLU(inplace=True))
    with Tap(net, ["first"]) as tap:
        net(x)
    other = copy.deepcopy(net)
    nn.init.zeros_(other.first.weight)
    with Tap(other, ["first"]) as its:
        other(x)
    assert torch.equal(its.features["first"], other.first.bias.expand(5, 4))
    assert torch.equal(tap.features["first"], net.first(x))
    assert not list(hooks(other))
