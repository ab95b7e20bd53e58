"""peft: low-rank adapters put into a model, and merged into its weights.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022, arXiv:2106.09685, eq. 3: W x becomes W x + (alpha / r) B A x, B zero at first.
"""

import warnings
from types import ModuleType
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from limbeck.core.errors import MissingDependency, RecipeError, did_you_mean

__all__ = ["LoRA", "adapted", "adapters", "merged"]


class LoRA(BaseModel):
    """Low-rank adapters: `r`, their rank; `alpha`, over r their scale; `targets`, the ends of the paths of the layers that have one."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: Literal["lora"] = "lora"
    r: int = Field(default=8, ge=1)
    alpha: float = Field(default=16.0, gt=0)
    targets: tuple[str, ...] | None = None
    dropout: float = Field(default=0.0, ge=0, lt=1)


def _library() -> ModuleType:
    try:
        import peft
    except ImportError:
        raise MissingDependency("peft", "peft", "an adapter of kind lora") from None
    return peft


def adapted(model: Any, how: LoRA, spared: tuple[str, ...] = ()) -> Any:
    """Put adapters into a transformers model, in place: nothing else learns, but for parameters whose paths begin with one of `spared`.

    Raises:
        RecipeError: a target that is no layer of the model's, or none where peft knows none for the architecture.
        MissingDependency: peft is not installed.
    """
    library = _library()
    layers = sorted({path.rpartition(".")[2] for path, module in model.named_modules() if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"})
    usual = library.utils.constants.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(model.config.model_type)
    targets = list(how.targets or usual or ())
    if not targets:
        raise RecipeError(f"no layers are known to adapt in a model of type {model.config.model_type}: name them, targets: [...]; it has {', '.join(layers)}")
    known = [path for path, _ in model.named_modules()]
    for target in targets:
        if not any(path == target or path.endswith(f".{target}") for path in known):
            raise RecipeError(f"there is no layer {target!r} to adapt in {type(model).__name__}{did_you_mean(target, layers)}")
    options: dict[str, Any] = {"r": how.r, "lora_alpha": how.alpha, "lora_dropout": how.dropout, "target_modules": targets}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "fan_in_fan_out is set to False but the target module is `Conv1D`", UserWarning, r"peft\.tuners\.lora\.layer")
        try:
            library.inject_adapter_in_model(library.LoraConfig(**options), model)
        except ValueError as error:
            raise RecipeError(f"{type(model).__name__} cannot be adapted at {', '.join(targets)}: {' '.join(str(error).split())[:200]}") from None
    for name, parameter in model.named_parameters():
        if name.startswith(spared):
            parameter.requires_grad_(True)
    return model


def adapters(model: nn.Module) -> dict[str, Any]:
    """Return path -> every layer of a model that has an adapter; none where the library is not there."""
    try:
        from peft.tuners.tuners_utils import BaseTunerLayer
    except ImportError:
        return {}
    return {path: module for path, module in model.named_modules() if isinstance(module, BaseTunerLayer)}


def merged(model: nn.Module) -> nn.Module:
    """Add every adapter to the weights that it adapts, in place, and leave the plain layers."""
    for path, layer in adapters(model).items():
        layer.merge()
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, layer.get_base_layer())
    return model
