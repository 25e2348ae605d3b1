"""Speech Commands: one spoken word, read sample by sample (16,000 steps) or frame by frame.

Warden (2018), Speech Commands: A Dataset for Limited-Vocabulary Speech Recognition: version 0.02 has 105,829 recordings of
35 words, one second at 16 kHz, in a folder for every word. Recordings shorter than a second are padded with silence,
longer ones cut off.

Splits are the official ones: the files ``validation_list.txt`` and ``testing_list.txt`` of the release where they are there,
otherwise the rule behind them: a recording belongs to the split that the SHA-1 of its speaker's part of the name says, so
that every speaker is in one split only (``which_set``).

    form     inputs                     values
    "raw"    float32 [16000 / every, 1] samples in -1 .. 1; ``every`` = k keeps each k-th, a sampling rate of 16000 / k Hz
    "mfcc"   float32 [161, 20]          mel-frequency cepstral coefficients, see ``mfcc``, standardised for every recording
"""

import dataclasses
import functools
import hashlib
import pathlib
import wave

import numpy as np
from jaxtyping import Float, Int

from zoo.checks import check_choice, check_positive
from zoo.tasks.base import Batch
from zoo.tasks.indexed import IndexedTask

RATE = 16_000
SPLITS = ("train", "validation", "test")
FORMS = ("raw", "mfcc")
TEN_WORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
ALL_WORDS = (
    "backward", "bed", "bird", "cat", "dog", "down", "eight", "five", "follow", "forward", "four", "go", "happy", "house",
    "learn", "left", "marvin", "nine", "no", "off", "on", "one", "right", "seven", "sheila", "six", "stop", "three", "tree",
    "two", "up", "visual", "wow", "yes", "zero",
)  # fmt: skip
_LISTS = {"validation": "validation_list.txt", "test": "testing_list.txt"}
_HASH_SIZE = 2**27 - 1
_SOURCE = (
    "the unpacked speech_commands_v0.02.tar.gz from download.tensorflow.org/data: a folder of wav files for every word, "
    "validation_list.txt and testing_list.txt"
)


def which_set(name: str, validation: float = 10.0, test: float = 10.0) -> str:
    """The split of a recording by its file name, e.g. "0a7c2a8d_nohash_0.wav"; shares in per cent."""
    speaker = pathlib.PurePath(name).name.split("_nohash_")[0]
    digest = int(hashlib.sha1(speaker.encode()).hexdigest(), 16)
    share = digest % (_HASH_SIZE + 1) * (100.0 / _HASH_SIZE)
    if share < validation:
        return "validation"
    return "test" if share < validation + test else "train"


@functools.lru_cache(maxsize=6)
def recordings(folder: str, split: str, words: tuple[str, ...]) -> tuple[tuple[str, int], ...]:
    """(file, class) of every recording of a split, in the order of the words and of the names.

    Raises:
      FileNotFoundError: a word has no folder with recordings.
      ValueError: the split has no recordings.
    """
    root = pathlib.Path(folder)
    listed = {name: (root / file).read_text().split() for name, file in _LISTS.items() if (root / file).is_file()}
    official = {path: name for name, paths in listed.items() for path in paths} if len(listed) == len(_LISTS) else None
    found = []
    for label, word in enumerate(words):
        names = sorted(path.name for path in (root / word).glob("*.wav"))
        if not names:
            raise FileNotFoundError(f"no wav files in {word!r} of {folder!r}; needed: {_SOURCE}")
        for name in names:
            home = which_set(name) if official is None else official.get(f"{word}/{name}", "train")
            if home == split:
                found.append((str(root / word / name), label))
    if not found:
        raise ValueError(f"no recording in {folder!r} belongs to the {split} split")
    return tuple(found)


def read_wav(path: str) -> Float[np.ndarray, " 16000"]:
    """One second of sound in -1 .. 1, padded with silence or cut off.

    Raises:
      ValueError: not a wav file of one channel with 16 bits at 16 kHz, or cut short.
    """
    try:
        with wave.open(path) as file:
            layout = (file.getnchannels(), file.getsampwidth(), file.getframerate())
            promised = file.getnframes()
            content = file.readframes(RATE)
    except (wave.Error, EOFError) as error:
        raise ValueError(f"{path} is not a wav file: {error}") from None
    if layout != (1, 2, RATE):
        raise ValueError(
            f"{path} has {layout[0]} channels of {8 * layout[1]} bits at {layout[2]} Hz, wanted is one of 16 bits at "
            f"{RATE} Hz"
        )
    if len(content) != 2 * min(promised, RATE):
        raise ValueError(f"{path} is cut short: {promised} samples in its header, {len(content) / 2:g} there")
    samples = np.frombuffer(content, "<i2").astype(np.float32) / 32_768
    return np.pad(samples, (0, RATE - len(samples)))


