"""Be your own teacher: the loss of the paper, written out; who teaches whom; what several exits cannot meet."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.core.errors import LimbeckError, MismatchError, RecipeError
from limbeck.core.lookup import build
from limbeck.core.objective import Objective
from limbeck.core.schedule import Linear
from limbeck.schemes.exits import Exits

HINTS = {"exits.exit1.pool": "of.pool", "exits.exit2.pool": "of.pool"}


def net(**options: Any) -> nn.Module:
    torch.manual_seed(0)
    told = {"of": {"kind": "cnn", "width": 4}, "at": ["layer1", "layer2"], **options}
    return build("models", "exits", told, in_shape=(1, 8, 8), classes=5).double()


def kd(temperature: float = 3.0) -> Objective:
    return build("objectives", "response.kd", {"temperature": temperature})


def supervised() -> Objective:
    return build("objectives", "supervised", {})


def hint(layers: Any = HINTS) -> Objective:
    return build("objectives", "feature.fitnet", {"layers": layers})


def own(**options: Any) -> nn.Module:
    return build("teachers", "exits", options)


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(7)
    return torch.randn(6, 1, 8, 8, generator=draw, dtype=torch.float64), torch.randint(0, 5, (6,), generator=draw)


def gradients(loss: Tensor, model: nn.Module) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(model.parameters())))


@pytest.mark.parametrize("by", ["deepest", "next"])
def test_it_is_the_paper_s_loss_by_hand(batch: tuple[Tensor, Tensor], by: str) -> None:
    alpha, hints, temperature = 0.3, 0.03, 3.0
    model = net().eval()  # batch statistics would move between the two
    scheme = Exits(model, own(by=by), [alpha * kd(temperature), (1 - alpha) * supervised(), 2 * hints * hint()], example=batch)
    model.eval()
    x, y = batch
    features: dict[str, Tensor] = {}
    for path in (*HINTS, "of.pool"):
        model.get_submodule(path).register_forward_hook(lambda _m, _a, out, path=path: features.__setitem__(path, out))
    said = model(x)
    teaching = {"exit1": "main" if by == "deepest" else "exit2", "exit2": "main"}
    total = torch.zeros((), dtype=torch.float64)
    for row in range(6):
        for name, deeper in teaching.items():
            q = (said[name][row] / temperature).softmax(-1)
            p = (said[deeper][row].detach() / temperature).softmax(-1)
            total = total + alpha * temperature**2 * sum(p[k] * (p[k] / q[k]).log() for k in range(5))
            total = total - (1 - alpha) * said[name][row].log_softmax(-1)[y[row]]
            total = total + hints * (features[f"exits.{name}.pool"][row] - features["of.pool"][row].detach()).square().sum()
        total = total - said["main"][row].log_softmax(-1)[y[row]]  # the deepest pays the whole cross-entropy
    expected = total / 6
    losses = scheme(batch)
    torch.testing.assert_close(losses.loss, expected)
    assert losses.parts.keys() == {"kd", "supervised", "fitnet"}
    for ours, theirs in zip(gradients(losses.loss, model), gradients(expected, model), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_no_gradient_comes_to_the_deepest_exit_from_those_it_teaches(batch: tuple[Tensor, Tensor]) -> None:
    model = net().eval()
    scheme = Exits(model, own(), [kd(), hint(), supervised()], example=batch)
    model.eval()
    behind = [one for name, one in model.named_parameters() if name.startswith(("of.layer3", "of.head"))]
    ours = torch.autograd.grad(scheme(batch).loss, behind)
    labels_alone = torch.autograd.grad(F.cross_entropy(model(batch[0])["main"], batch[1]), behind)
    for one, other in zip(ours, labels_alone, strict=True):
        torch.testing.assert_close(one, other)


def test_without_a_teacher_it_is_deep_supervision(batch: tuple[Tensor, Tensor]) -> None:
    model = net().eval()
    scheme = Exits(model, None, [0.5 * supervised()], example=batch)
    model.eval()
    expected = 0.5 * sum(F.cross_entropy(one, batch[1]) for one in model(batch[0]).values())
    torch.testing.assert_close(scheme(batch).loss, expected)


def test_another_teacher_teaches_every_exit(batch: tuple[Tensor, Tensor]) -> None:
    model, teacher = net().eval(), build("models", "cnn", {"width": 4}, in_shape=(1, 8, 8), classes=5).double()
    scheme = Exits(model, teacher, [kd(2.0), 0.1 * supervised()], example=batch)
    model.eval()
    p = (teacher(batch[0]) / 2).softmax(-1)
    expected = sum(4 * F.kl_div((one / 2).log_softmax(-1), p, reduction="batchmean") + 0.1 * F.cross_entropy(one, batch[1]) for one in model(batch[0]).values())
    torch.testing.assert_close(scheme(batch).loss, expected)


def test_a_weight_may_follow_a_schedule_and_the_deepest_pays_whole(batch: tuple[Tensor, Tensor]) -> None:
    model = net().eval()
    scheme = Exits(model, own(), [kd(), Linear(start=1.0, end=0.2) * supervised()], example=batch)
    model.eval()
    scheme.at(2.0, 4.0)
    said = model(batch[0])
    taught = sum(0.6 * F.cross_entropy(said[name], batch[1]) for name in ("exit1", "exit2")) + F.cross_entropy(said["main"], batch[1])
    p = (said["main"].detach() / 3).softmax(-1)
    taught = taught + sum(9 * F.kl_div((said[name] / 3).log_softmax(-1), p, reduction="batchmean") for name in ("exit1", "exit2"))
    torch.testing.assert_close(scheme(batch).loss, taught)


def test_widths_that_differ_get_adapters_that_learn(batch: tuple[Tensor, Tensor]) -> None:
    model = net(width=3)
    scheme = Exits(model, own(), [supervised(), hint()], example=batch)
    learning = {id(one) for one in scheme.players()["student"]}
    adapters = [one for name, one in scheme.named_parameters() if "projectors" in name]
    assert adapters and all(id(one) in learning for one in adapters)
    scheme(batch).loss.backward()
    assert all(one.grad is not None for one in adapters)


def test_examples_without_a_label_are_taught_by_the_deepest_alone(batch: tuple[Tensor, Tensor]) -> None:
    model = net().eval()
    scheme = Exits(model, own(), [kd(), supervised()], example=batch)
    model.eval()
    some = torch.tensor([True, False, True, True, False, False])
    found = scheme({"input": batch[0], "label": batch[1], "labelled": some})
    said = model(batch[0])
    expected = sum(F.cross_entropy(one[some], batch[1][some]) for one in said.values())
    torch.testing.assert_close(found.parts["supervised"] / 6, expected.detach())  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("objectives", "error", "message"),
    [
        (lambda: [kd()], RecipeError, "nothing teaches the deepest exit"),
        (lambda: [kd(), 0.0 * supervised()], RecipeError, "nothing teaches the deepest exit"),
        (lambda: [supervised(), hint("auto")], RecipeError, "the objective fitnet is to pair layers of a network with its own: name them"),
        (lambda: [supervised(), build("objectives", "adversarial.logit_discriminator", {})], RecipeError, "is a contest, which plays against one answer"),
        (lambda: [supervised(), hint({"exits.exit9.pool": "of.pool"})], RecipeError, "has no layer 'exits.exit9.pool'"),
    ],
)
def test_what_several_exits_cannot_meet_is_one_line(batch: tuple[Tensor, Tensor], objectives: Any, error: type[LimbeckError], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        Exits(net(), own(), objectives(), example=batch)
    assert "\n" not in str(caught.value)


def test_a_network_without_exits_is_refused(batch: tuple[Tensor, Tensor]) -> None:
    plain = build("models", "cnn", {"width": 4}, in_shape=(1, 8, 8), classes=5).double()
    for teacher in (own(), None):
        with pytest.raises(MismatchError, match="one answer, 'main', and no exits"):
            Exits(plain, teacher, [supervised(), *([kd()] if teacher else [])], example=batch)
