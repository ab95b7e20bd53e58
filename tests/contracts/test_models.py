"""Every model, found by name: a new file is in without a line here."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from limbeck.core.errors import MismatchError
from limbeck.core.lookup import build, names
from limbeck.core.tap import Tap

C = 7
every = pytest.mark.parametrize("kind", names("models"))


def made(kind: str, in_shape: tuple[int, ...] = (1, 8, 8), **options: Any) -> nn.Module:
    torch.manual_seed(0)
    return build("models", kind, options, in_shape, C).eval()


@every
@pytest.mark.parametrize("in_shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32)])
def test_answers_one_example_and_many_alike(kind: str, in_shape: tuple[int, ...]) -> None:
    model = made(kind, in_shape)
    x = torch.randn(3, *in_shape)
    with torch.no_grad():
        logits = model(x)
        assert torch.allclose(model(x[:1]), logits[:1], atol=1e-5)
        assert torch.equal(model(x), logits)
    assert logits.shape == (3, C)
    assert logits.dtype == torch.float32
    assert torch.isfinite(logits).all()
    assert logits.std() > 1e-4, "the logits must depend on the input and the class"


@every
def test_every_parameter_learns(kind: str) -> None:
    model = made(kind).train()
    model(torch.randn(8, 1, 8, 8)).square().sum().backward()
    unmoved = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not unmoved


@every
def test_a_deep_copy_and_a_restored_state_answer_alike(kind: str) -> None:
    model = made(kind).train()
    x = torch.randn(4, 1, 8, 8)
    model(x)  # batch statistics move
    model.eval()
    torch.manual_seed(1)
    restored = build("models", kind, {}, (1, 8, 8), C).eval()
    with torch.no_grad():
        logits = model(x)
        assert torch.equal(copy.deepcopy(model)(x), logits)
        assert not torch.equal(restored(x), logits)
        restored.load_state_dict(model.state_dict())
        assert torch.equal(restored(x), logits)


@every
def test_exports_with_a_free_batch(kind: str) -> None:
    model = made(kind)
    program = torch.export.export(model, (torch.randn(2, 1, 8, 8),), dynamic_shapes=({0: torch.export.Dim("n")},))
    for n in (1, 5):
        x = torch.randn(n, 1, 8, 8)
        assert torch.allclose(program.module()(x), model(x), atol=1e-5)


@every
def test_the_ends_of_its_stages_have_names(kind: str) -> None:
    model = made(kind)
    with torch.no_grad(), Tap(model, ["layer1", "head"]) as tap:
        logits = model(torch.randn(2, 1, 8, 8))
    assert torch.equal(tap.features["head"], logits)
    assert tap.features["layer1"].shape[0] == 2


@every
def test_refuses_a_head_of_no_class(kind: str) -> None:
    with pytest.raises(MismatchError, match="0 classes"):
        build("models", kind, {}, (1, 8, 8), 0)
