"""How far other toolkits' losses are from limbeck's on the same input, and what accounts for it: figures for docs/parity.md.

    python benchmarks/parity.py [--markdown]

It needs torchdistill 1.1.5; the docstring of `torchdistill_loop.py` says which environment that wants. Toolkits compared are torchdistill and PyTorch's own
losses, as they are commonly used for distillation.

Every row takes one method and one loss of another toolkit, and gives both the same seeded numbers in float64: 16 examples, 10 classes, maps of 6 channels and
8 x 8 places, vectors of 32 elements, 5 tokens; student and teacher of equal shapes, so that nothing learnt stands between them. Losses per example are averaged
over the batch, as the loop does. `ratio` is theirs / ours, `gradient` the same of the lengths of the gradients by the student's feature, `cosine` of the angle
between these. Each row then proves what it says of the difference:

- `factor`: theirs is this number times ours, value and gradient, for these shapes (a gradient alone where `same` is given too);
- `same`: theirs is this expression of limbeck's losses and options, or where it says "written out" of the formula as the script writes it, value and gradient.

Both must hold to a relative 1e-4 (their small constants are in it), gradients element by element against the largest, for three seeds; the figures are of the
first. A row that fails is reported as such and the exit status is 1. Losses of torchdistill that no objective here corresponds to are listed, and every one
there is must be in one of the two lists.
"""

import argparse
import importlib
import inspect
import json
import math
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.core.knowledge import Dense, Knowledge
from limbeck.objectives.attention.at import at_loss
from limbeck.objectives.feature.ab import ab_loss
from limbeck.objectives.feature.cosine import cosine_loss
from limbeck.objectives.feature.crd import crd_loss
from limbeck.objectives.feature.factor_transfer import factor_transfer_loss
from limbeck.objectives.feature.fitnet import fitnet_loss
from limbeck.objectives.feature.fsp import fsp_loss
from limbeck.objectives.feature.ickd import ickd_loss
from limbeck.objectives.feature.reviewkd import reviewkd_loss
from limbeck.objectives.feature.vid import vid_loss
from limbeck.objectives.relation.cc import cc_loss
from limbeck.objectives.relation.pkt import pkt_loss
from limbeck.objectives.relation.rkd_angle import rkd_angle_loss
from limbeck.objectives.relation.rkd_distance import rkd_distance_loss
from limbeck.objectives.relation.sp import sp_loss
from limbeck.objectives.response.bernoulli_kd import bernoulli_kd_loss
from limbeck.objectives.response.dist import dist_loss
from limbeck.objectives.response.kd import kd_loss
from limbeck.objectives.response.label_smoothing import label_smoothing_loss
from limbeck.objectives.response.logit_matching import logit_matching_loss
from limbeck.objectives.response.regression_kd import regression_kd_loss
from limbeck.objectives.response.soft_cross_entropy import soft_cross_entropy_loss
from limbeck.objectives.response.standardized import standardized_logits
from limbeck.tasks.classify import Classify
from records import tell
from torchdistill_loop import define_missing_operators

KNOWN = "1.1.5"
N, C, D, PLACES, WIDTH, TOKENS = 16, 10, 6, 8, 32, 5
BANK, NEGATIVES, EMBEDDING = 64, 24, 128
SEEDS = (0, 1, 2)
TOLERANCE = 1e-4

NO_COUNTERPART = {
    "AffinityLoss": "spatial affinity of KTAAD, no objective here",
    "AuxSSKDLoss": "self-supervision of SSKD, no objective here",
    "DISTPlusLoss": "DIST and relations of features, no objective here",
    "KTALoss": "no objective here; for q = 2, its default, the number of FTLoss",
    "PADL2Loss": "attention.confidence weighs places by another formula",
    "RegularizationLoss": "a norm of one model's output",
    "SKDDirectionLoss": "no objective here",
    "SKDInstanceLoss": "no objective here",
    "SRDLoss": "no objective here; it is not feature.srrl",
    "SSKDLoss": "SSKD, no objective here",
}
"""Losses of torchdistill without an objective of limbeck to compare them with."""

