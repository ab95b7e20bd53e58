"""Classification of short recordings: spoken digits, or folders of WAV files, as log-mel spectrograms."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal, Unpack, get_args

import numpy as np
import torch
from pydantic import Field, TypeAdapter, ValidationError

from limbeck.core.errors import RecipeError, did_you_mean
from limbeck.core.files import digest
from limbeck.core.task import Facts, How, Loader, Split, Task

from ._as_plain import AsPlain
from ._augment import Slide
from ._fingerprint import files_hash
from ._mel import log_mel
from ._memory import Held, Shelf
from ._preprocess import normalised, statistics
from ._split import Splitting
from ._wav import find_speech, fitted, read_speech
from .classify import Classify

__all__ = ["Speech"]

Data = Literal["fsdd", "folder"]
Steps = list[Annotated[Slide, Field()]]
_CHUNK = 256


class Speech(AsPlain):
    """Classification of short recordings that fit in memory.

    Each is brought to `seconds`, the middle of a longer one, silence around a shorter one; its log-mel spectrogram, log(power in each band + 1e-8), is computed
    once by torch.stft under a Hann window and brought to mean 0 and deviation 1 over the training split. A batch is `input [N, 1, mels, frames]` float32,
    `label [N]` and `id [N]` int64, `frames = 1 + samples // hop`.

    Splits: `test` is the data's own (of fsdd, the recordings 0 to 4 of each digit and speaker), or fold number `fold` where there is none; `validation` is
    carved from the rest.

    Args:
        data: fsdd (the Free Spoken Digit Dataset: 3,000 recordings of six speakers at 8 kHz, in fsdd.tar.xz or recordings/) or folder (CLASS/*.wav).
        root: the folder that holds speech-fsdd/, or its files; the folder with CLASS/*.wav.
        validation: the fraction of the training data held back for validation, the same mix of classes; 0 for none.
        folds: in how many folds data without a test split are cut.
        fold: which of the folds, from 0, is the test split.
        split_seed: the seed of folds, validation and subset.
        subset: how many training examples to use, the first of a seeded order; all where it is not given.
        seconds: to which every recording is brought.
        mels: bands of the spectrogram.
        window_ms: of the Fourier transform, in milliseconds.
        hop_ms: between two frames, in milliseconds.
        augment: what is done to training spectrograms: {kind: slide, frames}.

    Raises:
        RecipeError: options that cannot be meant.
        DataError: files that are missing or damaged, recordings of several rates, a single class.
    """

    def __init__(
        self,
        *,
        data: Data = "fsdd",
        root: str | None = None,
        validation: float = 0.1,
        folds: int = 5,
        fold: int = 0,
        split_seed: int = 0,
        subset: int | None = None,
        seconds: float = 0.64,
        mels: int = 32,
        window_ms: float = 32.0,
        hop_ms: float = 16.0,
        augment: Sequence[Slide] = (),
    ) -> None:
        if data not in get_args(Data):
            raise RecipeError(f"no data {data!r} for tasks.speech{did_you_mean(data, get_args(Data))}")
        if not root:
            raise RecipeError(f"data {data!r} needs `root`: the folder that holds the data")
        self._splitting = Splitting(validation=validation, folds=folds, fold=fold, seed=split_seed, subset=subset)
        if min(seconds, window_ms, hop_ms) <= 0 or mels < 1:
            raise RecipeError(f"seconds {seconds:g}, window_ms {window_ms:g}, hop_ms {hop_ms:g} and mels {mels} must all be above zero")
        try:
            self._augment: list[Slide] = TypeAdapter(Steps).validate_python(list(augment))
        except ValidationError as error:
            first = error.errors()[0]
            raise RecipeError(f"augment.{'.'.join(map(str, first['loc']))}: {first['msg']}, not {first['input']!r}") from None
        self._data: Data = data
        self._root = Path(root)
        self._seconds, self._mels, self._window, self._hop = seconds, mels, window_ms, hop_ms
        self._plain = Classify()

    @cached_property
    def _files(self) -> dict[str, Path]:
        return find_speech(self._root, self._data)

    @cached_property
    def _loaded(self) -> tuple[Facts, Shelf]:
        found = read_speech(self._files, self._data)
        length, window, hop = (max(1, round(found.rate * seconds)) for seconds in (self._seconds, self._window / 1000, self._hop / 1000))
        if length < window:
            raise RecipeError(f"seconds is {self._seconds:g} and window_ms {self._window:g}: a recording must be longer than the window")
        labels = torch.from_numpy(found.labels)
        rows = self._splitting.rows(labels, found.tests, own=f"data {self._data!r} in {self._root} have one")
        waves = torch.from_numpy(np.stack([fitted(one, length) for one in found.waves]))
        raw = torch.cat([log_mel(part, rate=found.rate, bands=self._mels, window=window, hop=hop) for part in waves.split(_CHUNK)])
        mean, std = statistics(raw, rows["train"], 1.0)
        columns = (torch.tensor(value).view(-1, 1, 1) for value in (mean, std))
        held = Held(normalised(raw, 1.0, *columns), labels, (raw.amin() - mean[0]).view(1) / std[0], None)
        for step in self._augment:
            if step.frames >= raw.shape[3]:
                raise RecipeError(f"augment: slide by {step.frames} frames moves recordings of {raw.shape[3]} out of hearing; stay below {raw.shape[3]}")
        told = {"kind": "speech", "rate": found.rate, "samples": length, "mels": self._mels, "window": window, "hop": hop, "mean": mean, "std": std}
        facts = Facts(tuple(raw.shape[1:]), len(found.names), found.names, len(rows["train"]), preprocess=told)
        return facts, Shelf(held, rows, augment=self._augment)

    def facts(self) -> Facts:
        return self._loaded[0]

    def fingerprint(self) -> str:
        """The SHA-256 of the files' own and of every option that says what is made of them; where they lie does not matter."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        options = [self._data, *self._splitting.options, self._seconds, self._mels, self._window, self._hop]
        return digest({"task": "speech", "options": options, "augment": [step.model_dump() for step in self._augment], "files": files_hash(self._files)})

    def loader(self, split: Split, **how: Unpack[How]) -> Loader:
        return self._loaded[1].loader(split, **how)

    def plain(self) -> Task:
        return self._plain

    def splits(self) -> tuple[Split, ...]:
        return self._splitting.splits()
