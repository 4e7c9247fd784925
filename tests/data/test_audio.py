"""Sound: files of every rate and kind, resampled rightly, and Whisper's features to the digit."""

import sys
import wave
from pathlib import Path

import numpy as np
import pytest
import torch

from addnorm.data.audio import (
    MelFront,
    Samples,
    log_mel,
    read_sound,
    remarks_on,
    resample,
    write_wav,
)
from addnorm.data.sources import DataError
from addnorm.errors import Mendable


def tone(hz: float, rate: int, seconds: float = 0.5, loudness: float = 0.5) -> Samples:
    t = np.arange(round(rate * seconds)) / rate
    return (loudness * np.sin(2 * np.pi * hz * t)).astype(np.float32)


def wav_of(file: Path, channels: list[Samples], rate: int) -> Path:
    values = (np.stack(channels, 1).clip(-1, 1) * 32767).round().astype("<i2")
    with wave.open(str(file), "wb") as stream:
        stream.setnchannels(len(channels))
        stream.setsampwidth(2)
        stream.setframerate(rate)
        stream.writeframes(values.tobytes())
    return file


# --- files ----------------------------------------------------------------------------------------


def test_a_wav_comes_back_as_it_was_written(tmp_path: Path) -> None:
    x = tone(440, 16_000)
    write_wav(tmp_path / "a.wav", x, 16_000)
    sound = read_sound(tmp_path / "a.wav")
    assert sound.remarks == ()
    assert sound.rate == 16_000
    assert sound.seconds == 0.5
    assert np.abs(sound.samples - x).max() < 1e-4  # 16 bits: half a step and the scale of 32768


@pytest.mark.parametrize("rate", [8_000, 11_025, 44_100, 96_000, 16_001])
def test_a_tone_is_the_same_tone_at_another_rate(rate: int) -> None:
    """But for the ends, where there is nothing on one side."""
    out = resample(tone(440, rate), rate, 16_000)
    assert len(out) == 8_000
    # what the window of the filter lets through at 440 Hz; 3e-4 were measured
    assert np.abs(out - tone(440, 16_000))[300:-300].max() < 1e-3


def test_what_the_lower_rate_cannot_hold_is_cut_off() -> None:
    out = resample(tone(10_000, 48_000), 48_000, 16_000)
    assert np.abs(out)[300:-300].max() < 1e-3  # -60 dB; folded back it would be 0.5 at 6 kHz


def test_channels_and_rates_and_clipping_are_told(tmp_path: Path) -> None:
    loud = tone(300, 8_000, loudness=3.0)
    file = wav_of(tmp_path / "a.wav", [loud, loud], 8_000)
    sound = read_sound(file)
    assert sound.remarks == (
        "is clipped",
        "had 2 channels mixed into one",
        "was resampled from 8,000 Hz",
    )
    both = remarks_on([(file, sound), (file.with_name("b.wav"), sound)])
    assert "2 files were resampled from 8,000 Hz (a.wav, b.wav)" in both
    assert remarks_on([(file, sound)])[0] == "1 file is clipped (a.wav)"


def test_channels_are_mixed_in_equal_shares(tmp_path: Path) -> None:
    one, other = tone(440, 16_000), tone(600, 16_000)
    mixed = read_sound(wav_of(tmp_path / "a.wav", [one, other], 16_000)).samples
    assert np.abs(mixed - (one + other) / 2).max() < 1e-4


def test_a_part_of_a_file_is_read(tmp_path: Path) -> None:
    x = tone(440, 16_000)
    write_wav(tmp_path / "a.wav", x, 16_000)
    sound = read_sound(tmp_path / "a.wav", start=0.1, length=0.2)
    assert np.abs(sound.samples - x[1_600:4_800]).max() < 1e-4
    with pytest.raises(DataError, match="has no sound after 9 seconds"):
        read_sound(tmp_path / "a.wav", start=9)


@pytest.mark.parametrize("kind", ["flac", "ogg", "wav"])
def test_other_formats_come_by_soundfile(tmp_path: Path, kind: str) -> None:
    soundfile = pytest.importorskip("soundfile")
    x = tone(440, 16_000)
    soundfile.write(tmp_path / f"a.{kind}", x, 16_000, subtype="FLOAT" if kind == "wav" else None)
    error = np.abs(read_sound(tmp_path / f"a.{kind}").samples - x)[800:-800].max()
    assert error < (0.05 if kind == "ogg" else 1e-4)  # Vorbis leaves something out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no sound that can be read"),
        (b"RIFF, and no more", "no sound that can be read"),
        (None, "No such file"),
    ],
)
def test_what_is_no_sound_is_named(tmp_path: Path, content: bytes | None, message: str) -> None:
    pytest.importorskip("soundfile")
    if content is not None:
        (tmp_path / "a.wav").write_bytes(content)
    with pytest.raises(DataError, match=rf"a\.wav.*{message}"):
        read_sound(tmp_path / "a.wav")


