"""Put a trained model, or an exported file, into the folder that is its artifact."""

import math
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from limbeck.core.artifact import Kind, seal
from limbeck.core.errors import DataError
from limbeck.core.files import atomic_folder, storage, write_json
from limbeck.core.knowledge import Knowledge
from limbeck.core.task import Batch, Task
from limbeck.engine import checkpoint
from limbeck.engine.evaluate import Predictions, predict, scored
from limbeck.engine.loop import Fit
from limbeck.engine.plan import Training
from limbeck.measure.answers import numbers, yes_or_no
from limbeck.measure.fidelity import fidelity
from limbeck.measure.size import macs, parameters, weights_left
from limbeck.measure.statistics import by_rows
from limbeck.models.exits import Exits
from limbeck.tasks._text_samples import samples
from limbeck.tasks.language import Language

from .anytime import Heard
from .modules import taken, takes

__all__ = [
    "Publication", "choose", "metrics_of_test", "place", "publish_module", "publish_players", "real_batch", "seal_with_proof", "seen",
    "training_metrics",
]  # fmt: skip

GOLDEN = 8
"""How many inputs and answers an artifact keeps as its golden ones."""
_KEPT = 1 << 22


@dataclass(frozen=True)
class Publication:
    """What an artifact says of itself beside its model; `teacher` is what its teacher said of the test split: `ids [N]` and `logits [N, C]`."""

    target: Path
    name: str
    stage_hash: str
    lineage: Mapping[str, Any]
    recipe: str
    teacher: Mapping[str, Tensor] | None = None


def choose(model: nn.Module, fitted: Fit, plan: Training, player: str = "student") -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Load the best or the last weights into a trained model, as the plan has it; return the best and the last."""
    last = {name: value.detach().cpu().clone().contiguous() for name, value in model.state_dict().items()}
    best = fitted.best[player]
    model.load_state_dict(best if plan.select == "best" else last)
    model.eval()
    return best, last


def training_metrics(fitted: Fit, player: str = "student") -> dict[str, Any]:
    """Return how training went: the player's validation metrics of the best epoch, and of the last."""
    metrics: dict[str, Any] = {"epochs": len(fitted.history), "best_epoch": fitted.best_epoch, "train_seconds": fitted.seconds}
    metrics["steps_per_s"] = fitted.steps / fitted.seconds if fitted.seconds > 0 else 0.0
    own = f"validation_{player}_" if len(fitted.best) > 1 else "validation_"  # where several players ship, each score bears its player's name
    for name, value in fitted.history[fitted.best_epoch - 1].items():
        if name.startswith(own):
            told = f"validation_{name.removeprefix(own)}"
            metrics |= {told: value, f"{told}_last": fitted.history[-1][name]}
    return metrics


def place(out: Path, name: str) -> Path:
    """Return the folder of a stage's artifact, or of its player's, `stage.player`."""
    stage, _, player = name.partition(".")
    return out / "stages" / stage / "players" / player if player else out / "stages" / stage


def publish_players(
    told: Publication,
    plan: Training,
    task: Task,
    shipped: Mapping[str, nn.Module],
    how: Mapping[str, Mapping[str, Any]],
    fitted: Fit,
    state: Path,
    device: torch.device,
    leave: Callable[[Path, nn.Module], None],
) -> None:
    """Write the student's artifact, with an artifact of each other player that ships in it; `how` says how to rebuild each, the student's way by default.

    `leave` puts what else belongs into the student's folder.
    """
    others = {player: model for player, model in shipped.items() if player != "student"}
    model = shipped["student"]

    def fill(folder: Path) -> None:
        leave(folder, model)
        for player, module in others.items():
            own = replace(told, target=folder / "players" / player, name=f"{told.name}.{player}")
            publish_module(own, plan, task, module, how.get(player, how["student"]), fitted, None, device, player=player)

    publish_module(told, plan, task, model, how["student"], fitted, state, device, fill=fill)


