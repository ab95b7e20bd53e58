"""Every model, found by name: a new file is in without a line here.

A model whose forward pass takes `edge_index` is a graph network: an example is then a node, which no edge binds to others but where a test draws some. One that
takes `segment` or `attention` reads rows of token ids, of a vocabulary of its classes, and answers each token by states and a head.
"""

import copy
import inspect
import math

import pytest
import torch
from torch import Tensor, nn

from limbeck.core.errors import MismatchError
from limbeck.core.knowledge import Hidden
from limbeck.core.lookup import build, find, names, options
from limbeck.core.tap import Tap

C = 7
WHOLE = [kind for kind in names("models") if not any(option.required for option in options(find("models", kind)).values())]
every = pytest.mark.parametrize("kind", WHOLE)  # what is made of another model (exits) must be told of which, and is tested by itself


def on_graphs(kind: str) -> bool:
    return "edge_index" in inspect.signature(find("models", kind).forward).parameters


def on_tokens(kind: str) -> bool:
    return bool({"segment", "attention"} & inspect.signature(find("models", kind).forward).parameters.keys())


def said(output: Tensor | Hidden) -> Tensor:
    return output.logits if isinstance(output, Hidden) else output


def made(kind: str, in_shape: tuple[int, ...] = (1, 8, 8), classes: int = C) -> nn.Module:
    return build("models", kind, {}, (math.prod(in_shape),) if on_graphs(kind) or on_tokens(kind) else in_shape, classes).eval()


def drawn(kind: str, n: int, *in_shape: int, edges: int = 0) -> tuple[Tensor, ...]:
    """What a model is called with: `n` examples, and for a graph network `edges` edges among them."""
    if on_tokens(kind):
        return (torch.randint(0, C, (n, math.prod(in_shape))),)
    x = torch.randn(n, *in_shape)
    return (x.flatten(1), torch.randint(0, n, (2, edges))) if on_graphs(kind) else (x,)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@every
@pytest.mark.parametrize("in_shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32)])
def test_answers_one_example_and_many_alike(kind: str, in_shape: tuple[int, ...]) -> None:
    model = made(kind, in_shape)
    x, *edges = drawn(kind, 3, *in_shape)
    with torch.no_grad():
        logits = said(model(x, *edges))
        assert torch.allclose(said(model(x[:1], *edges)), logits[:1], atol=1e-5)
        assert torch.equal(said(model(x, *edges)), logits)
    assert logits.shape == ((3, math.prod(in_shape), C) if on_tokens(kind) else (3, C))
    assert logits.dtype == torch.float32
    assert torch.isfinite(logits).all()
    assert logits.std() > 1e-4, "the logits must depend on the input and the class"


@every
def test_every_parameter_learns(kind: str) -> None:
    model = made(kind).train()
    said(model(*drawn(kind, 8, 1, 8, 8, edges=20))).square().sum().backward()
    unmoved = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not unmoved


@every
def test_a_deep_copy_and_a_restored_state_answer_alike(kind: str) -> None:
    model = made(kind).train()
    given = drawn(kind, 4, 1, 8, 8, edges=5)
    model(*given)  # batch statistics move
    model.eval()
    torch.manual_seed(1)
    restored = made(kind)
    with torch.no_grad():
        logits = said(model(*given))
        assert torch.equal(said(copy.deepcopy(model)(*given)), logits)
        assert not torch.equal(said(restored(*given)), logits)
        restored.load_state_dict(model.state_dict())
        assert torch.equal(said(restored(*given)), logits)


@every
def test_exports_with_a_free_batch(kind: str) -> None:
    if on_graphs(kind):
        pytest.skip("an exported file takes one input, and a graph network takes edges too")
    if on_tokens(kind):
        pytest.skip("states and a head are no tensor: a language model is exported with its logits multiplied out")
    model = made(kind)
    program = torch.export.export(model, (torch.randn(2, 1, 8, 8),), dynamic_shapes=({0: torch.export.Dim("n")},))
    for n in (1, 5):
        x = torch.randn(n, 1, 8, 8)
        assert torch.allclose(program.module()(x), model(x), atol=1e-5)


@pytest.mark.parametrize("kind", [kind for kind in names("models") if "of" not in options(find("models", kind))])  # one made of another has that one's names
def test_the_ends_of_its_stages_have_names(kind: str) -> None:
    model = made(kind)
    last = "layer1" if on_tokens(kind) else "head"
    with torch.no_grad(), Tap(model, ["layer1", last]) as tap:
        logits = model(*drawn(kind, 2, 1, 8, 8, edges=2))
    assert on_tokens(kind) or torch.equal(tap.features["head"], logits)
    assert tap.features["layer1"].shape[0] == 2


@every
def test_refuses_a_head_of_no_class(kind: str) -> None:
    with pytest.raises(MismatchError, match="0 classes"):
        made(kind, classes=0)
