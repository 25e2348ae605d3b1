"""Speech Commands: the official splits, sound in and features out, and files that are not what they say."""

import wave

import numpy as np
import pytest

from zoo.tasks import SpeechCommands
from zoo.tasks.speech_commands import ALL_WORDS, TEN_WORDS, mel_filters, mfcc, read_wav, which_set

WORDS = ("yes", "no")


def write_wav(path, samples, rate=16_000, channels=1, width=2):
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels), file.setsampwidth(width), file.setframerate(rate)
        file.writeframes(np.asarray(samples).astype(f"<i{width}").tobytes())


@pytest.fixture
def folder(tmp_path):
    """Forty recordings of each of two words by forty speakers; sample t of speaker s is s + t modulo 1000."""
    for word in WORDS:
        (tmp_path / word).mkdir()
        for speaker in range(40):
            write_wav(tmp_path / word / f"{speaker:08x}_nohash_0.wav", (speaker + np.arange(16_000)) % 1000)
    return tmp_path


def test_the_ten_words_are_among_the_thirty_five():
    assert len(ALL_WORDS) == len(set(ALL_WORDS)) == 35 and len(TEN_WORDS) == 10 and set(TEN_WORDS) < set(ALL_WORDS)


def test_splits_are_drawn_by_speaker_in_the_wanted_shares():
    names = [f"{n:08x}" for n in range(4000)]
    homes = [which_set(f"{name}_nohash_0.wav") for name in names]
    assert homes == [which_set(f"some/where/{name}_nohash_7.wav") for name in names]
    shares = {home: homes.count(home) / len(homes) for home in ("train", "validation", "test")}
    assert abs(shares["train"] - 0.8) < 0.03 and abs(shares["validation"] - 0.1) < 0.02
    known = {"026290a7": "validation", "0c40e715": "test"}  # from the lists of the release
    assert all(which_set(f"{name}_nohash_0.wav") == home for name, home in known.items())
    assert {which_set(f"{name}_nohash_0.wav", 0, 100) for name in names} == {"test"}


def test_every_recording_is_in_one_split_and_raw_samples_are_what_the_file_holds(folder):
    seen = []
    for split in ("train", "validation", "test"):
        task = SpeechCommands(str(folder), split, words=WORDS)
        batch = task.rows_at(np.arange(task.count))
        assert batch.inputs.shape == (task.count, 16_000, 1) and batch.inputs.dtype == np.float32
        speakers = np.rint(batch.inputs[:, 0, 0] * 32_768).astype(int)
        assert all(which_set(f"{s:08x}_nohash_0.wav") == split for s in speakers)
        seen += zip(batch.targets.tolist(), speakers.tolist())
        slow = SpeechCommands(str(folder), split, words=WORDS, every=3)
        assert np.array_equal(slow.rows_at(np.array([0])).inputs[0], batch.inputs[0, ::3])
        assert slow.time == len(batch.inputs[0, ::3])
    assert sorted(seen) == [(word, speaker) for word in range(2) for speaker in range(40)]


def test_the_lists_of_the_release_come_before_the_rule(folder):
    (folder / "validation_list.txt").write_text("yes/00000003_nohash_0.wav\nno/00000003_nohash_0.wav\n")
    (folder / "testing_list.txt").write_text("yes/00000005_nohash_0.wav\n")
    counts = {s: SpeechCommands(str(folder), s, words=WORDS).count for s in ("train", "validation", "test")}
    assert counts == {"train": 77, "validation": 2, "test": 1}


def test_mfcc_equals_its_definition_written_out():
    samples = np.random.default_rng(0).standard_normal(430).astype(np.float32) / 10
    got = mfcc(samples, coefficients=5, mels=12, window=40, hop=20)
    padded = np.concatenate([samples[20:0:-1], samples, samples[-2:-22:-1]]).astype(np.float64)
    filters = mel_filters(21, 12)
    assert filters.shape == (21, 12) and filters.min() == 0 and filters.max() <= 1
    wanted = []
    for start in range(0, len(padded) - 39, 20):
        frame = padded[start : start + 40] * np.sin(np.pi * np.arange(40) / 40) ** 2
        spectrum = [abs(sum(frame * np.exp(-2j * np.pi * k * np.arange(40) / 40))) ** 2 for k in range(21)]
        energy = np.log(np.array(spectrum) @ filters + 1e-6)
        row = [
            sum(energy * np.cos(np.pi * c * (np.arange(12) + 0.5) / 12)) * np.sqrt((1 + (c > 0)) / 12) for c in range(5)
        ]
        wanted.append(row)
    assert got.shape == (22, 5) and np.allclose(got, wanted, atol=1e-4)


def test_features_have_the_usual_shape_and_tell_pitches_apart(tmp_path):
    (tmp_path / "yes").mkdir()
    for n, pitch in enumerate((300, 3000)):
        tone = 8000 * np.sin(2 * np.pi * pitch * np.arange(9000) / 16_000)
        write_wav(tmp_path / "yes" / f"{n}_nohash_0.wav", tone)
    (tmp_path / "validation_list.txt").write_text(""), (tmp_path / "testing_list.txt").write_text("")
    task = SpeechCommands(str(tmp_path), form="mfcc", words=("yes",))
    inputs = task.rows_at(np.arange(2)).inputs
    assert inputs.shape == (2, 161, 20) == (2, task.time, 20)
    assert np.allclose(inputs.mean(axis=1), 0, atol=1e-4) and not np.allclose(inputs[0], inputs[1], atol=0.1)
    hertz = np.argmax(mel_filters(401, 24), axis=0) * 20
    assert (np.diff(hertz) > 0).all() and hertz[-1] > 7000, "filters climb to half the sampling rate"
    assert not read_wav(str(tmp_path / "yes" / "0_nohash_0.wav"))[9000:].any(), "silence after the end"


def test_what_is_missing_or_broken_is_named(tmp_path, folder, as_users_see_it):
    (tmp_path / "empty").mkdir()
    for task, words in (
        (SpeechCommands(str(tmp_path / "empty")), "no wav files in 'backward' .*speech_commands_v0.02"),
        (SpeechCommands(str(folder), words=("yes", "maybe")), "no wav files in 'maybe'"),
    ):
        with pytest.raises(FileNotFoundError, match=words):
            _ = task.count
    (folder / "validation_list.txt").write_text(""), (folder / "testing_list.txt").write_text("")
    with pytest.raises(ValueError, match="belongs to the test split"):
        _ = SpeechCommands(str(folder), "test", words=WORDS).count
    file = folder / "yes" / "00000000_nohash_0.wav"
    whole = file.read_bytes()
    for content, words in (
        (b"", "not a wav file"), (whole[:30], "not a wav file"), (whole[:4000], "cut short"),
        (b"\x1f\x8b" + whole, "not a wav file"),
    ):  # fmt: skip
        file.write_bytes(content)
        with pytest.raises(ValueError, match=words):
            read_wav(str(file))
    write_wav(file, np.zeros(800), rate=8000)
    with pytest.raises(ValueError, match="at 8000 Hz, wanted"):
        read_wav(str(file))
    with pytest.raises(ValueError, match="for form='raw'"):
        SpeechCommands(form="mfcc", every=2)
    with pytest.raises(ValueError, match="more than 100"):
        mfcc(np.zeros(100, np.float32))