Loss = Callable[..., Tensor]


@dataclass(frozen=True)
class Row:
    """One method and one loss of another toolkit: both functions of the student's tensors."""

    method: str
    toolkit: str
    loss: str
    account: str
    student: tuple[Tensor, ...]
    ours: Loss
    theirs: Loss
    factor: float | None = None
    same: tuple[str, Loss] | None = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--markdown", action="store_true", help="print the table of docs/parity.md")
    arguments = parser.parse_args()
    try:
        found = version("torchdistill")
    except PackageNotFoundError:
        raise SystemExit(f'torchdistill is not installed: pip install "torchdistill=={KNOWN}" (see torchdistill_loop.py)') from None
    if found != KNOWN:
        tell(f"torchdistill is {found}; what is said of it here was written for {KNOWN}")
    define_missing_operators()
    warnings.filterwarnings("ignore", "reduction: 'mean' divides the total loss by both", UserWarning)  # it is measured here
    losses = importlib.import_module("torchdistill.losses.mid_level")
    measured = [measure(several) for several in zip(*(rows(losses, seed) for seed in SEEDS), strict=True)]
    failed = [one for one in measured if not one["holds"]] + unlisted(losses, measured)
    for one in measured:
        tell(f"{one['method']} | {one['loss']}: ratio {one['ratio']:.4g}, cosine {one['cosine']:.4f}, {told(one)}{'' if one['holds'] else '  DOES NOT HOLD'}")
    if arguments.markdown:
        print(markdown(measured))
    else:
        versions = {"torch": torch.__version__, "torchdistill": found}
        print(json.dumps({"benchmark": "parity", **versions, "seeds": len(SEEDS), "rows": measured, "no_counterpart": NO_COUNTERPART, "failed": failed}))
    sys.exit(1 if failed else 0)


def unlisted(losses: Any, measured: list[dict[str, Any]]) -> list[str]:
    """Return the losses of the module that are neither compared nor said to have no counterpart."""
    there = {name for name, one in inspect.getmembers(losses, inspect.isclass) if one.__module__ == losses.__name__ and name.endswith("Loss")}
    return sorted(there - set(NO_COUNTERPART) - {one["loss"].split("(")[0] for one in measured})


def measure(several: tuple[Row, ...]) -> dict[str, Any]:
    """Compare one method on every seed: figures of the first, and whether what is said of it holds on all."""
    row, holds = several[0], True
    shown: dict[str, Any] = {}
    for one in several:
        (ours, our_gradient), (theirs, their_gradient) = (evaluated(loss, one.student) for loss in (one.ours, one.theirs))
        if one.factor is not None:
            holds &= (one.same is not None or near(theirs, one.factor * ours)) and near(their_gradient, one.factor * our_gradient)
        if one.same is not None:
            value, gradient = evaluated(one.same[1], one.student)
            holds &= near(theirs, value) and near(their_gradient, gradient)
        if not shown:
            lengths = our_gradient.norm(), their_gradient.norm()
            cosine = (our_gradient @ their_gradient / (lengths[0] * lengths[1])).item()
            shown = {
                "ours": ours.item(), "theirs": theirs.item(), "ratio": (theirs / ours).item(), "gradient": (lengths[1] / lengths[0]).item(), "cosine": cosine,
            }  # fmt: skip
    said = {"method": row.method, "toolkit": row.toolkit, "loss": row.loss, "account": row.account}
    return {**said, **shown, "factor": row.factor, "same": None if row.same is None else row.same[0], "holds": bool(holds)}


