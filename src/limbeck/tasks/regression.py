"""Real numbers as targets: squared error.

Shapes: N examples, D numbers each.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from limbeck.core.errors import DataError, MismatchError
from limbeck.core.knowledge import Dense, Knowledge
from limbeck.core.task import Batch, Facts, Split

from ._adapter import as_logits, real_numbers
from ._supply import fitting
from ._targets import Targeted

__all__ = ["Regression"]


class Regression(Targeted):
    """Real numbers as targets, over a user's own loaders or an `.npz`; without either it is the task of a user's own loop.

    `loss_n = sum_d (z_nd - y_nd)^2`: the sum over an example's numbers, of the size of `response.regression_kd`, so that weights of the two mean what they
    say. torch's MSELoss is this divided by D.

    Targets are `[N, D]`, or `[N]` for D = 1, of any type of number, in units of their own: bring them to a deviation near 1 first where they are far from it.
    Scores of an example: `mse` and `mae`, the means of its squared and absolute errors; `loss`. The best epoch is that of the least `mse`, and so of the least
    root mean squared error, which is no mean over examples: the test split is judged by it as a whole, and by R2.

    `loaders`: split -> a torch DataLoader or another iterable of batches that can be iterated again and again; what a batch may be says `batch`.

    Args:
        root: an .npz with x_train, y_train, x_test, y_test (or x, y), in the place of loaders: x `[M, F]` or images, y `[M, D]` or `[M]`, class_names if any.
        input: the field of a mapping that holds the input; "input" and "pixel_values" are found by themselves.
        label: the field of a mapping that holds the targets; "label" and "labels" are found by themselves.
        class_names: one name for each of the D numbers.
        validation: the fraction of an .npz's training data held back for validation; 0 for none.
        split_seed: the seed of that choice.
        normalize: bring each feature, or image channel, of an .npz to mean 0 and deviation 1; targets stay as they are.

    Raises:
        DataError: a loader that can be iterated only once, or is empty, a file that is missing or damaged, or targets that are not finite.
        MismatchError: a batch or an output that is not what `batch` and `forward` describe.
        RecipeError: loaders and a file.
    """

    kind = "regression"
    metric = "mse"
    higher_is_better = False

    def __init__(
        self,
        loaders: Mapping[Split, Iterable[Any]] | None = None,
        *,
        root: str | None = None,
        input: str = "input",
        label: str = "label",
        class_names: list[str] | None = None,
        validation: float = 0.1,
        split_seed: int = 0,
        normalize: bool = True,
    ) -> None:
        super().__init__(loaders, root, _numbers, input=input, label=label, validation=validation, split_seed=split_seed, normalize=normalize)
        self._names = class_names

    def facts(self) -> Facts:
        """What the first training batch shows; its targets or `class_names` tell how many numbers there are, which are the facts' `classes`."""
        first, examples = self._supply.first()
        names = self._names or self._supply.names()
        count = first["label"].shape[1] if "label" in first else len(names or ())
        if not count:
            raise DataError("nothing says how many numbers are predicted: the batches have no targets; give class_names")
        if names is not None and len(names) != count:
            raise MismatchError(f"class_names names {len(names)} numbers, and the targets have {count}: give a name for each")
        told = tuple(names) if names is not None else tuple(str(number) for number in range(count))
        return Facts(tuple(first["input"].shape[1:]), count, told, examples, "label" in first, self._supply.preprocess())

    def forward(self, model: nn.Module, batch: Batch) -> Knowledge:
        """Call the model on the input; its numbers `[N, D]`, or `[N]` for D = 1, are its output, the output's `logits`, or the first of a tuple."""
        x = batch["input"]
        return Knowledge({"main": Dense(as_logits(model(x), len(x), least=1, flat=True, kind="Regression"), "identity")})

    def loss(self, knowledge: Knowledge, batch: Batch) -> Tensor:
        said, true = fitting(knowledge, batch, "Regression")
        return (said - true).square().sum(1)

    def scores(self, knowledge: Knowledge, batch: Batch) -> dict[str, Tensor]:
        said, true = fitting(knowledge, batch, "Regression")
        return {"mse": (said - true).square().mean(1), "mae": (said - true).abs().mean(1), "loss": self.loss(knowledge, batch)}


def _numbers(value: object, count: int) -> Tensor:
    found = value.unsqueeze(1) if isinstance(value, Tensor) and value.ndim == 1 else value
    return real_numbers(found, count, meant="D] or of one number for each input")
