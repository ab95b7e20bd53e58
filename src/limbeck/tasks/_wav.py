"""Recordings: WAV files in folders by class, or the Free Spoken Digit Dataset, packed or not."""

import io
import lzma
import re
import tarfile
import wave
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import numpy.typing as npt

from limbeck.core.errors import DataError

__all__ = ["Recordings", "find_speech", "fitted", "read_speech", "read_wav"]

_FSDD = re.compile(r"(\d)_([a-z]+)_(\d+)\.wav")
_TESTS = 5
"""Of each digit and speaker, the recordings below this number are the test split: the data set's own rule."""
_LONGEST = 64 << 20
"""Bytes of a packed file that are read at the most: a spoken word takes thousands."""


class Recordings(NamedTuple):
    """Waves of one rate, full scale 1, with a label each, those of the test split last; `tests` is how many these are, 0 where the data have none."""

    waves: list[npt.NDArray[np.float32]]
    labels: npt.NDArray[np.int64]
    names: tuple[str, ...]
    rate: int
    tests: int


def read_wav(stream: IO[bytes], where: str) -> tuple[npt.NDArray[np.float32], int]:
    """Return a WAV file's samples `[S]` in -1..1, several channels as their mean, and its rate in hertz.

    Raises:
        DataError: no WAV file of 8, 16 or 32 bits, or one without a sample.
    """
    try:
        with wave.open(stream, "rb") as file:
            channels, width, rate = file.getnchannels(), file.getsampwidth(), file.getframerate()
            raw = file.readframes(file.getnframes())
    except (wave.Error, EOFError) as error:
        raise DataError(f"{where} is no WAV file of whole numbers ({str(error) or 'it ends too soon'})") from None
    kinds = {1: ("u1", 128.0, 128.0), 2: ("<i2", 0.0, 32768.0), 4: ("<i4", 0.0, 2147483648.0)}
    if width not in kinds:
        raise DataError(f"{where} has samples of {8 * width} bits; 8, 16 and 32 can be read: convert it")
    kind, zero, scale = kinds[width]
    samples = np.frombuffer(raw[: len(raw) // (width * channels) * width * channels], kind).astype(np.float32)
    if not samples.size:
        raise DataError(f"{where} holds no sample: it is empty or cut short")
    return ((samples - zero) / scale).reshape(-1, channels).mean(1), rate


def fitted(samples: npt.NDArray[np.float32], length: int) -> npt.NDArray[np.float32]:
    """Return `length` samples: the middle of a longer recording, a shorter one with silence on both sides."""
    if len(samples) >= length:
        start = (len(samples) - length) // 2
        return samples[start : start + length]
    before = (length - len(samples)) // 2
    return np.pad(samples, (before, length - len(samples) - before))


def find_speech(root: Path, data: str) -> dict[str, Path]:
    """Return the files of a data set, by a name that does not depend on where they lie.

    Raises:
        DataError: none are there.
    """
    if not root.is_dir():
        raise DataError(f"{root} is no folder: set `root` to the folder that holds {'speech-fsdd/' if data == 'fsdd' else 'CLASS/*.wav'}")
    if data == "folder":
        found = {path.relative_to(root).as_posix(): path for path in sorted(root.glob("*/*.wav"))}
        if not found:
            raise DataError(f"{root} holds no CLASS/*.wav")
        return found
    inner = root / "speech-fsdd"
    folder = inner if inner.is_dir() else root
    if (packed := folder / "fsdd.tar.xz").is_file():
        return {packed.name: packed}
    found = {path.name: path for path in sorted((folder / "recordings").glob("*.wav"))}
    if not found:
        raise DataError(f"{folder} holds neither fsdd.tar.xz nor recordings/*.wav: fsdd is one or the other in ROOT/speech-fsdd/")
    return found


def read_speech(files: Mapping[str, Path], data: str) -> Recordings:
    """Read a data set's recordings.

    Raises:
        DataError: a file that is damaged or has a name without a digit, recordings of several rates, a single class.
    """
    found: list[tuple[int, str, npt.NDArray[np.float32], int, bool]] = []
    names = tuple("0123456789") if data == "fsdd" else tuple(sorted({Path(name).parent.name for name in files}))
    if len(names) < 2:
        raise DataError(f"there is one class, {next(iter(names), None)!r}: two or more folders are needed")
    for name, stream in _opened(files):
        samples, rate = read_wav(stream, name)
        if data == "fsdd":
            match = _FSDD.fullmatch(Path(name).name)
            if match is None:
                raise DataError(f"{name} is not named DIGIT_SPEAKER_NUMBER.wav, as fsdd's recordings are")
            found.append((int(match[1]), name, samples, rate, int(match[3]) < _TESTS))
        else:
            found.append((names.index(Path(name).parent.name), name, samples, rate, False))
    rates = {rate: name for _, name, _, rate, _ in found}
    if len(rates) > 1:
        told = " and ".join(f"{name} at {rate} Hz" for rate, name in sorted(rates.items()))
        raise DataError(f"recordings have several rates, {told}: bring them to one")
    found.sort(key=lambda one: (one[4], one[1]))
    labels = np.array([one[0] for one in found], dtype=np.int64)
    return Recordings([one[2] for one in found], labels, names, next(iter(rates)), sum(one[4] for one in found))


def _opened(files: Mapping[str, Path]) -> Iterator[tuple[str, IO[bytes]]]:
    for name, path in files.items():
        try:
            if path.name.endswith(".tar.xz"):
                yield from _unpacked(path)
            else:
                with path.open("rb") as stream:
                    yield name, stream
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror or error}") from None


def _unpacked(path: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """Each WAV file of an archive, read in memory: nothing is unpacked to disk."""
    try:
        with tarfile.open(path, "r:xz") as archive:
            yield from _members(archive, path)
    except (tarfile.TarError, lzma.LZMAError, EOFError) as error:
        raise DataError(f"{path} is no complete .tar.xz ({error}): get it again") from None


def _members(archive: tarfile.TarFile, path: Path) -> Iterable[tuple[str, IO[bytes]]]:
    for member in archive:
        if member.isfile() and member.name.endswith(".wav"):
            if member.size > _LONGEST:
                raise DataError(f"{member.name} in {path} says that it has {member.size} bytes: no spoken word has so many")
            stream = archive.extractfile(member)
            assert stream is not None
            yield member.name, io.BytesIO(stream.read())
