"""Factor transfer: the teacher's feature is paraphrased into factors, and the student's translated into the same.

Kim et al., "Paraphrasing Complex Network: Network Compression via Factor Transfer", NeurIPS 2018, arXiv:1802.04977, eq. 1 and 4.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.knowledge import Knowledge
from limbeck.core.schedule import check_number
from limbeck.core.task import Batch
from limbeck.objectives._layered import Layered, Layers
from limbeck.objectives._options import check_choice
from limbeck.objectives._precision import place
from limbeck.objectives._projectors import Projector

from ._maps import check_maps, common, unit

__all__ = ["FactorTransfer", "factor_transfer_loss", "reconstruction_loss"]


def factor_transfer_loss(student: Tensor, teacher: Tensor, *, p: Literal[1, 2] = 1, reduction: Literal["sum", "mean"] = "sum") -> Tensor:
    """Return the p-norm of f_s/||f_s|| - f_t/||f_t|| for each example, f the factors; with `mean`, the mean of the |differences|^p over their elements.

    Factors `[N, ...]` of one shape give `[N]`; no gradient goes into the teacher's.

    Raises:
        MismatchError: factors of unequal shapes.

    >>> import torch
    >>> factor_transfer_loss(torch.tensor([[3.0, 4.0]]), torch.tensor([[4.0, 3.0]]))
    tensor([0.4000])
    """
    if student.shape != teacher.shape:
        raise MismatchError(f"the student's factors are {list(student.shape)} and the teacher's {list(teacher.shape)}: translate the one to the other's shape")
    ours, theirs = (unit(factors.flatten(1)) for factors in common(student, teacher))
    gap = ours - theirs
    if reduction == "sum":
        return torch.linalg.vector_norm(gap, ord=p, dim=-1)
    return gap.abs().mean(-1) if p == 1 else gap.square().mean(-1)


def reconstruction_loss(paraphrase: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean over elements of (P(t) - t)^2 for each example, P(t) what the paraphraser makes of the teacher's feature t.

    Features `[N, ...]` of one shape give `[N]`; no gradient goes into the teacher.

    Raises:
        MismatchError: features of unequal shapes.

    >>> import torch
    >>> reconstruction_loss(torch.zeros(1, 2), torch.tensor([[1.0, 3.0]]))
    tensor([5.])
    """
    if paraphrase.shape != teacher.shape:
        raise MismatchError(f"the paraphrase is {list(paraphrase.shape)} and the teacher's feature {list(teacher.shape)}: they must be of one shape")
    paraphrase, teacher = common(paraphrase, teacher)
    return (paraphrase - teacher).square().flatten(1).mean(-1)


def _convolutions(kind: type[nn.Conv2d | nn.ConvTranspose2d], widths: Sequence[int], like: Tensor) -> nn.Sequential:
    """3x3 layers of `kind` from each width to the next, a leaky ReLU after each."""
    where = place(like)
    layers = [(kind(have, want, 3, padding=1, **where), nn.LeakyReLU(0.1)) for have, want in pairwise(widths)]
    return nn.Sequential(*(one for both in layers for one in both))


class _Paraphraser(nn.Module):
    """An autoencoder of the teacher's map: what lies between encoder and decoder are the factors."""

    def __init__(self, theirs: Tensor, factors: int, like: Tensor) -> None:
        super().__init__()
        width = theirs.shape[1]
        self.encoder = _convolutions(nn.Conv2d, (width, width, factors, factors), like)
        self.decoder = _convolutions(nn.ConvTranspose2d, (factors, factors, width, width), like)
        self.loaded = False
        self.register_load_state_dict_post_hook(_mark)


def _mark(module: nn.Module, _keys: object) -> None:
    assert isinstance(module, _Paraphraser)
    module.loaded = True


