"""Inputs that nobody photographed: those that an earlier stage's data-free scheme has left, or noise.

Shapes: M images held, N in a batch.
"""

from collections.abc import Callable, Iterator
from math import prod
from typing import Literal, Unpack

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from limbeck.core.artifact import Artifact
from limbeck.core.draw import bits, gaussian, key, permutation, uniform
from limbeck.core.errors import ArtifactError, MismatchError
from limbeck.core.task import Batch, Facts, How, Loader, Task, starts
from limbeck.core.transfer import Transfer

__all__ = ["FILE", "Synthesised", "noise"]

FILE = "synthetic.safetensors"
"""What data-free schemes leave in an artifact: `input [M, ...]`."""
Noise = Literal["gaussian", "uniform"]


def noise(ids: Tensor, with_key: int, facts: Facts, kind: Noise) -> Tensor:
    """Return the noise of examples `ids [N]`, `[N, ...]` float32: a pure function of the key and each id.

    `gaussian`: independent standard normal numbers, as normalized data have their mean and deviation; `uniform`: pixels anywhere between 0 and 1, and what the
    task's preprocessing makes of them.
    """
    size = prod(facts.in_shape)
    hashed = bits((ids.unsqueeze(1) * size + torch.arange(size, device=ids.device)).view(-1), with_key)
    if kind == "gaussian":
        return gaussian(hashed).view(-1, *facts.in_shape)
    values = uniform(hashed, 1).view(-1, *facts.in_shape)
    if "mean" in facts.preprocess:
        mean, std = (values.new_tensor(facts.preprocess[name]).view(-1, *[1] * (len(facts.in_shape) - 1)) for name in ("mean", "std"))
        values = (values - mean) / std
    return values


class _Made(Loader):
    """Batches of made inputs: of `count` examples those whose ids `order(epoch)` gives, made by `make(ids, view)`."""

    def __init__(self, count: int, order: Callable[[int], Tensor], make: Callable[[Tensor, int], Tensor], **how: Unpack[How]) -> None:
        self._starts = starts(count, how, of="there are {} made examples")
        self._count, self._order, self._make, self._whole = count, order, make, how.get("whole", False)
        self._size, self._device, self._views = how["batch_size"], how.get("device"), how.get("views")

    def __len__(self) -> int:
        return len(self._starts)

    def batches(self, epoch: int, *, skip: int = 0) -> Iterator[Batch]:
        view = epoch if self._views is None else epoch % self._views
        order = torch.arange(self._count) if self._whole else self._order(epoch)
        for start in self._starts[skip:]:
            ids = order[start : start + self._size]
            batch = {"input": self._make(ids, view), "id": ids}
            if self._views is not None:
                batch["view"] = torch.full_like(ids, view)
            yield batch if self._device is None else {name: value.to(self._device) for name, value in batch.items()}


class Synthesised(Transfer):
    """Inputs that are no data: noise, or with `of: stage` the images that the data-free scheme of that stage has left in its artifact.

    Noise is drawn anew in every epoch, as many examples as the task says an epoch has: the floor that a data-free scheme must beat. Images of a stage are
    shuffled in every epoch. Batches have `input` and `id`, no label. Nothing of the task's own data is looked at.

    Args:
        noise: gaussian (standard normal numbers) or uniform (pixels between 0 and 1, preprocessed), where no stage is named.

    Raises:
        ArtifactError: a stage that has left no images.
        MismatchError: images of another shape than the task's.
    """

    def __init__(self, source: Artifact | None = None, *, noise: Noise = "gaussian") -> None:
        self._source = source
        self._noise: Noise = noise

    def loader(self, task: Task, **how: Unpack[How]) -> Loader:
        facts, seed = task.facts(), how.get("seed", 0)
        kind: Noise = self._noise
        if self._source is None:
            return _Made(facts.examples, lambda _epoch: torch.arange(facts.examples), lambda ids, view: noise(ids, key(seed, view), facts, kind), **how)
        images = _images(self._source, facts)
        return _Made(len(images), lambda epoch: permutation(len(images), key(seed, epoch)), lambda ids, _view: images[ids].float(), **how)


def _images(source: Artifact, facts: Facts) -> Tensor:
    """The images that a stage has left, `[M, ...]`."""
    file = source.path / FILE
    if not file.is_file():
        raise ArtifactError(f"{source.path} has no {FILE}: name a stage whose scheme makes images (dafl, dfad, zskt, inversion), or leave `of` out for noise")
    try:
        images = load_file(file).get("input")
    except SafetensorError as error:
        raise ArtifactError(f"{file} cannot be read ({error}): delete {source.path} and run the recipe again") from None
    if images is None or not len(images):
        raise ArtifactError(f"{file} holds no images: delete {source.path} and run the recipe again")
    if tuple(images.shape[1:]) != tuple(facts.in_shape):
        raise MismatchError(f"{file} holds images of {tuple(images.shape[1:])}, and the task's inputs are {tuple(facts.in_shape)}: name a stage of this task")
    return images