def evaluated(loss: Loss, student: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Return the value of a loss, the mean where it is one number per example, and its gradient by the student's tensors as one vector."""
    leaves = [one.clone().requires_grad_() for one in student]
    value = loss(*leaves).mean()
    gradients = torch.autograd.grad(value, leaves)
    return value.detach(), torch.cat([one.flatten() for one in gradients])


def near(one: Tensor, other: Tensor) -> bool:
    scale = other.abs().max().item()
    return math.isfinite(scale) and scale > 0 and (one - other).abs().max().item() <= TOLERANCE * scale


def told(one: dict[str, Any]) -> str:
    parts = [] if one["factor"] is None else [f"{'gradient ' if one['same'] else ''}factor {one['factor']:.6g}"]
    return ", ".join(parts + ([f"same as {one['same']}"] if one["same"] else []))


def markdown(measured: list[dict[str, Any]]) -> str:
    lines = ["| method | other loss | ratio | gradient | cosine | what accounts for it | theirs in our words |", "|---|---|---|---|---|---|---|"]
    for one in measured:
        words = one["same"] or ("the same" if one["factor"] == 1 else f"ours x {one['factor']:.4g}")
        figures = " | ".join(f"{one[name]:.4g}" for name in ("ratio", "gradient", "cosine"))
        lines.append(f"| {one['method']} | {one['toolkit']} `{one['loss']}` | {figures} | {one['account']} | {words} |")
    return "\n".join(lines)


def said(output: Any) -> dict[str, Any]:
    """What torchdistill's hooks would have recorded of one layer."""
    return {"layer": {"output": output}}


READ = {"student_module_path": "layer", "student_module_io": "output", "teacher_module_path": "layer", "teacher_module_io": "output"}
PAIR = {"pair": {"student": {"path": "layer", "io": "output"}, "teacher": {"path": "layer", "io": "output"}}}
PATHS = {"student_output_path": "layer", "teacher_output_path": "layer"}


def rows(losses: Any, seed: int) -> list[Row]:
    draw = torch.Generator().manual_seed(seed)

    def random(*shape: int, scale: float = 1.0) -> Tensor:
        return scale * torch.randn(*shape, generator=draw, dtype=torch.float64)

    logits = random(N, C, scale=3.0), random(N, C, scale=3.0), torch.randint(0, C, (N,), generator=draw)
    maps, vectors = (random(N, D, PLACES, PLACES), random(N, D, PLACES, PLACES)), (random(N, WIDTH), random(N, WIDTH))
    later = random(N, D - 1, PLACES // 2, PLACES // 2), random(N, D - 1, PLACES // 2, PLACES // 2)
    tokens = random(N, TOKENS, WIDTH), random(N, TOKENS, WIDTH), (torch.arange(N) % TOKENS)[:, None] >= torch.arange(TOKENS)
    spread = random(D).exp()
    embeddings = F.normalize(random(N, EMBEDDING), dim=1), F.normalize(random(N, EMBEDDING), dim=1)
    start, bank = (2 * torch.rand(2, BANK, EMBEDDING, generator=draw, dtype=torch.float64) - 1) * math.sqrt(3 / EMBEDDING), random(2, BANK, EMBEDDING)
    bank = F.normalize(F.normalize(bank, dim=2) + torch.stack([F.pad(one, (0, 0, 0, BANK - N)) for one in embeddings]), dim=2)
    return [
        *responses(losses, *logits), *features(losses, *maps, later, spread), *hidden(*tokens),
        *relations(losses, *vectors), *contrast(losses, embeddings, start, bank),
    ]  # fmt: skip


def responses(losses: Any, student: Tensor, teacher: Tensor, labels: Tensor) -> list[Row]:
    t, hard, soft = 4.0, 0.1, 0.9
    ours = (student,)

    def td(name: str, given: Tensor | None, **options: Any) -> Loss:
        return lambda s: getattr(losses, name)(**READ, **options)(said(s), said(teacher), given)

    def supervised(s: Tensor) -> Tensor:
        return Classify(classes=C).loss(Knowledge({"main": Dense(s)}), {"label": labels}).mean()

    def kd(s: Tensor) -> Tensor:
        return kd_loss(s, teacher, temperature=t).mean()

    def standardized(s: Tensor, *, sample: bool = False) -> Tensor:
        ours, theirs = (standardized_logits(x, deviation="sample" if sample else "population") for x in (s, teacher))
        return kd_loss(ours, theirs, temperature=2.0).mean()

    def crosses(s: Tensor) -> Tensor:
        yes = teacher.sigmoid()
        return bernoulli_kd_loss(s, teacher, reduction="mean").mean() - (yes * F.logsigmoid(teacher) + (1 - yes) * F.logsigmoid(-teacher)).mean()

    def probabilities(s: Tensor) -> Tensor:
        return F.softmax(s / t, 1)

    library, no_square = "torchdistill", "no T^2 where alpha is 0 or None"
    return [
        Row("response.kd", library, "KDLoss(temperature=4, alpha=0)", no_square, ours, kd, td("KDLoss", labels, temperature=t, alpha=0), t**-2),
        Row("response.kd", library, "KDLoss(temperature=4, alpha=0.1, beta=0.9), no labels", "no T^2 without labels, and beta is not applied", ours,
            lambda s: soft * kd(s), td("KDLoss", None, temperature=t, alpha=hard, beta=soft), 1 / (soft * t**2)),
        Row("0.9 response.kd + 0.1 supervised", library, "KDLoss(temperature=4, alpha=0.1)", "none", ours,
            lambda s: soft * kd(s) + hard * supervised(s), td("KDLoss", labels, temperature=t, alpha=hard), 1),
        Row("response.kd", "torch", "T^2 KLDivLoss()", "mean over classes too: `mean` for `batchmean`", ours, kd,
            lambda s: t**2 * F.kl_div(probabilities(s).log(), F.softmax(teacher / t, 1), reduction="mean"), 1 / C),
        Row("response.soft_cross_entropy", "torch", "CrossEntropyLoss(), soft targets", "no T^2", ours,
            lambda s: soft_cross_entropy_loss(s, teacher, temperature=t), lambda s: F.cross_entropy(s / t, F.softmax(teacher / t, 1)), t**-2),
        Row("response.logit_matching", "torch", "MSELoss()", "no half", ours, lambda s: logit_matching_loss(s, teacher), lambda s: F.mse_loss(s, teacher), 2),
        Row("response.standardized of kd, T = 2", library, "LogitStdKDLoss(temperature=2, alpha=0)", f"{no_square}; deviation over C - 1", ours,
            standardized, td("LogitStdKDLoss", labels, temperature=2.0, alpha=0),
            same=("`deviation: sample` / T^2", lambda s: standardized(s, sample=True) / 4)),
        Row("9 standardized + 0.1 supervised", library, "LogitStdKDLoss(temperature=2, alpha=0.1, beta=9)", "deviation over C - 1", ours,
            lambda s: 9 * standardized(s) + hard * supervised(s), td("LogitStdKDLoss", labels, temperature=2.0, alpha=hard, beta=9.0),
            same=("`deviation: sample`", lambda s: 9 * standardized(s, sample=True) + hard * supervised(s))),
        Row("response.dist", library, "DISTLoss()", "none", ours, lambda s: dist_loss(s, teacher), td("DISTLoss", labels), 1),
        Row("response.dist, T = 4", library, "DISTLoss(tau=4)", "none", ours, lambda s: dist_loss(s, teacher, temperature=t), td("DISTLoss", labels, tau=t), 1),
        Row("response.bernoulli_kd", "torch", "BCEWithLogitsLoss(), soft targets", "mean over classes; the teacher's entropy, a constant, is added", ours,
            lambda s: bernoulli_kd_loss(s, teacher), lambda s: F.binary_cross_entropy_with_logits(s, teacher.sigmoid()), 1 / C,
            ("`reduction: mean` + entropy of the teacher", crosses)),
        Row("response.regression_kd, margin null", "torch", "MSELoss()", "mean over the C numbers", ours,
            lambda s: regression_kd_loss(s, teacher), lambda s: F.mse_loss(s, teacher), 1 / C),
        Row("response.label_smoothing", "torch", "CrossEntropyLoss(label_smoothing=0.1)", "none", ours,
            lambda s: label_smoothing_loss(s, labels), lambda s: F.cross_entropy(s, labels, label_smoothing=0.1), 1),
        Row("supervised", "torch", "CrossEntropyLoss()", "none", ours, supervised, lambda s: F.cross_entropy(s, labels), 1),
    ]  # fmt: skip


def features(losses: Any, student: Tensor, teacher: Tensor, later: tuple[Tensor, Tensor], spread: Tensor) -> list[Row]:
    ours, library = (student,), "torchdistill"
    elements, places = D * PLACES**2, PLACES**2
    flow = {name: {"path": name.split("_")[1], "io": "output"} for name in ("student_first", "student_second", "teacher_first", "teacher_second")}
    wrapped = losses.SimpleLossWrapper(
        nn.MSELoss(),
        input={"is_from_teacher": False, "module_path": "layer", "io": "output"},
        target={"is_from_teacher": True, "module_path": "layer", "io": "output"},
    )

    def flows(one: Tensor, two: Tensor) -> dict[str, Any]:
        return {"first": {"output": one}, "second": {"output": two}}

    def columns(one: Tensor, two: Tensor) -> Tensor:
        each = [fsp_loss((one, two[:, [c]]), (teacher, later[1][:, [c]])).sqrt() for c in range(two.shape[1])]
        return torch.stack(each).sum(0)

    def td(criterion: Any) -> Loss:
        return lambda s: criterion(said(s), said(teacher), None)

    def factors(p: int) -> Loss:
        criterion = losses.FTLoss(p=p)
        return lambda s: criterion({"translator": {"output": s}}, {"paraphraser": {"output": teacher}})

    review = losses.HierarchicalContextLoss(**READ)
    likelihood = losses.VIDLoss(PAIR)
    return [
        Row("feature.fitnet", library, "SimpleLossWrapper(MSELoss())", "mean over elements, no half: 2 / DHW", ours,
            lambda s: fitnet_loss(s, teacher), td(wrapped), 2 / elements),
        Row("feature.fsp", library, "FSPLoss", "columns of G by their length, not its square", (student, later[0]),
            lambda one, two: fsp_loss((one, two), (teacher, later[1])),
            lambda one, two: losses.FSPLoss({"pair": flow})(flows(one, two), flows(teacher, later[1])),
            same=("sum over columns of the root of each column's fsp", columns)),
        Row("attention.at", library, "ATLoss(mode='code')", "squared distance", ours,
            lambda s: at_loss(s, teacher), td(losses.ATLoss(PAIR)),
            same=("`distance: square`", lambda s: at_loss(s, teacher, distance="square"))),
        Row("attention.at", library, "ATLoss(mode='paper')", "no 1 / HW", ours, lambda s: at_loss(s, teacher), td(losses.ATLoss(PAIR, mode="paper")), places),
        Row("feature.factor_transfer (its factors)", library, "FTLoss(p=1)", "mean over elements: 1 / kDHW; `reduction: mean` here", ours,
            lambda s: factor_transfer_loss(s, teacher), factors(1), 1 / elements),
        Row("feature.factor_transfer (its factors), p = 2", library, "FTLoss(p=2)", "none", ours,
            lambda s: factor_transfer_loss(s, teacher, p=2), factors(2), 1),
        Row("feature.ab", library, "AltActTransferLoss(margin=1, reduction='mean')", "none", ours,
            lambda s: ab_loss(s, teacher), td(losses.AltActTransferLoss(PAIR, 1.0, "mean")), 1),
        Row("feature.vid (mean and variance given)", library, "VIDLoss", "mean over elements: 1 / DHW; `reduction: mean` here", ours,
            lambda s: vid_loss(s, teacher, spread), lambda s: likelihood(said((s, spread.reshape(1, -1, 1, 1))), said(teacher)), 1 / elements),
        Row("feature.reviewkd (HCL of one layer)", library, "HierarchicalContextLoss", "none", ours,
            lambda s: reviewkd_loss(s, teacher), lambda s: review(said((s, None)), said(teacher)), 1),
        Row("feature.ickd", library, "ChSimLoss", "divided by N once more", ours, lambda s: ickd_loss(s, teacher), td(losses.ChSimLoss(PAIR)), 1 / N),
    ]  # fmt: skip


def hidden(student: Tensor, teacher: Tensor, mask: Tensor) -> list[Row]:
    """Hidden states, `mask [N, T]` being where a token is real."""
    ours = (student,)

    def directions(s: Tensor, where: Tensor) -> Tensor:
        return F.cosine_embedding_loss(s[where], teacher[where], torch.ones(int(where.sum()), dtype=s.dtype))

    def by_length(s: Tensor) -> Tensor:
        return (cosine_loss(s, teacher, mask=mask) * mask.sum(1)).sum() / mask.sum()

    return [
        Row("feature.cosine", "torch", "CosineEmbeddingLoss()", "none where all examples are of one length", ours,
            lambda s: cosine_loss(s, teacher), lambda s: directions(s, torch.ones_like(mask)), 1),
        Row("feature.cosine with a mask", "torch", "CosineEmbeddingLoss() of all real tokens (DistilBERT's code)", "long examples weigh more", ours,
            lambda s: cosine_loss(s, teacher, mask=mask), lambda s: directions(s, mask),
            same=("mean over examples, weighed by length", by_length)),
    ]  # fmt: skip


def relations(losses: Any, student: Tensor, teacher: Tensor) -> list[Row]:
    ours, library, gamma = (student,), "torchdistill", 0.4

    def rkd(distance: float, angle: float, reduction: str) -> Loss:
        criterion = losses.RKDLoss(**PATHS, dist_factor=distance, angle_factor=angle, reduction=reduction)
        return lambda s: criterion(said(s), said(teacher))

    def congruence(unit: bool, **kernel: Any) -> Loss:
        criterion = losses.CCKDLoss("layer", "layer", kernel, "batchmean")
        return lambda s: criterion(*(said(F.normalize(x) if unit else x) for x in (s, teacher)))

    def neighbours(x: Tensor) -> Tensor:
        kernel = (F.cosine_similarity(x[:, None], x[None], dim=2) + 1) / 2
        return kernel / kernel.sum(1, keepdim=True)

    def among_all(s: Tensor) -> Tensor:
        p, q = neighbours(teacher), neighbours(s)
        return (p * ((p + 1e-7) / (q + 1e-7)).log()).mean()

    def rows_by_sum(s: Tensor) -> Tensor:
        one, other = ((x @ x.T) / (x @ x.T).abs().sum(1, keepdim=True) for x in (s, teacher))
        return (one - other).square().sum() / N**2

    def kernels(s: Tensor) -> Tensor:
        one, other = (math.exp(-2 * gamma) * (1 + 2 * gamma * x @ x.T + (2 * gamma * x @ x.T) ** 2 / 2) for x in (s, teacher))
        return (one - other).square().sum().sqrt() / N**2

    return [
        Row("relation.rkd_distance", library, "RKDLoss(1, 0, reduction='mean')", "none", ours,
            lambda s: rkd_distance_loss(s, teacher), rkd(1.0, 0.0, "mean"), 1),
        Row("relation.rkd_distance", library, "RKDLoss(1, 0, reduction='sum')", "N^2; `reduction: sum` here", ours,
            lambda s: rkd_distance_loss(s, teacher), rkd(1.0, 0.0, "sum"), N**2),
        Row("relation.rkd_angle", library, "RKDLoss(0, 1, reduction='mean')", "none", ours, lambda s: rkd_angle_loss(s, teacher), rkd(0.0, 1.0, "mean"), 1),
        Row("relation.rkd_angle", library, "RKDLoss(0, 1, reduction='sum')", "N^3; `reduction: sum` here", ours,
            lambda s: rkd_angle_loss(s, teacher), rkd(0.0, 1.0, "sum"), N**3),
        Row("relation.pkt", library, "PKTLoss", "each example is its own neighbour; mean over N^2; 1e-7 in the logarithm", ours,
            lambda s: pkt_loss(s, teacher), lambda s: losses.PKTLoss(**READ)(said(s.clone()), said(teacher.clone())), same=("written out", among_all)),
        Row("relation.pkt, reduction mean", library, "PKTLoss", "each example is its own neighbour; 1e-7 in the logarithm", ours,
            lambda s: pkt_loss(s, teacher, reduction="mean"), lambda s: losses.PKTLoss(**READ)(said(s.clone()), said(teacher.clone())),
            same=("written out", among_all)),
        Row("relation.sp", library, "SPKDLoss(reduction='batchmean')", "rows of G divided by their sum of absolute values, not their length", ours,
            lambda s: sp_loss(s, teacher), lambda s: losses.SPKDLoss(**PATHS, reduction="batchmean")(said(s), said(teacher)),
            same=("written out", rows_by_sum)),
        Row("relation.cc", library, "CCKDLoss(gaussian, 'batchmean'), unit features", "Frobenius norm not squared, divided by N^2", ours,
            lambda s: cc_loss(s, teacher), congruence(True, type="gaussian", gamma=gamma, max_p=2),
            same=("sqrt(cc) / N", lambda s: cc_loss(s, teacher).sqrt() / N)),
        Row("relation.cc", library, "CCKDLoss(gaussian, 'batchmean')", "the same, and features as long as they are, where the kernel wants unit ones", ours,
            lambda s: cc_loss(s, teacher), congruence(False, type="gaussian", gamma=gamma, max_p=2), same=("written out", kernels)),
        Row("relation.cc, bilinear", library, "CCKDLoss(bilinear, 'batchmean'), unit features", "Frobenius norm not squared, divided by N^2", ours,
            lambda s: cc_loss(s, teacher, kernel="bilinear"), congruence(True, type="bilinear"),
            same=("sqrt(cc) / N", lambda s: cc_loss(s, teacher, kernel="bilinear").sqrt() / N)),
    ]  # fmt: skip


def contrast(losses: Any, embeddings: tuple[Tensor, Tensor], start: Tensor, bank: Tensor) -> list[Row]:
    """CRD's second step: `start`, the random rows that torchdistill begins with and takes Z from, have become earlier embeddings, `bank [2, BANK, EMBEDDING]`.

    The examples have the rows 0 to N - 1, the last rows are everybody's negatives.
    """
    temperature = 0.07
    old_student, old_teacher = bank
    negatives = torch.arange(BANK - NEGATIVES, BANK)
    chosen = torch.cat([torch.arange(N)[:, None], negatives.expand(N, -1)], 1)
    more = {"empty": {"input": {"pos_idx": torch.arange(N), "contrast_idx": chosen}}}

    def fill(criterion: Any, rows: Tensor) -> None:
        criterion.memory_v1.copy_(rows[0])
        criterion.memory_v2.copy_(rows[1])

    def theirs(s: Tensor, t: Tensor) -> Tensor:
        criterion = losses.CRDLoss("layer", "empty", "layer", EMBEDDING, BANK, NEGATIVES, BANK, temperature).double()
        fill(criterion, start)
        with torch.no_grad():
            criterion({**said(s), **more}, said(t))
        fill(criterion, bank)
        return criterion({**said(s), **more}, said(t))

    def ours(s: Tensor, t: Tensor) -> Tensor:
        return crd_loss(s, t, old_teacher[negatives], temperature=temperature) + crd_loss(t, s, old_student[negatives], temperature=temperature)

    def one_side(anchor: Tensor, other: Tensor, first: Tensor) -> Tensor:
        estimated = (torch.einsum("nd,nkd->nk", anchor.detach(), first[chosen]) / temperature).exp().mean().item()
        return crd_loss(anchor, other[:N], other[negatives], temperature=temperature, noise=NEGATIVES * estimated)

    words = "crd_loss with the bank's rows as positives and noise = K mean exp(u.v / T) of the first batch"
    return [
        Row("feature.crd (one step, the same negatives)", "torchdistill", "CRDLoss", "Z from the first batch; the positive from the bank", embeddings,
            ours, theirs, same=(words, lambda s, t: one_side(s, old_teacher, start[1]) + one_side(t, old_student, start[0]))),
    ]  # fmt: skip


if __name__ == "__main__":
    main()