class FactorTransfer(Layered):
    """Match factors: the p-norm of f_s/||f_s|| - f_t/||f_t||, teacher's from a paraphraser, student's from a translator, one number per example.

    Kim et al. 2018, arXiv:1802.04977, eq. 4, p = 1. The paraphraser is an autoencoder of the teacher's last map, three 3x3 convolutions to k D channels and
    three transposed ones back, leaky ReLU of 0.1 after each, without batch norm, as in the authors' code; the translator is its first half. The paper trains
    the paraphraser first, by itself (`learns: paraphraser`), and then keeps it (`learns: translator`): load the state of the first objective's `paraphrasers`
    into the second's. By default both learn at once, the paraphraser from the teacher's feature alone. Its loss is the mean of squares over elements; eq. 1
    sums them, the authors' code has the mean of absolute values. The authors' code takes the mean over a factor's elements (`reduction: mean`) at weight 500,
    torchdistill 1.1.5 too; RepDistiller compares the factors by attention maps, the mean over channels
    of their squares.

    Args:
        layers: student's layer -> teacher's layer, such as {layer3: layer3}; auto takes the end of the last stage, as the paper does.
        rate: k, channels of the factors per channel of the teacher's map.
        p: the norm, 1 or 2; the paper tries both.
        reduction: sum is the paper's norm; mean is over the elements of the factors, of squares where p is 2.
        learns: both, or paraphraser alone (a stage before the student's; no gradient goes into the student), or translator alone, the paraphraser loaded.

    Raises:
        RecipeError: a rate of zero or less, another norm, reduction or learner.
        MismatchError: no teacher, layers that give no maps, or a paraphraser that is to stay and was never loaded.

    Example:
        {kind: feature.factor_transfer, layers: {layer3: layer3}, reduction: mean, weight: 500}
    """

    wish = "last"
    perfect = "no"
    usual: ClassVar[float] = 0.25
    """The authors' 500 times a mean, as a sum over 32 x 8 x 8 elements."""

    def __init__(
        self,
        *,
        layers: Layers = "auto",
        rate: float = 0.5,
        p: Literal[1, 2] = 1,
        reduction: Literal["sum", "mean"] = "sum",
        learns: Literal["both", "paraphraser", "translator"] = "both",
    ) -> None:
        super().__init__(layers)
        check_number("FactorTransfer's rate", rate, positive=True)
        if p not in (1, 2):
            raise RecipeError(f"FactorTransfer's p is {p}; the norm must be 1 or 2")
        check_choice(self, "reduction", reduction, ("sum", "mean"))
        check_choice(self, "learns", learns, ("both", "paraphraser", "translator"))
        self.rate = rate
        self.p: Literal[1, 2] = p
        self.reduction: Literal["sum", "mean"] = reduction
        self.learns: Literal["both", "paraphraser", "translator"] = learns
        self.paraphrasers = nn.ModuleList()
        self.translators = nn.ModuleList()

    def fit(self, features: Sequence[tuple[Tensor, Tensor]]) -> None:
        for (ours, theirs), both in zip(features, self.pairs, strict=True):
            check_maps(ours, theirs, both)
            factors = max(1, round(self.rate * theirs.shape[1]))
            self.paraphrasers.append(_Paraphraser(theirs, factors, ours).requires_grad_(self.learns != "translator"))
            if self.learns != "paraphraser":
                resize = Projector(theirs.shape[2:] if ours.shape[2:] != theirs.shape[2:] else None, None)
                self.translators.append(nn.Sequential(resize, *_convolutions(nn.Conv2d, (ours.shape[1], ours.shape[1], factors, factors), ours)))

    def forward(self, student: Knowledge, teacher: Knowledge | None, batch: Batch) -> Tensor:
        losses: list[Tensor] = []
        for at, (ours, theirs) in enumerate(self.matched(student, teacher)):
            paraphraser = self.paraphrasers[at]
            assert isinstance(paraphraser, _Paraphraser)
            if self.learns == "translator" and not paraphraser.loaded:
                raise MismatchError(
                    "FactorTransfer keeps its paraphraser as it is and was given none that has learnt: load an earlier stage's, "
                    "this.paraphrasers.load_state_dict(that.paraphrasers.state_dict()), or write learns: both"
                )
            dtype = next(paraphraser.parameters()).dtype
            factors = paraphraser.encoder(theirs.to(dtype))
            if self.learns != "translator":
                losses.append(reconstruction_loss(paraphraser.decoder(factors), theirs))
            if self.learns != "paraphraser":
                losses.append(factor_transfer_loss(self.translators[at](ours.to(dtype)), factors, p=self.p, reduction=self.reduction))
        return torch.stack(losses).sum(0)
