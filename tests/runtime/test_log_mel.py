"""The log-mel spectrogram, against transformers' WhisperFeatureExtractor."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from model_repo.runtime.errors import BadInput
from model_repo.runtime.log_mel import LogMel

transformers = pytest.importorskip("transformers", reason="the reference is transformers' own extractor")

WHISPER = LogMel(sampling_rate=16000, fft_size=400, hop=160, num_mels=80, num_samples=480000)
SMALL = LogMel(sampling_rate=16000, fft_size=400, hop=160, num_mels=8, num_samples=16000)


def sound(samples: int, seed: int = 0) -> Any:
    """A chirp with noise, and a pause."""
    time = np.arange(samples) / 16000
    audio = np.sin(2 * np.pi * (200 + 900 * time) * time) * 0.4
    audio += np.random.default_rng(seed).normal(0, 0.02, samples)
    audio[samples // 3 : samples // 2] = 0
    return audio.astype(np.float32)


@pytest.mark.parametrize(
    ("sizes", "samples"),
    [
        (WHISPER, 33_333),
        (WHISPER, 480_000),
        (LogMel(16000, 400, 160, 128, 480_000), 100_001),
        (SMALL, 1),
        (SMALL, 15_999),
        (LogMel(24_000, 512, 200, 20, 24_000), 9_000),
    ],
)
def test_it_is_that_of_transformers(sizes: LogMel, samples: int) -> None:
    extractor = transformers.WhisperFeatureExtractor(
        feature_size=sizes.num_mels,
        sampling_rate=sizes.sampling_rate,
        hop_length=sizes.hop,
        n_fft=sizes.fft_size,
        chunk_length=sizes.num_samples / sizes.sampling_rate,
    )
    extractor.n_samples = sizes.num_samples
    audio = sound(samples)
    wanted = extractor(audio, sampling_rate=sizes.sampling_rate, return_tensors="np")["input_features"]
    found = sizes(audio)
    assert found.shape == wanted.shape == (1, sizes.num_mels, sizes.num_frames)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4)
    assert np.ptp(found) > 0.5, "a flat spectrogram would be equal whatever was computed"


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        (np.zeros(0, np.float32), "the audio has 0 samples; this model takes 1 to 16000 (1 s at 16000 Hz)"),
        (np.zeros(16001, np.float32), "has 16001 samples"),
        (
            np.zeros(5, np.int16),
            "the audio is int16 [5]; it must be float32 [samples], one channel at 16000 Hz",
        ),
        (np.zeros((2, 5), np.float32), "float32 [2, 5]"),
        (np.array([0, np.nan], np.float32), "holds NaN or infinity"),
    ],
)
def test_audio_that_cannot_be_used_is_refused(audio: Any, message: str) -> None:
    with pytest.raises(BadInput, match=re.escape(message)):
        SMALL(audio)


def test_sizes_are_positive() -> None:
    with pytest.raises(BadInput, match="hop of the log-mel spectrogram is 0"):
        LogMel(16000, 400, 0, 8, 16000)
