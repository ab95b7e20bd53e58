"""Batch norm folded: the same function, and what cannot be folded is named."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.compress.quantize.fold import Fold
from limbeck.core.errors import MismatchError

from ._quantized import answer, bench, model, reloaded


@pytest.mark.parametrize(
    ("kind", "options", "norms"),
    [("cnn", {"width": 4}, 3), ("resnet", {"depth": 8}, 7), ("ds_cnn", {"width": 4, "blocks": 2}, 5), ("lenet", {"norm": True}, 4)],
)
def test_the_function_stays(kind: str, options: dict, norms: int) -> None:
    before = model(kind, **options)
    done = Fold().operate(before, bench())
    assert done.metrics["folded_norms"] == norms and not done.said
    assert not any(isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)) for module in done.model.modules())
    assert [name for name, _ in done.model.named_modules()] == [name for name, _ in before.named_modules()]
    torch.testing.assert_close(answer(done.model), answer(before), rtol=1e-4, atol=1e-5)
    assert torch.equal(answer(reloaded(model(kind, seed=1, **options), (Fold, done))), answer(done.model))


class Odd(nn.Module):
    """One norm that folds, and some that do not."""

    def __init__(self) -> None:
        super().__init__()
        self.good, self.good_norm = nn.Conv2d(2, 4, 3, groups=2, bias=False), nn.BatchNorm2d(4, affine=False)
        self.twice, self.twice_norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.read, self.read_norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.sum_norm, self.unheld, self.unheld_norm = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)
        self.mean_norm, self.tokens, self.tokens_norm = nn.BatchNorm2d(4), nn.Linear(36, 5), nn.BatchNorm1d(4)
        self.silent_norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.good_norm(self.good(x))
        x = self.twice_norm(self.twice(self.twice_norm(self.twice(x))))
        y = self.read(x)
        x = self.sum_norm(self.read_norm(y) + F.relu(y))
        x = self.mean_norm(F.relu(self.unheld_norm(self.unheld(x))))
        return self.tokens_norm(self.tokens(x.flatten(2)))[:, :, 0] + x.mean((2, 3)).sum(1, keepdim=True)


def test_what_cannot_be_folded_is_named() -> None:
    torch.manual_seed(0)
    before = Odd()
    for _ in range(3):
        before(torch.randn(16, 2, 8, 8))
    done = Fold().operate(before.eval(), bench())
    assert done.record == {"pairs": [["good", "good_norm"]]}
    said = dict(line.split(" is not folded: ") for line in done.said)
    assert said == {
        "twice_norm": "it runs 2 times", "read_norm": "what read gives is read elsewhere too", "sum_norm": "it reads what add gives, not a layer",
        "unheld_norm": "it has no running statistics", "mean_norm": "it reads what relu gives, not a layer",
        "tokens_norm": "it normalises the tokens of tokens, not its channels", "silent_norm": "it runs 0 times",
    }  # fmt: skip
    torch.testing.assert_close(answer(done.model), answer(before), rtol=1e-4, atol=1e-5)


def test_shared_weights_are_left_alone() -> None:
    first, second = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1)
    second.weight = first.weight
    with pytest.raises(MismatchError, match=r"none|the weights of 0 are shared"):
        Fold().operate(nn.Sequential(first, nn.BatchNorm2d(2), second, nn.Flatten(), nn.Linear(128, 5)).eval(), bench())


def test_without_a_norm_it_says_so() -> None:
    with pytest.raises(MismatchError, match="MLP has no batch norm to fold"):
        Fold().operate(model("mlp"), bench())
