"""From a waveform to its log-mel spectrogram.

Shapes: M recordings, S samples, F frames, B mel bands.
"""

import math

import torch
from torch import Tensor

from limbeck.core.errors import RecipeError

__all__ = ["log_mel", "mel_bands"]

_FLOOR = 1e-8
"""Power below which a band is silent: full scale is 1."""


def _mel(hertz: float) -> float:
    return 2595.0 * math.log10(1.0 + hertz / 700.0)


def mel_bands(bands: int, window: int, rate: int) -> Tensor:
    """Return the triangular filters `[B, window // 2 + 1]` whose corners lie evenly between 0 and rate / 2 on the mel scale, 2595 log10(1 + f / 700).

    Davis and Mermelstein, "Comparison of parametric representations for monosyllabic word recognition", IEEE TASSP 28(4), 1980; the formula is O'Shaughnessy's.

    Raises:
        RecipeError: so many bands that one of them would lie between two frequencies of the window.

    >>> mel_bands(2, 8, 8000).shape
    torch.Size([2, 5])
    """
    top = _mel(rate / 2)
    corners = torch.tensor([700.0 * (10.0 ** (top * place / (bands + 1) / 2595.0) - 1.0) for place in range(bands + 2)], dtype=torch.float64)
    frequencies = torch.arange(window // 2 + 1, dtype=torch.float64) * rate / window
    left, middle, right = corners[:-2, None], corners[1:-1, None], corners[2:, None]
    filters = torch.minimum((frequencies - left) / (middle - left), (right - frequencies) / (right - middle)).clamp(min=0)
    if (filters.sum(1) == 0).any():
        band = int((filters.sum(1) == 0).nonzero()[0])
        raise RecipeError(f"mel band {band} of {bands} lies between two frequencies of a window of {window} samples: take fewer mels, or a longer window")
    return filters.float()


def log_mel(waves: Tensor, *, rate: int, bands: int, window: int, hop: int) -> Tensor:
    """Return the log-mel spectrogram `[M, 1, B, F]` of `waves [M, S]`, full scale 1, F = 1 + S // hop: log of the power in each band under a Hann window.

    The power is normalised by the window's own sum, so that a full-scale tone has a power of 1/4 whatever the window.
    """
    hann = torch.hann_window(window, dtype=waves.dtype)
    spectrum = torch.stft(waves, window, hop, window=hann, center=True, pad_mode="constant", return_complex=True) / hann.sum()
    power = torch.einsum("bk,mkf->mbf", mel_bands(bands, window, rate).to(waves.dtype), spectrum.abs().square())
    return (power + _FLOOR).log().unsqueeze(1)
