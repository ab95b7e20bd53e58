"""`hf`: what it answers is what the model of transformers answers, whatever the architecture; documents apart are documents alone."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.pretrained import CONFIGS, V, folder, hf, told
from torch import Tensor

from limbeck.core.errors import DataError, MismatchError, RecipeError
from limbeck.core.knowledge import Dense, Hidden
from limbeck.models.hf import HF

T = 9
CAUSAL = ["gpt2", "llama", "mistral", "qwen3", "gemma2", "cohere", "granite", "opt", "bloom", "mamba"]
MASKED = ["bert", "distilbert", "roberta", "albert", "modernbert"]


def ids(*shape: int) -> Tensor:
    return torch.randint(3, V, shape)


def same(found: Tensor, wanted: Tensor) -> bool:
    return torch.allclose(found, wanted, atol=2e-5 * float(wanted.abs().max()))


@pytest.mark.parametrize(("kind", "head"), [*((one, "causal") for one in CAUSAL), *((one, "masked") for one in MASKED)])
def test_its_states_and_head_are_the_models_own_logits(kind: str, head: str) -> None:
    model, x = hf(kind, head), ids(2, T)
    with torch.no_grad():
        said = model(x)
        own = model.model(input_ids=x).logits
    assert isinstance(said, Hidden)
    assert same(said.logits, own)
    assert said.weight is model.model.get_output_embeddings().weight
    assert not model.said


def test_scale_and_cap_of_the_logits_are_found() -> None:
    x = ids(1, T)
    assert hf("gemma2", "causal")(x).softcap == 5.0
    assert hf("cohere", "causal")(x).scale == 0.0625
    assert hf("granite", "causal")(x).scale == 1 / 3
    assert (hf("llama", "causal")(x).scale, hf("llama", "causal")(x).softcap) == (1.0, None)


def test_nothing_but_the_head_is_left_out_of_the_gradient() -> None:
    model, x = hf("llama", "causal"), ids(2, T)
    own = copy.deepcopy(model.model)
    own(input_ids=x).logits.square().sum().backward()
    model(x).logits.square().sum().backward()
    for (name, one), other in zip(model.model.named_parameters(), own.parameters(), strict=True):
        assert one.grad is not None and other.grad is not None, name
        assert same(one.grad, other.grad), name


class Twice(torch.nn.Linear):
    """A head that is no plain linear layer."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * 2


def test_an_unknown_head_is_multiplied_out_by_the_model_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    plain = transformers.LlamaForCausalLM.__init__

    def other(self: Any, *given: Any, **named: Any) -> None:
        plain(self, *given, **named)
        self.lm_head.__class__ = Twice

    monkeypatch.setattr(transformers.LlamaForCausalLM, "__init__", other)
    model, x = hf("llama", "causal"), ids(2, T)
    said = model(x)
    assert isinstance(said, Dense)
    assert torch.equal(said.logits, model.model(input_ids=x).logits)
    assert "multiplied out whole" in model.said[0]


def test_a_head_that_is_changed_later_is_no_longer_taken_for_plain() -> None:
    model, x = hf("llama", "causal"), ids(2, T)
    model.model.lm_head.__class__ = Twice
    assert torch.equal(model(x).logits, model.model(input_ids=x).logits)


@pytest.mark.parametrize("kind", [one for one in CAUSAL if one not in ("bloom", "mamba")])
def test_documents_side_by_side_and_padding_on_the_left_are_as_alone(kind: str) -> None:
    model, x = hf(kind, "causal"), ids(2, T)
    segment = torch.tensor([[1] * 3 + [2] * 6, [0] * 4 + [1] * 5])
    position = torch.tensor([[0, 1, 2, 0, 1, 2, 3, 4, 5], [0, 0, 0, 0, 0, 1, 2, 3, 4]])
    with torch.no_grad():
        for told_place in (position, None):
            said = model(x, segment, told_place).states
            assert same(said[0, :3], model(x[:1, :3]).states[0])
            assert same(said[0, 3:], model(x[:1, 3:]).states[0])
            assert same(said[1, 4:], model(x[1:, 4:]).states[0])
        assert not same(model(x).states[0, 3:], model(x[:1, 3:]).states[0]), "the documents would be told apart without being kept apart"


@pytest.mark.parametrize("kind", ["bloom", "mamba"])
def test_what_does_not_keep_documents_apart_says_so(kind: str) -> None:
    with pytest.raises(MismatchError, match=f"a model of type {kind} does not keep documents in one row apart.* packing: padded"):
        hf(kind, "causal")(ids(1, 4), torch.tensor([[1, 1, 2, 2]]))


