"""A model with exits answers on the way, and stops there when it is asked to."""

import copy
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from limbeck.core.errors import LimbeckError, MismatchError, RecipeError
from limbeck.core.lookup import build
from limbeck.export.onnx import Onnx
from limbeck.measure.size import macs
from limbeck.models.exits import Exits

SHAPES: dict[str, tuple[int, ...]] = {"cnn": (1, 8, 8), "resnet": (3, 8, 8), "wrn": (3, 8, 8), "vit": (1, 8, 8), "mlp": (1, 8, 8)}
OPTIONS: dict[str, dict[str, Any]] = {"cnn": {"width": 4}, "resnet": {"depth": 8}, "wrn": {"depth": 10, "width": 1}, "vit": {}, "mlp": {"widths": [9, 8, 6]}}
every = pytest.mark.parametrize("kind", list(SHAPES))


def made(kind: str = "cnn", at: list[str] | None = None, **options: Any) -> Exits:
    torch.manual_seed(0)
    told = {"of": {"kind": kind, **OPTIONS[kind]}, "at": at or ["layer1", "layer2"], **options}
    return build("models", "exits", told, in_shape=SHAPES[kind], classes=5)


def drawn(kind: str = "cnn", n: int = 3) -> Tensor:
    return torch.randn(n, *SHAPES[kind], generator=torch.Generator().manual_seed(1))


@every
def test_every_exit_answers_and_learns_and_main_is_the_model_as_it_was(kind: str) -> None:
    model = made(kind).train()
    torch.manual_seed(0)
    plain = build("models", kind, OPTIONS[kind], in_shape=SHAPES[kind], classes=5).train()
    assert all(torch.equal(one, other) for one, other in zip(plain.state_dict().values(), model.of.state_dict().values(), strict=True))
    torch.manual_seed(2)
    answers = model(drawn(kind))
    torch.manual_seed(2)
    assert torch.equal(plain(drawn(kind)), answers["main"])
    assert list(answers) == ["main", "exit1", "exit2"] and {tuple(one.shape) for one in answers.values()} == {(3, 5)}
    sum(one.square().sum() for one in answers.values()).backward()  # pyright: ignore[reportAttributeAccessIssue]
    assert not [name for name, one in model.named_parameters() if one.grad is None]


@every
def test_until_an_exit_is_the_same_answer_and_cheaper(kind: str) -> None:
    model = made(kind).eval()
    x = drawn(kind)
    with torch.no_grad():
        whole = model(x)
        found = {name: model.until(name, x) for name in model.names}
    assert model.names == ("exit1", "exit2", "main")
    assert all(torch.equal(found[name], whole[name]) for name in model.names)
    first, second, main = (macs(model, x, ask=lambda _model, name=name: model.until(name, x)) for name in model.names)
    heads = sum(macs(model, x, ask=lambda _model, name=name: model.until(name, x)) for name in model.exits)
    assert first < second < main + heads and main < macs(model, x, ask=lambda _model: model(x))
    assert model(x).keys() == whole.keys(), "what stopped early leaves nothing behind"


def test_an_answer_that_is_not_asked_for_is_not_computed() -> None:
    model = made().eval()
    ran: list[str] = []
    for path in ("of.layer1", "of.layer2", "of.layer3", "exits.exit1", "exits.exit2"):
        model.get_submodule(path).register_forward_hook(lambda _m, _a, _o, path=path: ran.append(path))
    model.until("exit2", drawn())
    assert ran == ["of.layer1", "exits.exit2"], "layer2's own hook stands behind the one that stops"
    ran.clear()
    model.until("main", drawn())
    assert ran == ["of.layer1", "of.layer2", "of.layer3"]


def test_it_decides_by_its_confidence() -> None:
    model = made().eval()
    x = drawn(n=1)
    with torch.no_grad():
        whole = model(x)
        sure = {name: whole[name].softmax(-1).max().item() for name in model.names}
        for threshold in (0.0, sure["exit1"], sure["exit1"] + 1e-4, sure["exit2"], 1.01):
            expected = next((name for name in ("exit1", "exit2") if sure[name] >= threshold), "main")
            name, logits = model.decide(x, threshold)
            assert name == expected and torch.equal(logits, whole[expected])
        many = drawn(n=6)
        least = model(many)["exit1"].softmax(-1).amax(-1).min().item()
        assert model.decide(many, least)[0] == "exit1" and model.decide(many, least + 1e-4)[0] != "exit1", "they leave together"


@every
def test_a_deep_copy_and_a_restored_state_answer_by_themselves(kind: str) -> None:
    model = made(kind).eval()
    x = drawn(kind)
    with torch.no_grad():
        before = model(x)
        copied = copy.deepcopy(model)
        for one in model.parameters():
            one.mul_(0.5)
        assert all(torch.equal(copied(x)[name], before[name]) for name in before)
        assert torch.equal(copied.until("exit1", x), before["exit1"])
        model.load_state_dict(copied.state_dict())
        assert all(torch.equal(model(x)[name], before[name]) for name in before)


