"""What silently ruins the distillation of a language model, found in one batch of tokens and in what the teacher says of it.

Shapes: N rows, T tokens, V vocabulary; `label[t]` is the token after `input[t]`, -100 where it does not count.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.core.task import Batch
from limbeck.tasks._pack import IGNORED

from ._ailments import Finding

__all__ = ["ended", "few_rows", "of_tokens", "padded", "shift_of_answers", "shift_of_labels"]

_MOST, _CLEAR = 0.9, 0.5
"""Shares of tokens above which labels are said to be the inputs at another place, and below which they are not at the right one."""
_LOGITS = 1 << 24


def of_tokens(batch: Batch) -> bool:
    """Whether a batch is one of language modelling: token ids, and a label for each."""
    x, y = batch.get("input"), batch.get("label")
    return x is not None and y is not None and x.ndim == 2 and not x.is_floating_point() and x.shape == y.shape


def few_rows(batch: Batch, classes: int) -> Batch:
    """Return as many rows as have 2^24 logits, one at the least."""
    rows = max(1, _LOGITS // (batch["input"].shape[1] * classes))
    return {name: value[:rows] if value.shape[:1] == batch["input"].shape[:1] else value for name, value in batch.items()}


def _same(batch: Batch, ahead: int) -> float:
    """Which share of the labels that count is the input so many tokens ahead, within the row; NaN where there are none."""
    x, y = batch["input"], batch["label"]
    if x.shape[1] <= ahead:
        return float("nan")
    label, token = y[:, : x.shape[1] - ahead], x[:, ahead:]
    counts = label != IGNORED
    return (label == token)[counts].float().mean().item()


def shift_of_labels(batch: Batch) -> Iterator[Finding]:
    """Labels that are the inputs themselves, or those two tokens ahead: whoever made them left the shift to the model, or made it twice.

    A masked model's labels are its inputs' own places; its batches say `attention`, and are not looked at.
    """
    if "attention" in batch:
        return
    right, itself, twice = (_same(batch, ahead) for ahead in (1, 0, 2))
    way = "make label[t] the token after input[t]: label = torch.cat([input[:, 1:], -100], 1)"
    if itself > _MOST and not right > _CLEAR:
        yield Finding("fault", "shift", f"the labels are the inputs themselves ({itself:.0%}): a model that is asked for them learns to copy; {way}")
    elif twice > _MOST and not right > _CLEAR:
        yield Finding("fault", "shift", f"the labels are the tokens two places ahead ({twice:.0%}): they were shifted twice; {way}")
    elif right > _MOST:
        yield Finding("fine", "shift", f"each label is the token after its input ({right:.0%})")


def padded(batch: Batch, pad: int | None) -> Iterator[Finding]:
    """Padding or a prompt that counts: by the batch's own `segment`, `attention` and `prompt`, else by a run of one token at a row's end."""
    x, counts = batch["input"], batch["label"] != IGNORED
    for field, empty, what in (("segment", 0, "padding"), ("attention", 0, "padding"), ("prompt", 1, "a prompt")):
        if field in batch and (bad := counts & (batch[field] == empty)).any():
            way = "label it -100"
            yield Finding("fault", "mask", f"{int(bad.sum())} tokens that are {what} by `{field}` count in the loss: {way}")
            return
    last = x[:, -1:] if pad is None else x.new_tensor(pad).expand(len(x), 1)
    run = (x == last).flip(1).cumprod(1).flip(1).bool() & (batch["label"] == last)  # the row ends in one token, and predicts it of itself
    if (bad := counts & run).sum(1).max() >= 2:
        told = f"{int(bad.any(1).sum())} of {len(x)} rows end in a run of token {int(last[int(bad.sum(1).argmax())])} that counts in the loss"
        yield Finding("fault", "mask", f"{told}: padding is learnt; label it -100, but for the first where it is the end token")
    elif not counts.any():
        yield Finding("fault", "mask", "no token of the batch counts: nothing is learnt; look at what is labelled -100")
    else:
        yield Finding("fine", "mask", f"{counts.float().mean().item():.0%} of the batch's tokens count")


def ended(batch: Batch, eos: int | None) -> Iterator[Finding]:
    """An end token that is never learnt though texts end: padding is the same token, and all of it was masked, the first one too."""
    if eos is None:
        return
    x, y = batch["input"], batch["label"]
    run = (x == eos).flip(1).cumprod(1).flip(1).bool()  # the row's last stretch of end tokens
    runs = run.sum(1)
    inside = (runs >= 2) & (runs < x.shape[1])
    if not inside.any():
        return
    before = (x.shape[1] - runs - 1).clamp(min=0)  # the last token of the text: its label is the first end
    row = torch.arange(len(x), device=x.device)
    cut = inside & (y[row, before] == IGNORED) & ((y != IGNORED) & ~run).any(1)
    if cut.any() and not (y == eos).any():
        yield Finding(
            "fault", "end",
            f"the end token {eos} is never learnt: {int(cut.sum())} of {len(x)} rows end in a run of it of which not even the first counts (padding is the "
            "same token); mask by position, not by token, or the student will not stop",
        )  # fmt: skip
    else:
        yield Finding("fine", "end", "ends are learnt")


@torch.no_grad()
def shift_of_answers(logits: Tensor, batch: Batch) -> Iterator[Finding]:
    """A teacher whose answers are about another place: at a shift its loss on the labels is clearly lower; `logits [N, T, V]`."""
    labels, length = batch["label"], batch["input"].shape[1]
    losses: dict[int, float] = {}
    for ahead in (0, 1, -1):
        said = logits[:, max(0, -ahead) : length - max(0, ahead)]
        wanted = labels[:, max(0, ahead) : length - max(0, -ahead)]
        if (wanted != IGNORED).any():
            losses[ahead] = F.cross_entropy(said.float().flatten(0, 1), wanted.flatten(), ignore_index=IGNORED).item()
    best = min(losses, key=lambda ahead: losses[ahead], default=0)
    if best and losses[0] - losses[best] > 0.5:
        told = f"its loss on the labels is {losses[0]:.2f} nats, and {losses[best]:.2f} where its answers are moved by one token"
        where = "the token before the one asked for" if best == -1 else "the token after the one asked for"
        yield Finding("fault", "shift", f"the teacher speaks of {where}: {told}; hand its logits over unshifted, answer t to input[.. t]")
