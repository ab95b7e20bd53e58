"""Channel-wise distillation: each channel is a distribution over places, and the student's matches the teacher's.

Shu et al., "Channel-wise Knowledge Distillation for Dense Prediction", ICCV 2021, arXiv:2011.13256, eq. 2 and 3.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.core.errors import MismatchError
from limbeck.core.knowledge import Knowledge
from limbeck.core.schedule import Number, check_number
from limbeck.core.task import Batch
from limbeck.objectives._layered import Layered, Layers
from limbeck.objectives._precision import at_least_float32
from limbeck.objectives._projectors import projectors

__all__ = ["CWD", "cwd_loss"]


def _channels(x: Tensor) -> Tensor:
    """Channels and places `[N, D, P]` of a map `[N, D, H, W]` or a sequence `[N, T, D]`."""
    return x.flatten(2) if x.ndim == 4 else x.transpose(1, 2)


def cwd_loss(student: Tensor, teacher: Tensor, *, temperature: float = 4.0) -> Tensor:
    """Return T^2 times the mean over channels of KL(p || q), p and q softmaxes over the places of the teacher's and the student's channel divided by T.

    Maps `[N, D, H, W]` or sequences `[N, T, D]` of one shape give `[N]`, in nats times T^2. A constant added to a channel changes nothing.

    Raises:
        RecipeError: a temperature of zero or less.
        MismatchError: features of unequal shapes, or that are no maps and no sequences.

    >>> import torch
    >>> cwd_loss(torch.zeros(1, 1, 1, 2), torch.tensor([[[[0.0, 1e4]]]]), temperature=1.0)
    tensor([0.6931])
    """
    check_number("temperature", temperature, positive=True)
    if student.shape != teacher.shape or student.ndim not in (3, 4):
        raise MismatchError(
            f"the student's feature is {list(student.shape)} and the teacher's {list(teacher.shape)}: both must be maps [N, D, H, W] or sequences "
            "[N, T, D] of one shape; project the one to the other's shape first"
        )
    ours, theirs = _channels(at_least_float32(student)), _channels(at_least_float32(teacher.detach()))
    log_q, log_p = F.log_softmax(ours / temperature, -1), F.log_softmax(theirs / temperature, -1)
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum((1, 2)) * (temperature**2 / ours.shape[1])


class CWD(Layered):
    """Match where each channel fires: T^2 / D times the sum over D channels of KL(p || q), p and q softmaxes over a channel's places, one number per example.

    Shu et al. 2021, arXiv:2011.13256, eq. 3, with T = 4 and a weight of 50 for feature maps, 3 for maps of logits (`layers: {classifier: classifier}` of a
    segmenter). MMRazor's configuration has T = 1 and weight 5 for logits. A learnt 1x1 convolution joins unequal channels, as in the paper; maps of unequal
    size are resized before it. A feature with one place says nothing here and is refused.

    Args:
        layers: student's layer -> teacher's layer, such as {layer2: layer2}; auto takes the end of the last stage.
        temperature: above zero; higher ones make the distributions over places flatter. A number or a schedule.

    Raises:
        RecipeError: a temperature of zero or less.
        MismatchError: no teacher, features without places, or features that no projector brings together.

    Example:
        {kind: feature.cwd, layers: {layer2: layer2}, weight: 50}
    """

    wish = "last"
    usual = 50.0

    def __init__(self, *, layers: Layers = "auto", temperature: Number = 4.0) -> None:
        super().__init__(layers)
        check_number("temperature", temperature, positive=True)
        self.temperature = temperature
        self.projectors = nn.ModuleList()

    def fit(self, features: Sequence[tuple[Tensor, Tensor]]) -> None:
        for (_, theirs), (_, name) in zip(features, self.pairs, strict=True):
            if theirs.ndim not in (3, 4) or _channels(theirs).shape[2] < 2:
                raise MismatchError(
                    f"CWD compares where a channel fires and the teacher's {name!r} gives {list(theirs.shape)}, one place: name an earlier layer"
                )
        self.projectors = projectors(features, self.pairs)

    def forward(self, student: Knowledge, teacher: Knowledge | None, batch: Batch) -> Tensor:
        temperature = self.now(self.temperature)
        losses = [
            cwd_loss(project(ours), theirs, temperature=temperature)
            for project, (ours, theirs) in zip(self.projectors, self.matched(student, teacher), strict=True)
        ]
        return torch.stack(losses).sum(0)
