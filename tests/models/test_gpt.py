"""`gpt`: published parameters, nothing seen of what comes, documents apart, and generation that is recomputation."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.knowledge import Hidden
from limbeck.core.tap import Tap
from limbeck.models._generate import within
from limbeck.models.gpt import GPT

V, T = 23, 12
SMALL: dict[str, Any] = {"dim": 16, "depth": 2, "heads": 2}
positions = pytest.mark.parametrize("how", [{"positions": "learned"}, {"positions": "rope"}, {"attention": "open", "tied": False}])


def made(**how: Any) -> GPT:
    model = GPT((T,), V, **SMALL, **how).double().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def ids(*shape: int) -> Tensor:
    return torch.randint(0, V, shape)


def test_the_parameters_of_gpt_2() -> None:
    with torch.device("meta"):
        for dim, depth, heads, parameters in ((768, 12, 12, 124_439_808), (1024, 24, 16, 354_823_168)):
            model = GPT((1024,), 50257, dim=dim, depth=depth, heads=heads)
            assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("learned", [True, False])
@pytest.mark.parametrize("r", [2, 4])
def test_parameters_by_the_formula(tied: bool, learned: bool, r: int) -> None:
    model = GPT((T,), V, dim=16, depth=3, heads=2, mlp_ratio=float(r), positions="learned" if learned else "rope", tied=tied)
    D = 16
    expected = V * D + (0 if tied else V * D) + (T * D if learned else 0) + 3 * ((4 + 2 * r) * D * D + (9 + r) * D) + 2 * D
    assert sum(p.numel() for p in model.parameters()) == expected


@positions
def test_it_answers_states_and_a_head(how: dict[str, Any]) -> None:
    model = made(**how)
    said = model(ids(3, T))
    assert isinstance(said, Hidden)
    assert said.states.shape == (3, T, 16)
    assert said.logits.shape == (3, T, V)
    assert said.weight is (model.head.weight if model.head is not None else model.embed.weight)


@positions
def test_a_later_token_changes_nothing_before_it(how: dict[str, Any]) -> None:
    model, tokens = made(**how), ids(2, T)
    with torch.no_grad():
        before = model(tokens).states
        for at in (1, 6, T - 1):
            other = tokens.clone()
            other[:, at] = (other[:, at] + 1) % V
            after = model(other).states
            assert torch.equal(after[:, :at], before[:, :at])
            assert not torch.allclose(after[:, at:], before[:, at:])
        assert torch.allclose(model(tokens[:, :5]).states, before[:, :5], atol=1e-12), "and shorter rows say the same"


@positions
def test_documents_packed_into_a_row_are_read_as_if_alone(how: dict[str, Any]) -> None:
    model = made(**how)
    first, second, third = ids(1, 5), ids(1, 4), ids(1, 3)
    row = torch.cat([first, second, third], 1)
    segment = torch.tensor([[1] * 5 + [2] * 4 + [3] * 3])
    with torch.no_grad():
        alone = torch.cat([model(one).states for one in (first, second, third)], 1)
        for position in (None, within(segment)):
            assert torch.allclose(model(row, segment=segment, position=position).states, alone, atol=1e-12)
        assert not torch.allclose(model(row).states, alone)


@positions
def test_padding_on_the_left_is_padding_on_the_right(how: dict[str, Any]) -> None:
    model, tokens = made(**how), ids(2, 7)
    left, right = torch.zeros(2, T, dtype=torch.long), torch.zeros(2, T, dtype=torch.long)
    left[:, T - 7 :], right[:, :7] = tokens, tokens
    segment = torch.zeros(2, T, dtype=torch.long)
    segment[:, T - 7 :] = 1
    with torch.no_grad():
        said = model(left, segment=segment).states
        assert torch.allclose(said[:, T - 7 :], model(right).states[:, :7], atol=1e-12)
        assert torch.isfinite(said).all(), "padding has nothing else to look at, and is no NaN"


@positions
def test_the_likeliest_tokens_are_those_of_reading_all_again(how: dict[str, Any]) -> None:
    model, prompt = made(**how), ids(3, 4)
    with torch.no_grad():
        slow = prompt
        for _ in range(8):
            slow = torch.cat([slow, model(slow).logits[:, -1:].argmax(-1)], 1)
    assert torch.equal(model.generate(prompt, 8, temperature=0), slow)
    assert torch.equal(model.generate(prompt, 8, top_k=1), slow), "among one there is no choice"
    assert torch.equal(model.generate(prompt, 0), prompt)


@positions
def test_prompts_of_several_lengths_are_continued_as_if_alone(how: dict[str, Any]) -> None:
    model, short, long = made(**how), ids(1, 2), ids(1, 5)
    prompt = torch.cat([torch.cat([torch.zeros(1, 3, dtype=torch.long), short], 1), long])
    segment = torch.tensor([[0, 0, 0, 1, 1], [1, 1, 1, 1, 1]])
    both = model.generate(prompt, 6, temperature=0, segment=segment)
    assert torch.equal(both[:1, 3:], model.generate(short, 6, temperature=0))
    assert torch.equal(both[1:], model.generate(long, 6, temperature=0))


def test_drawing_follows_the_probabilities_the_temperature_and_the_generator() -> None:
    model, count = made(), 4_000
    prompt = ids(1, 3)
    with torch.no_grad():
        logits = model(prompt).logits[0, -1]
    for temperature, top_k in ((1.0, None), (2.0, 4)):
        expected = (logits / temperature).softmax(-1)
        if top_k is not None:
            expected = torch.where(expected >= expected.topk(top_k).values[-1], expected, 0.0)
            expected = expected / expected.sum()
        generator = torch.Generator().manual_seed(0)
        drawn = model.generate(prompt.expand(count, -1), 1, temperature=temperature, top_k=top_k, generator=generator)[:, -1]
        share = drawn.bincount(minlength=V) / count
        assert ((share - expected).abs() <= 5 * (expected * (1 - expected) / count).sqrt()).all()
        again = model.generate(prompt.expand(count, -1), 1, temperature=temperature, top_k=top_k, generator=torch.Generator().manual_seed(0))
        assert torch.equal(again[:, -1], drawn)


def test_after_its_end_a_row_goes_on_with_it() -> None:
    model, prompt = made(), ids(6, 3)
    free = model.generate(prompt, 9, temperature=0)
    end = int(free[0, 5])
    bound = model.generate(prompt, 9, temperature=0, eos=end)
    for row, other in zip(bound.tolist(), free.tolist(), strict=True):
        new = other[3:]
        stop = new.index(end) if end in new else len(new)
        assert row[3:] == new[:stop] + [end] * (len(new) - stop)


def test_what_can_be_read() -> None:
    model = made(attention="open")
    paths = ["embed", "blocks.0", "blocks.1.attention", "blocks.1.attention.softmax", "blocks.1.attention.value", "blocks.0.mlp", "layer1", "layer2", "norm"]
    with torch.no_grad(), Tap(model, paths) as tap:
        said = model(ids(2, 5))
    assert tap.features["blocks.1.attention.softmax"].shape == (2, 2, 5, 5)
    assert torch.equal(tap.features["norm"], said.states)
    assert torch.equal(tap.features["layer1"], tap.features["blocks.0"])
    assert {tuple(tap.features[path].shape) for path in paths if "softmax" not in path} == {(2, 5, 16)}


class Logits(nn.Module):
    def __init__(self, model: GPT) -> None:
        super().__init__()
        self.model = model

    def forward(self, input: Tensor) -> Tensor:
        return self.model(input).logits


@pytest.mark.parametrize("positions", ["learned", "rope"])
def test_its_logits_export_with_a_free_batch(positions: Any) -> None:
    model = Logits(made(positions=positions))
    program = torch.export.export(model, (ids(2, T),), dynamic_shapes=({0: torch.export.Dim("n")},))
    for n in (1, 5):
        tokens = ids(n, T)
        assert torch.allclose(program.module()(tokens), model(tokens), atol=1e-12)


@pytest.mark.parametrize("tied", [True, False])
def test_every_parameter_learns_and_is_restored(tied: bool) -> None:
    model = GPT((T,), V, **SMALL, tied=tied, dropout=0.1)
    model(ids(4, T)).logits.square().sum().backward()
    assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]
    other, tokens = GPT((T,), V, **SMALL, tied=tied).eval(), ids(2, T)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(tokens).logits, model.eval()(tokens).logits)


def test_what_is_refused() -> None:
    for in_shape in ((1, 8, 8), (0,), ()):
        with pytest.raises(MismatchError, match="rows of token ids"):
            GPT(in_shape, V)
    with pytest.raises(RecipeError, match="did you mean 'learned'"):
        GPT((T,), V, positions="learnt")  # pyright: ignore[reportArgumentType]
    with pytest.raises(RecipeError, match="rope turns pairs"):
        GPT((T,), V, dim=6, heads=2, positions="rope")
    model = made()
    with pytest.raises(MismatchError, match=r"13 tokens, and GPT has positions for 12"):
        model(ids(1, 13))
    for length, tokens in ((0, 3), (5, 8), (3, -1)):
        with pytest.raises(MismatchError, match=f"a prompt of {length} tokens and {tokens} more"):
            model.generate(ids(1, length), tokens)
    bad: list[dict[str, Any]] = [{"temperature": -1.0}, {"temperature": float("nan")}, {"top_k": 0}, {"top_k": V + 1}]
    for how in bad:
        with pytest.raises(RecipeError, match="temperature is"):
            model.generate(ids(1, 3), 2, **how)