def mel_filters(bins: int, mels: int, rate: int = RATE) -> Float[np.ndarray, "bins mels"]:
    """Triangular filters, equally spaced on the mel scale 2595 log10(1 + f / 700), each of height 1."""
    top = 2595 * np.log10(1 + rate / 2 / 700)
    corners = 700 * (10 ** (np.linspace(0, top, mels + 2) / 2595) - 1)
    frequencies = np.linspace(0, rate / 2, bins)[:, None]
    rising = (frequencies - corners[:-2]) / (corners[1:-1] - corners[:-2])
    falling = (corners[2:] - frequencies) / (corners[2:] - corners[1:-1])
    return np.maximum(0, np.minimum(rising, falling))


def mfcc(
    samples: Float[np.ndarray, "*B T"], *, coefficients: int = 20, mels: int = 64, window: int = 200, hop: int = 100
) -> Float[np.ndarray, "*B frames coefficients"]:
    """Mel-frequency cepstral coefficients.

    Power spectra of Hann windows every ``hop`` samples, centred (the ends are mirrored), through ``mels`` mel filters; the
    orthonormal cosine transform of log(energy + 1e-6), its first ``coefficients``. 16,000 samples give 161 frames of 20
    numbers, the features of Kidger et al. (2020), Neural Controlled Differential Equations, that later papers took over.
    torchaudio and librosa have this transform as well; it is here to need neither.
    """
    if samples.shape[-1] <= window // 2:
        raise ValueError(f"samples has {samples.shape[-1]} steps; windows of {window} need more than {window // 2}")
    edge = [(0, 0)] * (samples.ndim - 1) + [(window // 2, window // 2)]
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(samples, edge, mode="reflect"), window, axis=-1)[
        ..., ::hop, :
    ]
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    power = np.abs(np.fft.rfft(frames * hann, axis=-1)) ** 2
    energies = np.log(power @ mel_filters(window // 2 + 1, mels) + 1e-6)
    angles = np.pi / mels * np.outer(np.arange(mels) + 0.5, np.arange(coefficients))
    cosines = np.cos(angles) * np.sqrt(2 / mels)
    cosines[:, 0] /= np.sqrt(2)
    return (energies @ cosines).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class SpeechCommands(IndexedTask):
    """Which word is spoken?

    Batch: ``inputs`` by ``form``, see the module docstring; ``targets`` the word's place in ``words``.

    Attributes:
      path: folder with a folder of wav files for every word.
      split: "train", "validation" or "test".
      form: "raw" or "mfcc".
      every: keep each so many-th sample of "raw" (no filter before): another sampling rate, for testing at a rate that was
        not trained on.
      words: the classes: ``ALL_WORDS`` (35) or ``TEN_WORDS``, the usual subset.
    """

    path: str = ""
    split: str = "train"
    form: str = "raw"
    every: int = 1
    words: tuple[str, ...] = ALL_WORDS

    vocab_size = None

    def __post_init__(self):
        check_choice("split", self.split, SPLITS)
        check_choice("form", self.form, FORMS)
        check_positive("every", self.every)
        if self.form == "mfcc" and self.every != 1:
            raise ValueError(f"every={self.every} is for form='raw'; 'mfcc' has its own frames")
        if len(set(self.words)) != len(self.words) or not self.words:
            raise ValueError(f"words must be different and at least one, got {self.words}")

    @property
    def num_classes(self) -> int:
        """Number of words."""
        return len(self.words)

    @property
    def time(self) -> int:
        """Steps of a sequence."""
        return 161 if self.form == "mfcc" else -(-RATE // self.every)

    @property
    def count(self) -> int:
        return len(recordings(self.path, self.split, self.words))

    def rows_at(self, indices: Int[np.ndarray, " B"]) -> Batch:
        every = recordings(self.path, self.split, self.words)
        chosen = [every[i] for i in indices]
        samples = np.stack([read_wav(file) for file, _ in chosen])
        targets = np.array([label for _, label in chosen], np.int32)
        if self.form == "raw":
            return Batch(samples[:, :: self.every, None], targets)
        features = mfcc(samples)
        mean, deviation = (f(features, axis=1, keepdims=True) for f in (np.mean, np.std))
        return Batch((features - mean) / np.maximum(deviation, 1e-5), targets)