def publish_module(
    told: Publication,
    plan: Training,
    task: Task,
    model: nn.Module,
    how: Mapping[str, Any],
    fitted: Fit,
    state: Path | None,
    device: torch.device,
    *,
    player: str = "student",
    fill: Callable[[Path], None] = lambda _folder: None,
) -> dict[str, Any]:
    """Write a trained module's artifact; `how` says how to rebuild it, `state` holds the checkpoints, `fill` adds what else belongs into the folder.

    The chosen weights stay loaded; returns the metrics.
    """
    best, last = choose(model, fitted, plan, player)
    example = real_batch(task, 1, device)
    operations = macs(model, example["input"], ask=lambda asked: task.forward(asked, example).main)
    metrics = training_metrics(fitted, player) | {"parameters": parameters(model), "weights_left": weights_left(model), "macs": operations}
    with atomic_folder(told.target) as folder:
        with storage(folder):
            save_file(best, folder / "best.safetensors")
            save_file(last, folder / "last.safetensors")
            os.link(folder / f"{plan.select}.safetensors", folder / "model.safetensors")
            write_json(folder / "history.json", {"epochs": fitted.history})
            if state is not None:
                newest = checkpoint.latest(state)
                assert newest is not None, "a finished training has a checkpoint"
                shutil.copytree(newest, folder / "checkpoint" / newest.name)
            fill(folder)
        about = seen(task, model, example)
        heard = Heard(task, model) if isinstance(model, Exits) and "link" not in about else partial(task.forward, model)
        seal_with_proof(told, folder, task, heard, "module", "model.safetensors", {**how, **about}, metrics, device)
    return metrics


@torch.no_grad()
def seen(task: Task, model: nn.Module, example: Batch) -> dict[str, Any]:
    """Return what a spec says of the data that a model was made for, and of how it is asked; softmax and one input of real numbers go without saying."""
    facts, link = task.facts(), task.forward(model, example).main.link
    found: dict[str, Any] = {"link": link} if link != "softmax" else {}
    found |= {"takes": inputs} if (inputs := takes(taken(task, model, example))) else {}
    shape: dict[str, Any] = {"in_shape": list(facts.in_shape), "classes": facts.classes, "class_names": list(facts.class_names)}
    return found | shape | {"preprocess": dict(facts.preprocess)}


def seal_with_proof(
    told: Publication, folder: Path, task: Task, answer: Callable[[Batch], Knowledge], kind: Kind, model: str, spec: Mapping[str, Any],
    metrics: dict[str, Any], device: torch.device | None = None,
) -> None:  # fmt: skip
    """Open the test split, once; keep golden answers; write lineage, recipe and manifest. What is found is added to `metrics`."""
    golden = _golden(real_batch(task, GOLDEN, device), answer)
    save_file(golden, folder / "golden.safetensors")
    if "test" in task.splits() and golden["outputs"].ndim > 2:  # tokens: their logits would fill a disk
        metrics |= _of_tokens(folder, task, answer, device)
    elif "test" in task.splits():
        if isinstance(answer, Heard):
            answer.forget()
        said = predict(answer, task, "test", device=device)
        if isinstance(answer, Heard):
            figures, record = answer.worth(real_batch(task, 1, device)["input"])
            metrics |= figures
            write_json(folder / "exits.json", record)
        save_file({"logits": said.logits.contiguous(), "labels": said.labels.contiguous(), "ids": said.ids.contiguous()}, folder / "predictions.safetensors")
        comparable = told.teacher is not None and torch.equal(told.teacher["ids"], said.ids)
        metrics |= metrics_of_test(said, told.teacher["logits"] if told.teacher is not None and comparable else None)
    metrics |= task.outcome(answer)
    write_json(folder / "lineage.json", dict(told.lineage))
    (folder / "recipe.yaml").write_text(told.recipe)
    seal(folder, name=told.name, kind=kind, model=model, stage_hash=told.stage_hash, spec=spec, metrics=metrics)


