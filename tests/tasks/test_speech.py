"""Recordings: the reader against what was written, the spectrogram against its definition, the task against its promises."""

import io
import math
import tarfile
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from limbeck.core.errors import DataError, RecipeError
from limbeck.tasks._mel import log_mel, mel_bands
from limbeck.tasks._wav import fitted, read_wav
from limbeck.tasks.speech import Speech

RATE = 8000


def tone(hertz: float, seconds: float = 0.4, level: float = 0.5) -> np.ndarray:
    return level * np.sin(2 * np.pi * hertz * np.arange(int(RATE * seconds)) / RATE)


def wav(samples: np.ndarray, *, width: int = 2, channels: int = 1, rate: int = RATE) -> bytes:
    kind, zero, scale = {1: ("u1", 128, 127), 2: ("<i2", 0, 32767), 4: ("<i4", 0, 2147483647)}[width]
    stream = io.BytesIO()
    with wave.open(stream, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(np.rint(samples * scale + zero).astype(kind).tobytes())
    return stream.getvalue()


def fsdd(root: Path, packed: bool, count: int = 9) -> Path:
    """Two speakers, digits 0..9, each a tone of its own; packed as the data set comes, or in its folder."""
    folder = root / "speech-fsdd"
    folder.mkdir(parents=True)
    made = {
        f"{digit}_{speaker}_{number}.wav": wav(tone(300 + 200 * digit + 10 * place + number))
        for digit in range(10) for place, speaker in enumerate(("ann", "bob")) for number in range(count)
    }  # fmt: skip
    if not packed:
        (folder / "recordings").mkdir()
        for name, data in made.items():
            (folder / "recordings" / name).write_bytes(data)
        return root
    with tarfile.open(folder / "fsdd.tar.xz", "w:xz") as archive:
        for name, data in made.items():
            info = tarfile.TarInfo(f"recordings/{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return root


@pytest.mark.parametrize("width", [1, 2, 4])
def test_a_wav_comes_back_as_it_was_written(width: int) -> None:
    samples = tone(440)
    read, rate = read_wav(io.BytesIO(wav(samples, width=width)), "a.wav")
    assert rate == RATE
    assert read.dtype == np.float32
    assert np.abs(read - samples).max() < (0.01 if width == 1 else 1e-4)
    stereo, _ = read_wav(io.BytesIO(wav(np.stack([samples, -samples], 1).reshape(-1), width=width, channels=2)), "a.wav")
    assert np.abs(stereo).max() < 0.01


@pytest.mark.parametrize(
    ("data", "message"),
    [(b"", "no WAV file"), (b"RIFFnothing at all", "no WAV file"), (wav(np.zeros(0)), "holds no sample"), (wav(tone(9))[:40], "no WAV file|holds no sample")],
)
def test_a_damaged_wav_is_refused_by_name(data: bytes, message: str) -> None:
    with pytest.raises(DataError, match=rf"a\.wav.*({message})|({message}).*a\.wav"):
        read_wav(io.BytesIO(data), "a.wav")


def test_a_recording_is_cut_in_the_middle_or_set_into_silence() -> None:
    x = np.arange(1, 6, dtype=np.float32)
    assert fitted(x, 3).tolist() == [2, 3, 4]
    assert fitted(x, 8).tolist() == [0, 1, 2, 3, 4, 5, 0, 0]


def test_the_spectrogram_is_its_definition() -> None:
    """Against a discrete Fourier transform written out, frame by frame, in float64."""
    window, hop, bands = 64, 32, 6
    x = torch.randn(2, 200, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = log_mel(x, rate=RATE, bands=bands, window=window, hop=hop)
    hann = [0.5 - 0.5 * math.cos(2 * math.pi * n / window) for n in range(window)]
    filters = mel_bands(bands, window, RATE).double()
    padded = torch.nn.functional.pad(x, (window // 2, window // 2))
    assert found.shape == (2, 1, bands, 1 + 200 // hop)
    for row in range(2):
        for frame in range(found.shape[3]):
            piece = [padded[row, frame * hop + n].item() * hann[n] for n in range(window)]
            power = []
            for k in range(window // 2 + 1):
                real = sum(value * math.cos(2 * math.pi * k * n / window) for n, value in enumerate(piece))
                imaginary = sum(value * math.sin(2 * math.pi * k * n / window) for n, value in enumerate(piece))
                power.append((real**2 + imaginary**2) / sum(hann) ** 2)
            for band in range(bands):
                expected = math.log(sum(filters[band, k].item() * power[k] for k in range(len(power))) + 1e-8)
                assert found[row, 0, band, frame].item() == pytest.approx(expected, rel=1e-6)


def test_a_tone_is_loudest_in_its_band() -> None:
    bands = mel_bands(20, 256, RATE)
    for hertz in (400.0, 1000.0, 3000.0):
        found = log_mel(torch.from_numpy(tone(hertz)).float()[None], rate=RATE, bands=20, window=256, hop=128)[0, 0, :, 5]
        assert int(found.argmax()) == int(bands[:, round(hertz * 256 / RATE)].argmax())
    with pytest.raises(RecipeError, match="fewer mels, or a longer window"):
        mel_bands(80, 32, RATE)


@pytest.mark.parametrize("packed", [False, True])
def test_spoken_digits_have_the_data_set_s_own_test_split(tmp_path: Path, packed: bool) -> None:
    task = Speech(root=str(fsdd(tmp_path, packed)), validation=0.25, mels=12)
    facts = task.facts()
    assert facts.in_shape == (1, 12, 1 + 5120 // 128)
    assert facts.class_names == tuple("0123456789")
    counts = {split: sum(len(batch["label"]) for batch in task.loader(split, batch_size=10, whole=True).batches(0)) for split in task.splits()}
    assert counts == {"train": 60, "validation": 20, "test": 100}
    test = torch.cat([batch["label"] for batch in task.loader("test", batch_size=100).batches(0)])
    assert test.bincount().tolist() == [10] * 10
    inputs = torch.cat([batch["input"] for batch in task.loader("train", batch_size=10, whole=True).batches(0)])
    assert abs(inputs.mean()) < 1e-4 and abs(inputs.std() - 1) < 1e-3


@pytest.mark.parametrize("how", [{"fold": 1}, {"folds": 4}])
def test_spoken_digits_are_not_cut_in_folds(tmp_path: Path, how: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=r"folds and fold are for data without a test split, and data 'fsdd' in .* have one: leave them out"):
        Speech(root=str(fsdd(tmp_path, False)), mels=8, **how).facts()


def test_the_packed_and_the_unpacked_data_are_the_same(tmp_path: Path) -> None:
    first, second = (
        next(Speech(root=str(fsdd(tmp_path / str(packed), packed, 6)), mels=8).loader("test", batch_size=7).batches(0)) for packed in (False, True)
    )
    assert all(first[name].equal(second[name]) for name in first)


def test_sliding_moves_time_alone_and_repeats(tmp_path: Path) -> None:
    root = str(fsdd(tmp_path, False, 6))
    plain = next(Speech(root=root, mels=8, validation=0).loader("train", batch_size=20, whole=True).batches(0))["input"]
    task = Speech(root=root, mels=8, validation=0, augment=[{"kind": "slide", "frames": 3}])  # pyright: ignore[reportArgumentType]
    moved = next(task.loader("train", batch_size=20, whole=True).batches(0))["input"]
    assert moved.equal(next(task.loader("train", batch_size=20, whole=True).batches(0))["input"])
    seen = set()
    for one, other in zip(plain, moved, strict=True):
        by = [k for k in range(-3, 4) if one[:, :, max(0, -k) : 41 - max(0, k)].equal(other[:, :, max(0, k) : 41 + min(0, k)])]
        assert len(by) == 1
        seen |= set(by)
    assert len(seen) > 3


def test_a_folder_of_classes_is_cut_in_folds(tmp_path: Path) -> None:
    for name, hertz in (("yes", 500), ("no", 900)):
        (tmp_path / name).mkdir()
        for number in range(10):
            (tmp_path / name / f"{number}.wav").write_bytes(wav(tone(hertz + number)))
    task = Speech(data="folder", root=str(tmp_path), mels=8, validation=0)
    assert task.facts().class_names == ("no", "yes")
    assert sum(len(batch["label"]) for batch in task.loader("test", batch_size=8).batches(0)) == 4
    (tmp_path / "no" / "fast.wav").write_bytes(wav(tone(500), rate=16000))
    with pytest.raises(DataError, match=r"several rates, .* at 8000 Hz and .*fast.wav at 16000 Hz"):
        Speech(data="folder", root=str(tmp_path), mels=8).facts()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"data": "fsd"}, "no data 'fsd' for tasks.speech; did you mean 'fsdd'"),
        ({}, "needs `root`"),
        ({"root": ".", "validation": 1.0}, "validation is 1"),
        ({"root": ".", "mels": 0}, "must all be above zero"),
        ({"root": ".", "augment": [{"kind": "shift"}]}, "augment.0.kind"),
        ({"root": ".", "fold": 5}, "fold counts from 0"),
        ({"root": ".", "subset": 0}, "subset is 0"),
    ],
)
def test_options_that_cannot_be_meant(how: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Speech(**how)


def test_data_that_are_not_there_or_damaged(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"neither fsdd.tar.xz nor recordings"):
        Speech(root=str(tmp_path)).facts()
    with pytest.raises(DataError, match="holds no CLASS"):
        Speech(data="folder", root=str(tmp_path)).facts()
    (tmp_path / "speech-fsdd").mkdir()
    (tmp_path / "speech-fsdd" / "fsdd.tar.xz").write_bytes(b"\xfd7zXZ\x00nothing")
    with pytest.raises(DataError, match=r"no complete .tar.xz"):
        Speech(root=str(tmp_path)).facts()
    with pytest.raises(RecipeError, match="slide by 90 frames"):
        Speech(root=str(fsdd(tmp_path / "a", False, 6)), augment=[{"kind": "slide", "frames": 90}]).facts()  # pyright: ignore[reportArgumentType]
    with pytest.raises(RecipeError, match="longer than the window"):
        Speech(root=str(tmp_path / "a"), seconds=0.01).facts()