def test_nothing_to_be_heard_is_refused(tmp_path: Path) -> None:
    for name, samples, message in (
        ("empty", tone(440, 16_000, seconds=0), "has no sound"),
        ("silent", np.zeros(1_000, np.float32), "is silent"),
    ):
        write_wav(tmp_path / f"{name}.wav", samples, 16_000)
        with pytest.raises(DataError, match=rf"{name}\.wav {message}"):
            read_sound(tmp_path / f"{name}.wav")


def test_values_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    soundfile = pytest.importorskip("soundfile")
    soundfile.write(tmp_path / "a.wav", np.array([0.1, np.nan]), 16_000, subtype="FLOAT")
    with pytest.raises(DataError, match="no numbers"):
        read_sound(tmp_path / "a.wav")


def test_a_wav_that_is_cut_short_is_read_and_told(tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav", tone(440, 16_000), 16_000)
    data = (tmp_path / "a.wav").read_bytes()
    (tmp_path / "a.wav").write_bytes(data[: len(data) // 2])
    sound = read_sound(tmp_path / "a.wav")
    assert sound.remarks == ("is cut short",)
    assert 0.2 < sound.seconds < 0.3


def test_without_soundfile_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "soundfile", None)
    (tmp_path / "a.flac").write_bytes(b"fLaC")
    with pytest.raises(DataError, match=r"pip install 'addnorm\[audio\]'"):
        read_sound(tmp_path / "a.flac")


# --- what is heard --------------------------------------------------------------------------------


def written_out(x: Samples, n_mels: int) -> np.ndarray:
    """Whisper's features from its description, sum by sum, in float64."""

    def mel(hz: float) -> float:
        return 3 * hz / 200 if hz < 1000 else 15 + 27 * np.log(hz / 1000) / np.log(6.4)

    def hz(m: float) -> float:
        return 200 * m / 3 if m < 15 else 1000 * np.exp(np.log(6.4) * (m - 15) / 27)

    edges = [hz(mel(8000) * i / (n_mels + 1)) for i in range(n_mels + 2)]
    mirrored = np.pad(x.astype(np.float64), 200, mode="reflect")
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    frames = len(x) // 160
    logs = np.zeros((n_mels, frames))
    for t in range(frames):
        power = np.abs(np.fft.rfft(mirrored[160 * t : 160 * t + 400] * window)) ** 2
        for band in range(n_mels):
            low, middle, high = edges[band : band + 3]
            energy = 0.0
            for k in range(201):
                f = 40.0 * k
                if low < f <= middle:
                    energy += power[k] * (f - low) / (middle - low) * 2 / (high - low)
                elif middle < f < high:
                    energy += power[k] * (high - f) / (high - middle) * 2 / (high - low)
            logs[band, t] = np.log10(max(energy, 1e-10))
    return (np.maximum(logs, logs.max() - 8) + 4) / 4


def speechlike(samples: int) -> Samples:
    rng = np.random.default_rng(3)
    noise = rng.standard_normal(samples) * 0.02
    return (noise + tone(700, 16_000, samples / 16_000)[:samples]).astype(np.float32)


@pytest.mark.parametrize("n_mels", [80, 128])
def test_log_mel_is_its_written_out_definition(n_mels: int) -> None:
    x = speechlike(3_300)
    want = written_out(x, n_mels)
    assert log_mel(x, n_mels).shape == want.shape == (n_mels, 20)
    np.testing.assert_allclose(log_mel(x, n_mels), want, atol=1e-4)


@pytest.mark.parametrize("n_mels", [80, 128])
def test_log_mel_is_transformers(n_mels: int) -> None:
    """As it stands, and filled up to 30 seconds, as Whisper wants it."""
    transformers = pytest.importorskip("transformers")
    extractor = transformers.WhisperFeatureExtractor(feature_size=n_mels)
    x = speechlike(16_077)
    for how, own in (("do_not_pad", x), ("max_length", np.pad(x, (0, 480_000 - len(x))))):
        theirs = extractor(x, sampling_rate=16_000, padding=how, return_tensors="np")
        np.testing.assert_allclose(log_mel(own, n_mels), theirs.input_features[0], atol=1e-4)


def test_log_mel_of_tensors_and_of_very_short_sounds() -> None:
    x = speechlike(1_600)
    assert torch.equal(log_mel(torch.from_numpy(x)), log_mel(x))
    assert log_mel(x[:1]).shape == (80, 1)
    assert log_mel(x[:1]).isfinite().all()
    for wrong in (x[:0], x[None]):
        with pytest.raises(Mendable, match="one row of samples"):
            log_mel(wrong)


def test_a_tone_stands_in_the_band_that_holds_it() -> None:
    """At another rate, window and hop, as for synthesis."""
    front = MelFront(rate=22_050, n_mels=40, window=1024, hop=256, low=50, high=11_025)
    energies = front.energies(tone(1_000, 22_050), power=1.0)
    assert energies.shape == (40, 1 + 11_025 // 256)
    band = int(energies.mean(1).argmax())
    frequencies = torch.linspace(0, 11_025, 513)
    assert frequencies[front.filters()[band] > 0].min() < 1_000
    assert frequencies[front.filters()[band] > 0].max() > 1_000


def test_bands_beyond_the_rate_are_refused() -> None:
    with pytest.raises(Mendable, match="half the rate, 4000"):
        MelFront(rate=8_000)