@every
def test_it_compiles_whole_and_exports_with_a_free_batch(kind: str) -> None:
    model = made(kind).eval()
    x = drawn(kind)
    with torch.no_grad():
        expected = model(x)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        for name, value in compiled(x).items():
            torch.testing.assert_close(value, expected[name])
    program = torch.export.export(model, (drawn(kind, 2),), dynamic_shapes=({0: torch.export.Dim("n")},))
    for name, value in program.module()(x).items():
        torch.testing.assert_close(value, expected[name])


@pytest.mark.parametrize(("outputs", "names"), [("main", ["logits"]), ("all", ["logits", "exit1", "exit2"])])
def test_it_exports_to_onnx_with_main_alone_or_every_exit(outputs: Any, names: list[str], tmp_path: Path) -> None:
    model = made().eval()
    x = drawn()
    Onnx(outputs=outputs).export(model, x[:2], tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    assert [one.name for one in session.get_outputs()] == names
    with torch.no_grad():
        expected = [model(x)["main" if name == "logits" else name] for name in names]
    for found, one in zip(session.run(None, {"input": x.numpy()}), expected, strict=True):
        torch.testing.assert_close(torch.from_numpy(found), one, atol=1e-5, rtol=1e-5)
    import onnx

    nodes = [node.name for node in onnx.load(str(tmp_path / "model.onnx")).graph.node]
    assert any(name.startswith("exits.exit1") for name in nodes) == (outputs == "all"), "heads that nobody asked for are left out"
    assert any(name.startswith("of.layer1.0/Conv") for name in nodes)


def test_an_exit_reads_what_its_layer_gave_before_it_is_overwritten() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.act, self.last = nn.Linear(4, 6), nn.ReLU(inplace=True), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.act(self.first(x)))

    model = Exits((4,), 3, of=InPlace(), at=["first"])
    x = torch.randn(5, 4)
    answers = model(x)
    expected = model.exits["exit1"](model.of.first(x))  # pyright: ignore[reportCallIssue]
    torch.testing.assert_close(answers["exit1"], expected)
    sum(one.sum() for one in answers.values()).backward()  # pyright: ignore[reportAttributeAccessIssue]


def test_the_width_of_an_exit_is_that_of_the_last_feature_or_as_told() -> None:
    model = made().eval()
    assert model.deepest == "of.pool"
    x = drawn()
    for one in (model, made(width=3).eval()):
        feature = one.exits["exit1"].get_submodule("pool")(one.exits["exit1"].get_submodule("bottleneck")(one.of.get_submodule("layer1")(x)))
        assert feature.shape == (3, 8 if one is model else 3)


def test_building_it_leaves_modes_and_the_random_state_as_they_were() -> None:
    plain = build("models", "cnn", {"width": 4}, in_shape=(1, 8, 8), classes=5).train()
    plain.layer2.eval()
    before = copy.deepcopy(plain.state_dict())
    model = Exits((1, 8, 8), 5, of=plain, at=["layer1"])
    assert model.of is plain and plain.layer1.training and not plain.layer2.training
    assert all(torch.equal(value, before[name]) for name, value in plain.state_dict().items())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"at": []}, RecipeError, "at names no layer"),
        ({"at": ["layer1", "layer1"]}, RecipeError, "names the layer 'layer1' twice"),
        ({"at": ["layer2", "layer1"]}, RecipeError, "run in the order layer1, layer2, not layer2, layer1"),
        ({"at": ["layer9"]}, RecipeError, "no layer 'layer9'"),
        ({"at": ["layer1"], "width": 0}, RecipeError, "width is 0"),
        ({"at": ["layer1"], "of": {"width": 4}}, RecipeError, "must name the model that gets exits by its kind"),
        ({"at": ["layer1"], "of": {"kind": "cnn", "widht": 4}}, RecipeError, "did you mean 'width'"),
        ({"of": {"kind": "cnn"}}, RecipeError, "needs the option 'at'"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_one_line(options: dict[str, Any], error: type[LimbeckError], message: str) -> None:
    told = {"of": {"kind": "cnn", "width": 4}, **options}
    with pytest.raises(error, match=message) as caught:
        build("models", "exits", told, in_shape=(1, 8, 8), classes=5)
    assert "\n" not in str(caught.value)


def test_a_model_that_does_not_run_on_the_examples_is_refused() -> None:
    with pytest.raises(MismatchError, match=r"Linear does not run on an example of shape \(7,\)"):
        Exits((7,), 3, of=nn.Linear(4, 3), at=[""])
    with pytest.raises(RecipeError, match="there is no exit 'exit9'; did you mean 'exit"):
        made().until("exit9", drawn())
