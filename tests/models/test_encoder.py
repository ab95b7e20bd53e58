"""`encoder`: published parameters, padding that nobody sees, both of its answers, and what can be read."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.knowledge import Hidden
from limbeck.core.tap import Tap
from limbeck.models.encoder import Encoder

V, T, C = 19, 9, 3
SMALL: dict[str, Any] = {"dim": 8, "depth": 2, "heads": 2}
kinds = pytest.mark.parametrize(
    "how", [{}, {"norm": "pre"}, {"vocabulary": V}, {"vocabulary": V, "pool": "mean", "norm": "pre"}, {"vocabulary": V, "attention": "open"}]
)


def made(**how: Any) -> Encoder:
    model = Encoder((T,), C if "vocabulary" in how else V, **SMALL, **how).double().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model


def ids(*shape: int) -> Tensor:
    return torch.randint(0, V, shape)


def answer(said: Any) -> Tensor:
    return said.logits if isinstance(said, Hidden) else said


def test_the_parameters_of_distilbert_and_of_bert_without_what_it_has_not() -> None:
    with torch.device("meta"):
        masked = Encoder((512,), 30522, dim=768, depth=6, heads=12)
        bert = Encoder((512,), 2, vocabulary=30522, dim=768, depth=12, heads=12)
    assert sum(p.numel() for p in masked.parameters()) == 66_985_530
    pooler, segments, head = 768 * 768 + 768, 2 * 768, 2 * 768 + 2
    assert sum(p.numel() for p in bert.parameters()) == 109_482_240 - pooler - segments + head


@kinds
def test_padding_changes_nothing(how: dict[str, Any]) -> None:
    model, tokens = made(**how), ids(2, 5)
    attention = torch.zeros(2, T, dtype=torch.long)
    attention[:, :5] = 1
    with torch.no_grad():
        alone = answer(model(tokens))
        for filled in (ids(2, T - 5), ids(2, T - 5)):
            padded = answer(model(torch.cat([tokens, filled], 1), attention=attention))
            assert torch.allclose(padded[:, :5] if padded.ndim == 3 else padded, alone, atol=1e-12)
        assert not torch.allclose(answer(model(torch.cat([tokens, filled], 1)))[:, :1], alone[:, :1])
        assert torch.allclose(answer(model(tokens, attention=torch.ones(2, 5))), alone, atol=1e-12)


@kinds
def test_every_token_sees_every_other(how: dict[str, Any]) -> None:
    model, tokens = made(**how), ids(1, T)
    with torch.no_grad():
        before = answer(model(tokens))
        for at in range(T):
            other = tokens.clone()
            other[:, at] = (other[:, at] + 1) % V
            changed = (answer(model(other)) - before).abs().flatten(0, -2).amax(-1)
            assert (changed > 1e-9).all()


def test_its_two_answers() -> None:
    said = made()(ids(2, T))
    assert isinstance(said, Hidden)
    assert said.logits.shape == (2, T, V)
    assert said.bias is not None
    assert made(vocabulary=V)(ids(2, T)).shape == (2, C)


def test_the_mean_is_of_what_is_no_padding() -> None:
    model, tokens = made(vocabulary=V, pool="mean"), ids(2, T)
    attention = torch.tensor([[1] * 4 + [0] * 5, [1] * 9])
    with torch.no_grad(), Tap(model, ["norm", "head:in"]) as tap:
        model(tokens, attention=attention)
    states = tap.features["norm"]
    assert torch.allclose(tap.features["head:in"], torch.stack([states[0, :4].mean(0), states[1].mean(0)]))


def test_what_can_be_read() -> None:
    model = made(vocabulary=V, attention="open")
    paths = ["embed", "embed_norm", "blocks.1.attention.query", "layer1", "layer2", "head", "blocks.0.attention.softmax"]
    attention = torch.tensor([[1] * 4 + [0] * 5])
    with torch.no_grad(), Tap(model, paths) as tap:
        said = model(ids(1, T), attention=attention)
    probabilities = tap.features["blocks.0.attention.softmax"]
    assert probabilities.shape == (1, 2, T, T)
    assert not probabilities[..., 4:].any()
    assert torch.equal(tap.features["head"], said)
    assert tap.features["layer2"].shape == (1, T, 8)


@kinds
def test_every_parameter_learns_and_is_restored(how: dict[str, Any]) -> None:
    classes = C if "vocabulary" in how else V
    model, other, tokens = Encoder((T,), classes, **SMALL, **how), Encoder((T,), classes, **SMALL, **how).eval(), ids(4, T)
    answer(model(tokens)).square().sum().backward()
    assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]
    other.load_state_dict(model.state_dict())
    assert torch.equal(answer(other(tokens)), answer(model.eval()(tokens)))


def test_it_exports_with_a_free_batch(tmp_path: Path) -> None:
    model = made(vocabulary=V)
    program = torch.export.export(model, (ids(2, T), torch.ones(2, T, dtype=torch.long)), dynamic_shapes=({0: (n := torch.export.Dim("n"))}, {0: n}))
    tokens, attention = ids(5, T), torch.tensor([[1] * 4 + [0] * 5]).expand(5, -1)
    assert torch.allclose(program.module()(tokens, attention), model(tokens, attention=attention), atol=1e-12)


def test_what_is_refused() -> None:
    with pytest.raises(MismatchError, match="rows of token ids"):
        Encoder((1, 8, 8), C)
    for how in ({"norm": "none"}, {"pool": "max"}, {"vocabulary": 0}, {"heads": 3}):
        with pytest.raises(RecipeError):
            Encoder((T,), C, **{**SMALL, **how})
    with pytest.raises(MismatchError, match="10 tokens, and Encoder has positions for 9"):
        made()(ids(1, T + 1))
