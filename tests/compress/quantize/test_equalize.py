"""Cross-layer equalisation: the same function, the ranges of both layers equal."""

import pytest
import torch
from torch import nn

from limbeck.compress.quantize.convert import Convert
from limbeck.compress.quantize.equalize import Equalize, equalize_pair
from limbeck.compress.quantize.fold import Fold
from limbeck.core.errors import MismatchError, RecipeError

from ._quantized import answer, bench, model, reloaded


def uneven(made: nn.Module) -> nn.Module:
    """Scale channels by factors a hundred apart."""
    with torch.no_grad():
        for module in made.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                factor = torch.logspace(-1, 1, len(module.weight))
                module.weight *= factor.view(-1, *[1] * (module.weight.ndim - 1))
    return made


@pytest.mark.parametrize(
    ("kind", "options", "pairs"), [("lenet", {}, 4), ("mlp", {"widths": (16, 12)}, 2), ("cnn", {"width": 4}, 3), ("ds_cnn", {"width": 4, "blocks": 2}, 5)]
)
def test_the_function_stays_and_the_ranges_meet(kind: str, options: dict, pairs: int) -> None:
    fresh = model(kind, **options)
    before = Fold().operate(fresh, bench()).model if kind in ("cnn", "ds_cnn") else fresh
    done = Equalize().operate(uneven(before), bench())
    assert done.metrics["equalized_pairs"] == pairs
    wanted = answer(before)
    torch.testing.assert_close(answer(done.model), wanted, rtol=1e-3, atol=1e-5 * wanted.abs().max().item())
    assert any(not torch.equal(a, b) for a, b in zip(before.parameters(), done.model.parameters(), strict=True))
    for row in done.layers:
        first, second = (done.model.get_submodule(row[key]) for key in ("name", "with"))
        assert equalize_pair(first, second) < 0.05, "a second pass finds them equal"
    assert torch.equal(answer(reloaded(before, (Equalize, done))), answer(done.model))


def test_ranges_are_equal_channel_by_channel() -> None:
    first, second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 6, 3, groups=2)
    with torch.no_grad():
        first.weight[2] = 0.0  # a dead channel stays as it is
    kept = first.weight[2].clone(), second.weight[3:, 0].clone()
    equalize_pair(first, second)
    for channel in (0, 1, 3):
        reads = second.weight[3 * (channel // 2) : 3 * (channel // 2) + 3, channel % 2]
        assert first.weight[channel].abs().max().item() == pytest.approx(reads.abs().max().item(), rel=1e-5)
    assert torch.equal(first.weight[2], kept[0]) and torch.equal(second.weight[3:, 0], kept[1])


def test_it_helps_rounding_with_one_step_for_a_tensor() -> None:
    torch.manual_seed(0)
    before = nn.Sequential(nn.Flatten(), nn.Linear(128, 32), nn.ReLU(), nn.Linear(32, 5)).eval()
    linear = before[1]
    assert isinstance(linear, nn.Linear)
    with torch.no_grad():
        linear.weight[:16] *= 0.02
        linear.bias[:16] *= 0.02
        before[3].get_parameter("weight")[:, :16] *= 50
    even = Equalize().operate(before, bench()).model
    error = [(answer(Convert(weights=4, only=["3"]).operate(one, bench()).model) - answer(before)).square().mean() for one in (before, even)]
    assert error[1] < error[0]


def test_what_hides_layers_from_each_other_is_named() -> None:
    with pytest.raises(MismatchError, match=r"batch norm layer1.1 stands behind layer1.0: fold it first"):
        Equalize().operate(model("cnn", width=4), bench())
    with pytest.raises(MismatchError, match="ViT has no two layers to equalize"):
        Equalize().operate(model("vit", dim=8, depth=1, heads=2), bench())
    with pytest.raises(RecipeError, match="rounds must be 1 or more"):
        Equalize(rounds=0)
