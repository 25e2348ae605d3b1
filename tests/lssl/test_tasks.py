"""Regression files of the TSER archive, the same signals at another rate, and the memory probe."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import stand_ins
from zoo.analysis import band_limited_noise, memory_probe
from zoo.tasks import Digits, Resampled, SeriesRegression, UEAClassification
from zoo.tasks.timeseries import read_ts

HEAD = "@problemName Toy\n@timeStamps false\n@targetLabel true\n@data\n"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "Toy_TRAIN.ts").write_text(HEAD + "1,2,3:4,5,6:10.5\n3,2,1:?,8,7:20.5\n")
    (tmp_path / "Toy_TEST.ts").write_text(HEAD + "2,2,2:6,6,6:15.5\n")
    return tmp_path


def test_regression_targets_are_standardised_and_lead_back_to_their_units(folder):
    train, test = SeriesRegression(str(folder)), SeriesRegression(str(folder), "test")
    mean, deviation = train.target_scale
    assert (mean, deviation) == (15.5, 5.0) == test.target_scale
    data = train.data()
    np.testing.assert_allclose(data["labels"], [[-1], [1]])
    np.testing.assert_allclose(test.data()["labels"], [[0]])
    np.testing.assert_allclose(data["values"].mean(axis=(0, 1)), 0, atol=1e-6)
    assert data["values"][1, 0, 1] == 0, "a missing value is the mean"
    batch = train.batch(jax.random.key(0), 8, data)
    assert batch.inputs.shape == (8, 3, 2) and batch.targets.shape == (8, 1)
    assert batch.lengths is None, "equal lengths need no mask, and no reset"


def test_regression_cases_of_unequal_length_have_lengths(folder):
    (folder / "Toy_TEST.ts").write_text(HEAD + "2,2,2,2:6,6,6,6:15.5\n1:1:0.5\n")
    data = SeriesRegression(str(folder), "test").data()
    assert data["lengths"].tolist() == [4, 1] and data["values"].shape == (2, 4, 2)
    assert SeriesRegression(str(folder), "test").case(jnp.int32(1), data).lengths == 1
    assert not np.any(data["values"][1, 1:])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (HEAD + "1,2:x\n", "line 5: the target 'x' is not a finite number"),
        (HEAD + "1,2:nan\n", "not a finite number"),
        ("@targetLabel false\n@data\n1:2\n", "'@classLabel true ...' or '@targetLabel true'"),
    ],
)
def test_broken_regression_files_are_refused_by_line(tmp_path, content, words):
    (tmp_path / "x.ts").write_text(content)
    with pytest.raises(ValueError, match=words):
        read_ts(tmp_path / "x.ts")


def test_classification_and_regression_files_are_not_mistaken_for_each_other(folder, tmp_path_factory):
    with pytest.raises(ValueError, match="read it with SeriesRegression"):
        UEAClassification(str(folder)).data()
    other = tmp_path_factory.mktemp("classes")
    stand_ins.labelled_series(other, train=4, test=2, steps=5, channels=1, classes=2)
    with pytest.raises(ValueError, match="read it with UEAClassification"):
        SeriesRegression(str(other)).data()


def test_resampled_images_are_the_same_images():
    task = Digits("test")
    data = task.data()
    index = jnp.arange(5)
    plain = task.rows_at(index, data)
    fast = Resampled(task, faster=2)
    twice = fast.rows_at(index, data)
    assert fast.time == 128 and twice.inputs.shape == (5, 128, 1) and np.array_equal(twice.targets, plain.targets)
    np.testing.assert_array_equal(twice.inputs[:, ::2], plain.inputs)
    np.testing.assert_array_equal(twice.inputs[:, 1::2], plain.inputs)
    back = Resampled(fast, slower=2)
    np.testing.assert_array_equal(back.rows_at(index, data).inputs, plain.inputs)
    third = Resampled(task, slower=3)
    assert third.time == 22 and third.rows_at(index, data).inputs.shape == (5, 22, 1)
    key = jax.random.key(0)
    np.testing.assert_array_equal(fast.batch(key, 3, data).inputs[:, ::2], task.batch(key, 3, data).inputs)


def test_noise_is_limited_to_its_band():
    noise = band_limited_noise(4096, width=9)
    assert abs(np.var(noise) - 1) < 1e-9 and not np.array_equal(noise, band_limited_noise(4096, width=9, seed=1))
    power = np.abs(np.fft.rfft(noise)) ** 2
    assert power[len(power) // 2 :].sum() < 1e-3 * power.sum()


def test_a_delay_line_remembers_exactly_and_only_as_long_as_it_is():
    line = np.eye(6, k=-1)
    scores = memory_probe(line, np.eye(6)[0], (0, 3, 5, 30), np.random.default_rng(0).standard_normal(2000))
    np.testing.assert_allclose(scores[:3], 1, atol=1e-6)
    assert abs(scores[3]) < 0.05
    with pytest.raises(ValueError, match="lags must be given"):
        memory_probe(line, np.eye(6)[0], (1000,), np.zeros(100))
