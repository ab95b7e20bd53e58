"""A model that comes with its weights, as a stage: nothing is trained, and it is judged as those that are."""

from functools import partial

from safetensors.torch import save_file
from torch import nn

from limbeck.core.errors import MismatchError, RecipeError
from limbeck.core.events import Listener, Note
from limbeck.core.files import atomic_folder, storage
from limbeck.core.task import Task
from limbeck.engine.checkpoint import seed_everything
from limbeck.engine.runtime import Accelerator, Runtime
from limbeck.measure.size import macs, parameters, weights_left

from .compressed import validated
from .pretrained import lasting, remarks, strange_words
from .publish import Publication, real_batch, seal_with_proof, seen
from .recipe import Part
from .resolve import make_model, model_spec

__all__ = ["bring", "brought"]


def brought(part: Part, task: Task) -> nn.Module:
    """Build the model that a given stage names, with its weights.

    Raises:
        RecipeError: a model that would begin anew.
        MismatchError: a tokenizer that is not the model's.
    """
    spec = model_spec(part, task.facts())
    if spec["builder"] != "hf" or spec["options"]["of"] is None or not spec["options"]["pretrained"]:
        raise RecipeError(f"a given model comes with its weights, and {part.kind} begins anew: name one, {{kind: hf:NAME_OR_PATH}}, or train it (kind: train)")
    if told := strange_words(spec, task.facts()):
        raise MismatchError(
            f"{told}: give the stage the model's own (task: {{tokenizer: {{kind: hf, root: {spec['options']['of']}}}}}), and where the student has another, "
            "teach across them by objectives.sequence.uld"
        )
    return make_model(spec).eval()


def bring(name: str, part: Part, task: Task, told: Publication, accelerator: Accelerator, seed: int, listener: Listener) -> None:
    """Publish a model that comes with its weights."""
    runtime = Runtime(accelerator=accelerator)
    seed_everything(seed)
    model = brought(part, task).to(runtime.device)
    for line in remarks(model):
        listener(Note(line, name))
    example = real_batch(task, 1, runtime.device)
    metrics = {"parameters": parameters(model), "weights_left": weights_left(model)}
    metrics["macs"] = macs(model, example["input"], ask=lambda asked: task.forward(asked, example).main)
    with atomic_folder(told.target) as folder:
        with storage(folder):
            save_file({key: value.detach().cpu().clone().contiguous() for key, value in model.state_dict().items()}, folder / "model.safetensors")
        spec = lasting(model, model_spec(part, task.facts())) | seen(task, model, example)
        seal_with_proof(
            told, folder, task, partial(task.forward, model), "module", "model.safetensors", spec, metrics | validated(model, task, runtime), runtime.device
        )