def test_a_window_is_kept_where_documents_share_rows() -> None:
    """Mistral's window of 4: the state of the last of 6 tokens does not depend on the first."""
    model, x = hf("mistral", "causal", config=told("mistral", num_hidden_layers=1)), ids(1, T)
    other = x.clone()
    other[0, 3] = (x[0, 3] + 1) % V
    segment = torch.tensor([[1] * 3 + [2] * 6])
    with torch.no_grad():
        assert torch.equal(model(x, segment).states[0, -1], model(other, segment).states[0, -1])
        assert not torch.equal(model(x, segment).states[0, 4], model(other, segment).states[0, 4])


@pytest.mark.parametrize("kind", MASKED)
def test_padding_is_not_looked_at(kind: str) -> None:
    model, x = hf(kind, "masked"), ids(1, T)
    padded = torch.cat([x, torch.full((1, 4), CONFIGS[kind].get("pad_token_id", 0))], 1)
    with torch.no_grad():
        said = model(padded, attention=torch.tensor([[1] * T + [0] * 4])).states
        assert same(said[:, :T], model(x).states)


@pytest.mark.parametrize("kind", ["bert", "distilbert", "roberta", "gpt2", "llama"])
def test_a_classifier_answers_rows(kind: str) -> None:
    model, x = hf(kind, "classification", classes=5), ids(2, T)
    with torch.no_grad():
        said = model(x, attention=torch.ones_like(x))
        assert said.shape == (2, 5)
        assert torch.equal(said, model.model(input_ids=x, attention_mask=torch.ones_like(x)).logits)
        padded = torch.cat([x, torch.full((2, 3), CONFIGS[kind].get("pad_token_id", 0))], 1)
        assert same(model(padded, attention=(torch.arange(T + 3) < T).long().expand(2, -1)), said)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma2", "opt", "bloom", "mamba"])
def test_what_is_written_is_what_reading_all_again_would_write(kind: str) -> None:
    model, x = hf(kind, "causal"), ids(2, 4)
    wanted = x
    for _ in range(5):
        wanted = torch.cat([wanted, model(wanted).logits[:, -1].argmax(-1)[:, None]], 1)
    assert torch.equal(model.generate(x, 5, temperature=0), wanted)
    assert model.keeps == (kind != "mamba")


def test_prompts_of_several_lengths_are_written_on_as_alone() -> None:
    model, x = hf("gpt2", "causal"), ids(2, 4)
    segment = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])
    made = model.generate(x, 5, temperature=0, segment=segment)
    assert torch.equal(made[:1], model.generate(x[:1], 5, temperature=0))
    assert torch.equal(made[1:, 2:], model.generate(x[1:, 2:], 5, temperature=0))
    stop = int(made[0, 4])
    ended = model.generate(x, 5, temperature=0, segment=segment, eos=stop)
    assert (ended[0, 4:] == stop).all()


def test_a_reading_goes_on_with_other_rows() -> None:
    model, x = hf("llama", "causal"), ids(3, 5)
    read = model.reading(torch.ones(3, 6, dtype=torch.int64))
    with torch.no_grad():
        read(x[:, :4])
        read.take(torch.tensor([2, 0]))
        found = read(x[[2, 0], 4:])
        assert same(found.logits, model(x[[2, 0]]).logits[:, -1])


@pytest.mark.parametrize(("kind", "head"), [("gpt2", "causal"), ("llama", "causal"), ("bert", "masked"), ("distilbert", "classification")])
def test_a_folder_is_opened_and_what_is_kept_needs_it_no_more(kind: str, head: str, tmp_path: Path) -> None:
    import transformers

    place = folder(tmp_path / "there", kind, head, **({"num_labels": 3} if head == "classification" else {}))
    classes = 3 if head == "classification" else V
    model, x = HF((16,), classes, of=str(place), head=head).eval(), ids(2, T)  # pyright: ignore[reportArgumentType]
    autos = {"causal": "AutoModelForCausalLM", "masked": "AutoModelForMaskedLM", "classification": "AutoModelForSequenceClassification"}
    own = getattr(transformers, autos[head]).from_pretrained(place).eval()
    again = HF((16,), classes, **model.options).eval()
    again.load_state_dict(model.state_dict())
    with torch.no_grad():
        wanted = own(input_ids=x).logits
        for one in (model, again):
            said = one(x)
            assert torch.equal(said if isinstance(said, Tensor) else said.logits, wanted)
    assert model.plain
    begun = HF((16,), classes, of=str(place), head=head, pretrained=False)  # pyright: ignore[reportArgumentType]
    assert not torch.equal(next(begun.parameters()), next(model.parameters()))


