"""From a waveform to the log-mel spectrogram that Whisper's encoder takes. numpy only.

Radford et al. 2022, https://arxiv.org/abs/2212.04356, as transformers' WhisperFeatureExtractor computes it: frames of
`fft_size` samples under a periodic Hann window, power, mel bands (Slaney's scale, each of area one), logarithm to base
10, at most 8 below the largest, and (x + 4) / 4.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .errors import BadInput

MOST_HERTZ = 8000.0
SMALLEST_POWER = 1e-10
RANGE = 8.0
"""What lies further below the loudest is cut off (powers of ten)."""

_LINEAR_HERTZ = 200.0 / 3
"""Slaney's scale: so many hertz a mel up to 1000 Hz; from there 27 mels to a factor of 6.4."""
_BREAK_HERTZ = 1000.0
_LOG_STEP = np.log(6.4) / 27.0


@dataclass(frozen=True)
class LogMel:
    """Sizes of the spectrogram; `num_samples` is what the model hears at once: shorter audio is filled with silence."""

    sampling_rate: int
    fft_size: int
    hop: int
    num_mels: int
    num_samples: int

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not isinstance(value, int) or value < 1:
                raise BadInput(
                    f"{name} of the log-mel spectrogram is {value!r}; it must be a positive whole number"
                )

    @property
    def num_frames(self) -> int:
        """Columns of the spectrogram."""
        return self.num_samples // self.hop

    def __call__(self, audio: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """float32 [samples] -> float32 [1, num_mels, num_frames].

        Raises BadInput for audio that is empty, too long, not float32, not one channel, or not finite.
        """
        if audio.dtype != np.float32 or audio.ndim != 1:
            raise BadInput(
                f"the audio is {audio.dtype.name} {list(audio.shape)}; it must be float32 [samples], one channel at "
                f"{self.sampling_rate} Hz"
            )
        if not 0 < audio.size <= self.num_samples:
            raise BadInput(
                f"the audio has {audio.size} samples; this model takes 1 to {self.num_samples} "
                f"({self.num_samples / self.sampling_rate:g} s at {self.sampling_rate} Hz). Cut it into pieces"
            )
        if not np.isfinite(audio).all():
            raise BadInput("the audio holds NaN or infinity")
        whole = np.zeros(self.num_samples, np.float64)
        whole[: audio.size] = audio
        padded = np.pad(whole, self.fft_size // 2, mode="reflect")
        frames = np.lib.stride_tricks.sliding_window_view(padded, self.fft_size)[:: self.hop][
            : self.num_frames
        ]
        spectrum = np.fft.rfft(frames * _window(self.fft_size), axis=1)
        power = spectrum.real**2 + spectrum.imag**2
        bands = _bands(self.fft_size, self.num_mels, self.sampling_rate)
        logarithm = np.log10(np.maximum(bands @ power.T, SMALLEST_POWER))
        limited = np.maximum(logarithm, logarithm.max() - RANGE)
        return np.asarray((limited + 4.0) / 4.0, np.float32)[None]


@functools.cache
def _window(size: int) -> npt.NDArray[np.float64]:
    """A periodic Hann window."""
    return np.asarray(0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size))


@functools.cache
def _bands(fft_size: int, num_mels: int, sampling_rate: int) -> npt.NDArray[np.float64]:
    """float64 [num_mels, fft_size / 2 + 1]: triangles between neighbouring mels, each of area one."""
    frequencies = np.linspace(0, sampling_rate // 2, 1 + fft_size // 2)
    edges = _hertz(np.linspace(0.0, _mels(MOST_HERTZ), num_mels + 2))
    width = np.diff(edges)
    distance = edges[:, None] - frequencies[None, :]
    rising, falling = -distance[:-2] / width[:-1, None], distance[2:] / width[1:, None]
    triangles = np.maximum(0.0, np.minimum(rising, falling))
    return np.asarray(triangles * (2.0 / (edges[2:] - edges[:-2]))[:, None])


def _mels(hertz: float) -> float:
    if hertz < _BREAK_HERTZ:
        return hertz / _LINEAR_HERTZ
    return float(_BREAK_HERTZ / _LINEAR_HERTZ + np.log(hertz / _BREAK_HERTZ) / _LOG_STEP)


def _hertz(mels: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    least = _BREAK_HERTZ / _LINEAR_HERTZ
    return np.where(mels < least, mels * _LINEAR_HERTZ, _BREAK_HERTZ * np.exp(_LOG_STEP * (mels - least)))
