"""Reading layers by path."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.tap import Survey, Tap, check_paths


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


@dataclass
class Said:
    """What a model may give."""

    loss: Tensor | None
    hidden: Tensor
    attention: Tensor | None = None


@dataclass(slots=True)
class Slotted:
    hidden: Tensor


class Named(NamedTuple):
    mean: Tensor
    spread: Tensor


def tapped(output: object, path: str) -> Tensor:
    net = nn.Sequential(Gives(output))
    with Tap(net, [path]) as tap:
        net(torch.zeros(1))
    return tap.features[path]


A, B = torch.randn(2, 3), torch.randn(2, 4)


@pytest.mark.parametrize(
    ("output", "path", "expected"),
    [
        ((A, B), "0:1", B),
        ([A, (B, A)], "0:1", B),
        ({"a": A, "b": B}, "0:b", B),
        ({"a": A, "b": B}, "0", A),
        (Said(None, A, B), "0", A),
        (Said(None, A, B), "0:attention", B),
        (Slotted(B), "0:hidden", B),
        (Slotted(B), "0", B),
        (Named(A, B), "0:spread", B),
        (Named(A, B), "0:1", B),
        ((None, B), "0", B),
    ],
)
def test_an_item_of_what_a_layer_gives(output: object, path: str, expected: Tensor):
    assert tapped(output, path) is expected


@pytest.mark.parametrize(
    ("output", "path", "told"),
    [
        ((A, B), "0:2", r"'0:2': there is no '2' in what the layer gives \(2 items, from 0\)"),
        (A, "0:1", r"there is no '1' in what the layer gives \(Tensor\)"),
        (Said(None, A), "0:hiden", r"no 'hiden' in .* \(loss, hidden, attention\).*; did you mean 'hidden'\?"),
        ({"a": A}, "0:b", r"no 'b' in .* \(a\).*choices are a"),
        (
            Said(None, A),
            "0:attention",
            r"layer '0:attention' gives None there: .*need_weights=True \(torch\), attn_implementation='eager' with output_attentions",
        ),
        ((A, None), "0:1", "gives None there"),
        ((A, "b"), "0:1", "gives tuple, not a tensor"),
    ],
)
def test_an_item_that_is_not_there_is_refused(output: object, path: str, told: str):
    with pytest.raises(MismatchError, match=told) as caught:
        tapped(output, path)
    assert "\n" not in str(caught.value)


def test_the_input_of_a_layer_is_read_also_when_it_has_a_name(x: Tensor):
    class ByName(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.between(input=self.first(x)))

    net = ByName(nn.ReLU(inplace=True))
    with Tap(net, ["between:in", "last:in"]) as tap:
        net(x)
    assert torch.equal(tap.features["between:in"], net.first(x))
    assert torch.equal(tap.features["last:in"], net.first(x).relu())
    assert not list(hooks(net))


def test_attention_weights_of_torch(x: Tensor):
    attention = nn.MultiheadAttention(4, 2, batch_first=True)
    y = torch.randn(2, 3, 4)
    with Tap(attention, [":1"]) as tap:
        attention(y, y, y)
    assert tap.features[":1"].shape == (2, 3, 3)
    with pytest.raises(MismatchError, match="need_weights=True"), Tap(attention, [":1"]):
        attention(y, y, y, need_weights=False)
    assert not list(hooks(attention))


def test_a_hugging_face_model():
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=11, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8, output_attentions=True, attn_implementation="eager"
    )
    net = transformers.BertModel(config).eval()
    paths = ["", ":pooler_output", "encoder", "encoder:last_hidden_state", "encoder.layer.0", "encoder.layer.1.attention.self:1", "encoder.layer.1:in"]
    ids = torch.randint(0, 11, (2, 5))
    with Tap(net, paths) as tap:
        said = net(ids)
    last = said.last_hidden_state
    assert all(torch.equal(tap.features[path], last) for path in ("", "encoder", "encoder:last_hidden_state"))
    assert torch.equal(tap.features[":pooler_output"], said.pooler_output)
    assert torch.equal(tap.features["encoder.layer.1.attention.self:1"], said.attentions[1])
    assert torch.equal(tap.features["encoder.layer.0"], tap.features["encoder.layer.1:in"])
    with pytest.raises(MismatchError, match="did you mean 'last_hidden_state'"), Tap(net, ["encoder:last_hidden"]):
        net(ids)


class Checkpointed(Net):
    """What stands between runs again in the backward pass."""

    def __init__(self, *, reentrant: bool) -> None:
        super().__init__(nn.Sequential(nn.Linear(4, 4), nn.Tanh()))
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        return self.last(checkpoint(self.between, self.first(x), use_reentrant=self.reentrant))


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("copied", [False, True])
def test_a_checkpointed_layer_has_the_right_gradient(x: Tensor, inside: bool, copied: bool):
    net = Checkpointed(reentrant=False)
    paths = ["between.0", "between.1:in", "between"]
    with Tap(net, paths, copy=copied) as tap:
        out = net(x)
        record = dict(tap.features)
        if inside:
            (out.sum() + sum(tap.features[path].square().sum() for path in paths)).backward()
            assert all(tap.features[path] is record[path] for path in paths), "what the backward pass runs again is no record"
    if not inside:
        (out.sum() + sum(tap.features[path].square().sum() for path in paths)).backward()
    plain = copy.deepcopy(net)
    plain.zero_grad()
    hidden = plain.between[0](plain.first(x))  # pyright: ignore[reportIndexIssue]
    (plain.last(hidden.tanh()).sum() + 2 * hidden.square().sum() + hidden.tanh().square().sum()).backward()
    for one, other in zip(net.parameters(), plain.parameters(), strict=True):
        assert one.grad is not None and other.grad is not None
        assert torch.allclose(one.grad, other.grad, rtol=1e-5)


def test_a_layer_within_a_reentrant_checkpoint_is_refused(x: Tensor):
    net = Checkpointed(reentrant=True)
    for path in ("between.0", "between.0:in"):
        with pytest.raises(MismatchError, match=rf"layer '{path}' of the student ran without gradients.*use_reentrant=False"), Tap(net, [path], side="student"):
            net(x)
        assert not list(hooks(net))
    with Tap(net, ["first", "last:in"]) as tap:
        net(x)
    assert tap.features["last:in"].requires_grad, "what is outside can be read"
    with torch.no_grad(), Tap(net, ["between.0"]) as tap, pytest.warns(UserWarning, match="None of the inputs have requires_grad"):
        net(x)
    assert torch.equal(tap.features["between.0"], net.between[0](net.first(x)))  # pyright: ignore[reportIndexIssue]


@pytest.fixture
def one_process() -> Iterator[None]:
    store = dist.HashStore()
    dist.init_process_group("gloo", rank=0, world_size=1, store=store)
    yield
    dist.destroy_process_group()


def test_a_model_in_ddp_is_read_by_either_path(x: Tensor, one_process: None):
    net = Net()
    wrapped = nn.parallel.DistributedDataParallel(net)
    with Tap(wrapped, ["first", "module.between", "last:in"]) as tap:
        wrapped(x)
    assert torch.equal(tap.features["first"], net.first(x))
    assert torch.equal(tap.features["module.between"], tap.features["last:in"])
    tap.features["first"].sum().backward()
    assert net.first.weight.grad is not None
    with Tap(net, ["module.first"]) as bare:
        net(x)
    assert torch.equal(bare.features["module.first"], net.first(x)), "a path of the wrapped model names the bare one's layer"
    with pytest.raises(RecipeError, match=r"no layer 'module.frist'; did you mean 'first'"):
        check_paths(wrapped, ["module.frist"], "student")


def test_a_layer_that_is_called_module_keeps_its_name(x: Tensor):
    net = nn.Sequential()
    net.add_module("module", nn.Sequential(nn.Linear(3, 4)))
    net.add_module("0", nn.Linear(4, 2))
    with Tap(net, ["module.0", "0"]) as tap:
        net(x)
    assert (tap.features["module.0"].shape, tap.features["0"].shape) == ((5, 4), (5, 2))


@pytest.fixture
def compiled() -> Iterator[Callable[[nn.Module], Any]]:
    torch.compiler.reset()
    yield lambda net: torch.compile(net, backend="aot_eager")
    torch.compiler.reset()


@pytest.mark.parametrize("kind", [Net, Functional, AddsInPlace])
def test_a_compiled_model_is_read_before_what_follows_overwrites_it(kind: type[Net], x: Tensor, compiled: Callable[[nn.Module], Any]):
    net = kind()
    model = compiled(net)
    with Tap(model, ["first", "_orig_mod.last:in"]) as tap:
        out = model(x)
    assert torch.allclose(tap.features["first"], net.first(x))
    assert torch.allclose(net.last(tap.features["_orig_mod.last:in"]), out)
    tap.features["first"].square().sum().backward()
    assert net.first.weight.grad is not None
    assert torch.allclose(net.first.weight.grad, (2 * net.first(x)).T @ x, atol=1e-5)
    assert not list(hooks(model))


def test_a_compiled_model_is_compiled_once_for_each_tap(x: Tensor):
    torch.compiler.reset()
    graphs: list[Any] = []

    def count(graph: Any, _inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    net = Net()
    model: Any = torch.compile(net, backend=count)
    with Tap(model, []):
        model(x)
    for paths in (["first"], ["first", "between"], ["first"], []) * 3:
        with Tap(model, paths) as tap:
            model(x)
        assert all(torch.allclose(tap.features[path], net.get_submodule("first")(x).relu_() if path == "between" else net.first(x)) for path in paths)
        assert list(tap.features) == paths
    assert len(graphs) == 3, "one graph each for: nothing, one layer, two layers"
    torch.compiler.reset()


def test_a_part_that_is_compiled_and_one_that_is_compiled_in_place(x: Tensor, compiled: Callable[[nn.Module], Any]):
    net = nn.Sequential(compiled(nn.Sequential(nn.Linear(3, 4), nn.ReLU())), nn.Linear(4, 2))
    net[1].compile(backend="aot_eager")
    with Tap(net, ["0", "0.0", "0._orig_mod.1", "1"]) as tap, Survey(net) as survey:
        out = net(x)
    assert torch.equal(tap.features["1"], out)
    assert torch.equal(tap.features["0"], tap.features["0.0"].relu())
    assert torch.equal(tap.features["0"], tap.features["0._orig_mod.1"])
    assert survey.shapes == {"0.0": (5, 4), "0.1": (5, 4), "0": (5, 4), "1": (5, 2)}


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # torch's own, where a graph goes on with one
def test_an_error_in_a_compiled_model_s_tap_is_its_own(x: Tensor, compiled: Callable[[nn.Module], Any]):
    model = compiled(nn.Sequential(nn.Linear(3, 3), Gives((A, None))))
    with pytest.raises(MismatchError, match="gives None there"), Tap(model, ["1:1"]):
        model(x)
    assert not list(hooks(model))
    with pytest.raises(MismatchError, match=r"layer 'first' of OptimizedModule was never called.*torch.compiler.reset"), Tap(compiled(Net()), ["first"]):
        pass


def test_a_survey_names_every_layer_in_the_order_they_ran(x: Tensor):
    net = Net(nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True)))
    with Survey(net) as survey:
        net(x)
    assert list(survey.shapes) == ["first", "between.0", "between.1", "between", "last"]
    assert survey.shapes["last"] == (5, 2)
    assert not list(hooks(net))
    with pytest.raises(ValueError), Survey(net):
        raise ValueError
    assert not list(hooks(net))
    with Survey(flat := nn.Sequential(nn.Flatten(), nn.Sequential(nn.Identity(), nn.Linear(3, 2)), nn.Identity())) as begins:
        flat(x)
    assert list(begins.shapes) == ["1.1", "1", "2"], "what only reshapes the input is no layer"
    with Survey(Twice()) as twice:
        twice._model(x)  # pyright: ignore[reportOptionalCall]
    assert list(twice.shapes) == ["layer"], "the first of its names"
    with Survey(None) as nothing:
        pass
    assert nothing.shapes == {}