def test_a_tied_weight_is_kept_once() -> None:
    model = hf("gpt2", "causal")
    kept = model.state_dict()
    assert "model.transformer.wte.weight" in kept and "model.lm_head.weight" not in kept
    other = hf("gpt2", "causal")
    with torch.no_grad():
        next(other.parameters()).zero_()
    outer = torch.nn.ModuleDict({"student": other})
    outer.load_state_dict({f"student.{name}": value for name, value in kept.items()})
    assert all(torch.equal(one, two) for one, two in zip(model.parameters(), other.parameters(), strict=True))
    assert other.model.lm_head.weight is other.model.transformer.wte.weight


def test_a_classifier_of_a_model_that_was_none_begins_its_head_anew(tmp_path: Path) -> None:
    place = folder(tmp_path / "there", "bert", "masked")
    model = HF((16,), 3, of=str(place), head="classification")
    assert any("classifier.weight" in line and "begins anew" in line for line in model.said)
    assert any("not used" in line for line in model.said)


def test_bfloat16_weights_are_held_as_such() -> None:
    model, x = hf("llama", "causal", dtype="bfloat16"), ids(2, T)
    said = model(x)
    assert isinstance(said, Hidden) and said.states.dtype == torch.bfloat16
    assert torch.allclose(said.logits, model.model(input_ids=x).logits, atol=0.05)
    model(x, torch.tensor([[1] * 4 + [2] * 5] * 2))


def test_a_pickle_is_refused_with_the_way_out(tmp_path: Path) -> None:
    place = folder(tmp_path / "there", "gpt2", "causal")
    (place / "model.safetensors").rename(place / "pytorch_model.bin")
    with pytest.raises(DataError, match=r"only pytorch_model.bin, a pickle, which is never loaded: convert it .*save_pretrained\(FOLDER\)"):
        HF((16,), V, of=str(place), head="causal")


@pytest.mark.parametrize(
    ("options", "error", "told_of"),
    [
        ({"config": told("llama", vocab_size=40)}, MismatchError, r"vocabulary has 67 tokens, and config embeds 40: use the model's own tokenizer"),
        ({"context": 33}, MismatchError, "rows of 33 tokens, and config has positions for 32: lower the task's context to 32"),
        ({"config": told("llama", hiden_size=40)}, RecipeError, "no option 'hiden_size'; did you mean 'hidden_size'"),
        ({"config": {"model_type": "lama"}}, RecipeError, "model_type 'lama'.*did you mean 'llama'"),
        ({"config": {}}, RecipeError, "model_type: llama"),
        ({"config": {"model_type": "mine", "auto_map": {}}}, RecipeError, "code of its own, which is never run"),
        ({"config": told("bloom"), "attention": "sdpa"}, RecipeError, "attention: eager"),
        ({"of": "/nowhere"}, DataError, "/nowhere is no folder"),
        ({"head": None}, RecipeError, "causal, masked or classification"),
        ({"head": "casual"}, RecipeError, "did you mean 'causal'"),
        ({"head": "masked"}, RecipeError, "LlamaConfig has no head for masked answers"),
        ({"head": "classification", "config": told("llama", pad_token_id=None)}, RecipeError, "pad_token_id"),
    ],
)
def test_what_cannot_be_meant_is_said(options: dict[str, Any], error: type[Exception], told_of: str) -> None:
    with pytest.raises(error, match=told_of):
        hf("llama", options.pop("head", "causal"), **options)


def test_roberta_has_positions_after_that_of_padding() -> None:
    hf("roberta", "masked", context=30)
    with pytest.raises(MismatchError, match="positions for 30"):
        hf("roberta", "masked", context=31)


def test_a_folder_that_lacks_a_layer_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    place = folder(tmp_path / "there", "gpt2", "causal")
    kept = {name: value for name, value in load_file(place / "model.safetensors").items() if "h.1." not in name}
    save_file(kept, place / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DataError, match=r"lacks 12 of the model's weights, transformer\.h\.1"):
        HF((16,), V, of=str(place), head="causal")