def _of_tokens(folder: Path, task: Task, answer: Callable[[Batch], Knowledge], device: torch.device | None) -> dict[str, Any]:
    """What answers to tokens are worth: scores by row are kept, of a causal model also what it writes."""
    found = scored(answer, task, "test", device=device)
    save_file({"ids": found.ids, "count": found.count, **found.sums}, folder / "rows.safetensors")
    metrics: dict[str, Any] = {f"test_{name}": value for name, value in found.means.items()} | {"predictions": int(found.count.sum())}
    if "loss" in found.sums:
        metrics["test_perplexity"] = math.exp(metrics["test_loss"])
        if len(found.ids) > 1:
            told = by_rows(found.sums["loss"].numpy(), found.count.numpy())
            metrics |= {"test_loss_low": told.low, "test_loss_high": told.high}
        size = task.facts().preprocess.get("bytes", {}).get("test")
        metrics |= {"test_bits_per_byte": float(found.sums["loss"].sum()) / math.log(2) / size} if size else {}
    if isinstance(task, Language):
        write_json(folder / "samples.json", {"samples": samples(answer, task.made, "test", device)})
    return metrics


def metrics_of_test(said: Predictions, teacher: Tensor | None) -> dict[str, Any]:
    """Return how good the answers on the test split are, and how much of the `teacher`'s logits `[N, C]` they keep.

    Fidelity is about classes: other answers have their task's own scores, under their names with `test_` before them, and what is known of the split as a
    whole where labels are the numbers that the answers are about.

    Raises:
        DataError: answers that are not finite.
    """
    if said.link == "softmax":
        return fidelity(said.logits, said.labels, teacher)
    if bad := int((~said.logits.isfinite()).flatten(1).any(1).sum()):
        raise DataError(f"the answers are not finite for {bad} of {len(said.logits)} test examples: the model gave NaN or infinity")
    found = dict(said.scores)
    if said.labels.shape == said.logits.shape:
        found |= (yes_or_no if said.link == "bernoulli" else numbers)(said.logits.numpy(), said.labels.numpy())
    return {"examples": len(said.logits)} | {f"test_{name}": value for name, value in found.items()}


@torch.no_grad()
def _golden(batch: Batch, answer: Callable[[Batch], Knowledge]) -> dict[str, Tensor]:
    """A few inputs and the model's answers; of a batch that cannot be cut, such as a graph, the first predictions' ids in the place of inputs.

    Of tokens so many rows, and of one row so many tokens, as have `_KEPT` logits.
    """
    said = answer(batch)
    if len(predictions := said.answer.predictions) == 2 and said.answer.classes * predictions.numel() > _KEPT:
        length = min(predictions[1], max(1, _KEPT // said.answer.classes))
        rows = max(1, _KEPT // (length * said.answer.classes))
        batch = {name: value[:rows, :length] if value.shape == predictions else value[:rows] for name, value in batch.items()}
        said = answer(batch)
    outputs = said.main.logits.float()
    if _divisible(batch):
        kept = {"inputs": batch["input"], "outputs": outputs}
    else:
        rows = torch.arange(len(outputs)) if said.mask is None else said.mask.nonzero().flatten().cpu()
        kept = {"ids": batch["id"].cpu()[rows[:GOLDEN]], "outputs": outputs.cpu()[rows[:GOLDEN]]}
    return {name: value.cpu().contiguous() for name, value in kept.items()}


def _divisible(batch: Batch) -> bool:
    """Whether every field has a row for each input, so that any rows of a batch are a batch."""
    return all(field.shape[:1] == batch["input"].shape[:1] for field in batch.values())


def real_batch(task: Task, count: int, device: torch.device | None = None) -> Batch:
    """Return the first `count` examples of the training split's first epoch, all there are where there are fewer; a batch that cannot be cut comes whole."""
    wanted, found = min(count, task.facts().examples), []
    for raw in task.loader("train", batch_size=wanted, device=device).batches(0):
        found.append(task.batch(raw))
        if not _divisible(found[0]):
            return found[0]
        if sum(len(one["input"]) for one in found) >= wanted:
            break
    return {name: torch.cat([one[name] for one in found])[:wanted] for name in found[0]}
