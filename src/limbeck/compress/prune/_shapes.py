"""What a layer's channels are in its tensors and attributes, and how a layer is made of other sizes.

A structural surgery's record is of shapes alone: path -> {"attributes": {name: value}, "tensors": {name: shape}}.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.bridges.torch_pruning import Port
from limbeck.core.errors import ArtifactError
from limbeck.core.tap import layer

__all__ = ["by_channel", "channels_of", "narrow", "overlaid", "rebuilt", "shapes_record", "tensors_of"]

_Transposed = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_Conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *_Transposed)
_Batch = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)

_SIZES = frozenset({
    "out_channels", "in_channels", "groups", "out_features", "in_features", "num_features", "num_channels", "num_parameters", "embedding_dim",
    "normalized_shape", "heads",
})  # fmt: skip
"""The attributes that a record may set."""


def tensors_of(module: nn.Module, side: str) -> list[tuple[str, int]] | None:
    """Return (tensor's name, axis) for each tensor in which one side of a layer's channels lies, as the layer has it; None for a layer that is not known."""
    flat: list[str] = ["weight", "bias", "running_mean", "running_var"]
    match module:
        case nn.Linear():
            axes = [("weight", 0), ("bias", 0)] if side == "out" else [("weight", 1)]
        case nn.modules.conv._ConvNd() if isinstance(module, _Conv):
            over, under = (1, 0) if isinstance(module, _Transposed) else (0, 1)
            if isinstance(module, _Transposed) and module.groups > 1:
                return None
            reads = [] if by_channel(module) else [("weight", under)]
            axes = reads if side == "in" else [("weight", over), ("bias", 0)]
        case nn.PReLU() if module.num_parameters == 1:
            axes = []
        case nn.GroupNorm() | nn.PReLU() | nn.LayerNorm() if not isinstance(module, nn.LayerNorm) or len(module.normalized_shape) == 1:
            axes = [("weight", 0), ("bias", 0)]
        case nn.Embedding():
            axes = [("weight", 1)]
        case _ if isinstance(module, _Batch):
            axes = [(name, 0) for name in flat]
        case _:
            return None
    held = {**module._parameters, **module._buffers}
    return [(name, axis) for name, axis in axes if held.get(name) is not None]


def by_channel(convolution: nn.modules.conv._ConvNd) -> bool:
    """Whether a convolution reads each of its input channels apart."""
    return 1 < convolution.groups == convolution.in_channels


def overlaid(module: nn.Module, side: str) -> int:
    """How many groups of channels lie on one another along the axis of a layer's weight: all of a grouped convolution that it reads."""
    return module.groups if isinstance(module, nn.modules.conv._ConvNd) and side == "in" and not by_channel(module) else 1


def channels_of(model: nn.Module, port: Port) -> int:
    """Return how many channels a port has."""
    if port.side == "parameter":
        return model.get_parameter(port.path).shape[-1]
    module = layer(model, port.path)
    match module:
        case nn.Linear():
            return module.out_features if port.side == "out" else module.in_features
        case nn.modules.conv._ConvNd():
            return module.in_channels if port.side == "in" else module.out_channels
        case nn.LayerNorm():
            return module.normalized_shape[0]
        case nn.Embedding():
            return module.embedding_dim
        case nn.PReLU():
            return module.num_parameters
        case nn.GroupNorm():
            return module.num_channels
    return int(vars(module)["num_features" if port.side == "through" else port.side])


def narrow(model: nn.Module, keep: Mapping[Port, Tensor]) -> None:
    """Leave of each port's channels those in `keep [kept]`, in order, in place: rows and columns of the tensors, and the attributes that say how many."""
    for port, index in keep.items():
        if port.side == "parameter":
            owner, name = model.get_submodule(port.path.rpartition(".")[0]), port.path.rpartition(".")[2]
            _select(owner, name, -1, index)
            continue
        module = layer(model, port.path)
        for name, axis in tensors_of(module, port.side) or ():
            _select(module, name, axis, index[: len(index) // overlaid(module, port.side)])
        _count(module, port.side, len(index))


def _select(module: nn.Module, name: str, axis: int, index: Tensor) -> None:
    old = {**module._parameters, **module._buffers}[name]
    assert old is not None
    _replace(module, name, old.detach().index_select(axis, index.to(old.device)))


def _replace(module: nn.Module, name: str, tensor: Tensor) -> None:
    """Put a tensor in the place of a parameter or buffer, of which it takes the kind."""
    if name in module._parameters:
        old = module._parameters[name]
        assert old is not None
        module._parameters[name] = nn.Parameter(tensor.clone(memory_format=torch.contiguous_format), requires_grad=old.requires_grad)
    else:
        module._buffers[name] = tensor.clone()


def _count(module: nn.Module, side: str, channels: int) -> None:
    """Have a layer's attributes say how many channels one side of it has."""
    match module:
        case nn.Linear():
            names = ["out_features" if side == "out" else "in_features"]
        case nn.modules.conv._ConvNd():
            sides = {"out": ["out_channels"], "in": ["in_channels"], "through": ["out_channels", "in_channels", "groups"]}
            names = [*sides[side], "groups"] if side == "in" and by_channel(module) else sides[side]
        case nn.LayerNorm():
            module.normalized_shape = (channels,)
            return
        case nn.Embedding():
            names = ["embedding_dim"]
        case nn.PReLU():
            names = ["num_parameters"] if module.num_parameters > 1 else []
        case nn.GroupNorm():
            names = ["num_channels"]
        case _:
            names = ["num_features" if side == "through" else side]
    for name in names:
        setattr(module, name, channels)


def shapes_record(before: nn.Module, after: nn.Module) -> dict[str, Any]:
    """Return what differs between the sizes of two models of one structure, JSON-able."""
    old, found = dict(before.named_modules()), {}
    for path, module in after.named_modules():
        sizes = {name: value for name, value in vars(module).items() if name in _SIZES and value != vars(old[path])[name]}
        shapes = {name: list(shape) for name, shape in _shapes(module).items() if shape != _shapes(old[path])[name]}
        if sizes or shapes:
            found[path] = {"attributes": {name: list(value) if isinstance(value, tuple) else value for name, value in sizes.items()}, "tensors": shapes}
    return found


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    held: dict[str, Tensor | None] = {**module._parameters, **module._buffers}
    return {name: tuple(tensor.shape) for name, tensor in held.items() if tensor is not None}


def rebuilt(model: nn.Module, record: Mapping[str, Any]) -> nn.Module:
    """Give a fresh model, in place, the sizes of a record; the tensors that change hold zeros.

    Raises:
        ArtifactError: a record that is of another model, or none.
    """
    modules = dict(model.named_modules())
    for path, told in record.items():
        if path not in modules:
            raise ArtifactError(f"the record of a surgery speaks of a layer {path!r}, and {type(model).__name__} has none: it was made of another model")
        module = modules[path]
        for name, value in told["attributes"].items():
            if name not in _SIZES or name not in vars(module) or not _is_size(value):
                raise ArtifactError(f"the record of a surgery sets {name!r} of {path!r} ({type(module).__name__}) to {value!r}, which is no size of it")
            setattr(module, name, tuple(value) if isinstance(value, list) else value)
        shapes = _shapes(module)
        for name, shape in told["tensors"].items():
            if name not in shapes or len(shape) != len(shapes[name]) or not _is_size(shape):
                raise ArtifactError(f"the record of a surgery gives {name!r} of {path!r} ({type(module).__name__}) the shape {shape!r}, which does not fit it")
            if any(new > old for new, old in zip(shape, shapes[name], strict=True)):
                raise ArtifactError(f"the record of a surgery makes {name!r} of {path!r} larger than it is: {shape} of {list(shapes[name])}")
            old = {**module._parameters, **module._buffers}[name]
            assert old is not None
            _replace(module, name, torch.zeros(shape, dtype=old.dtype, device=old.device))
    return model


def _is_size(value: Any) -> bool:
    """Whether a value is a whole number above zero, or a list of them."""
    return (
        all(type(one) is int and one > 0 for one in value) if isinstance(value, Sequence) and not isinstance(value, str) else type(value) is int and value > 0
    )
