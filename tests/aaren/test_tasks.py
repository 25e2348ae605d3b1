"""The tasks of the paper's settings: generators do what they say, loaders read real layouts and refuse wrong ones."""

import gzip
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from zoo.tasks import (
    EventSequences,
    MarkovLogNormal,
    MotifClassification,
    OfflineTrajectories,
    PointMass,
    SeriesWindows,
    SumOfSines,
    UEAClassification,
    normalised_return,
)
from zoo.tasks.events import read_events
from zoo.tasks.forecasting import read_series, split_bounds
from zoo.tasks.offline_rl import read_trajectories
from zoo.tasks.timeseries import read_ts

KEY = jax.random.key(0)


def batch(task, size, key=KEY):
    data = jax.tree.map(jnp.asarray, task.data())
    return jax.jit(lambda k, d: task.batch(k, size, d))(key, data)


def test_sines_repeat_with_their_period():
    task = SumOfSines(sines=1, shortest=12, longest=12, noise=0.0, input_length=24, horizon=12)
    examples = batch(task, 5)
    assert examples.inputs.shape == (5, 24, 1) and examples.targets.shape == (5, 12, 1)
    np.testing.assert_allclose(examples.targets, examples.inputs[:, :12], atol=1e-5)
    assert np.ptp(np.asarray(examples.inputs).max(axis=1)) > 0.1


def test_motifs_are_added_to_noise_at_every_place_and_can_be_told_apart():
    task = MotifClassification(amplitude=1.5, frames=2)
    examples = batch(task, 2000)
    assert examples.inputs.shape == (2000, 48, 4)
    series = np.asarray(examples.inputs)[..., 2:]
    np.testing.assert_array_equal(np.asarray(examples.inputs)[:, 1:, :2], series[:, :-1])
    assert np.all(np.bincount(examples.targets) > 400)
    means = np.stack([series[np.asarray(examples.targets) == k].mean(axis=0) for k in range(4)])
    # Away from the ends every place is as likely as any other: the mean over places is the motif's mean, spread out.
    want = np.asarray(task.motifs()).sum(axis=1) / (48 - 6 + 1)
    np.testing.assert_allclose(means[:, 6:-6].mean(axis=1), want, atol=0.05)
    right = np.mean(np.argmax(task.best_logits(examples.inputs), axis=-1) == examples.targets)
    assert right > 0.95


def test_the_best_motif_observer_is_the_likelihood():
    task = MotifClassification(num_classes=2, length=4, channels=1, motif_length=2, frames=1)
    x = np.array([[[0.3], [-1.0], [2.0], [0.1]]], np.float32)
    motifs = np.asarray(task.motifs())
    likelihood = np.zeros(2)
    for k in range(2):
        for place in range(3):
            mean = np.zeros((4, 1))
            mean[place : place + 2] += motifs[k]
            likelihood[k] += np.prod(stats.norm.pdf(x[0] - mean))
    np.testing.assert_allclose(np.diff(task.best_logits(jnp.asarray(x))[0]), np.diff(np.log(likelihood)), rtol=1e-4)


def test_events_follow_the_chain_and_the_likelihood_that_is_claimed():
    task = MarkovLogNormal(length=40)
    examples = batch(task, 500)
    marks, following = np.asarray(examples.inputs.marks), np.asarray(examples.targets.marks)
    np.testing.assert_array_equal(marks[:, 1:], following[:, :-1])
    logs = np.log(np.asarray(examples.targets.intervals))
    chain = np.exp(task.transition_logits())
    for k in range(3):
        np.testing.assert_allclose(logs[marks == k].mean(), task.log_means()[k], atol=0.02)
        np.testing.assert_allclose(logs[marks == k].std(), 0.3, atol=0.02)
        share = np.bincount(following[marks == k], minlength=3) / np.sum(marks == k)
        np.testing.assert_allclose(share, chain[k], atol=0.03)
    nll = np.asarray(task.true_nll(examples))
    tau, k, j = float(examples.targets.intervals[0, 0]), marks[0, 0], following[0, 0]
    want = -stats.lognorm.logpdf(tau, 0.3, scale=np.exp(task.log_means()[k])) - np.log(chain[k, j])
    np.testing.assert_allclose(nll[0, 0], want, rtol=1e-5)


def test_experts_are_better_than_chance_and_returns_add_up():
    task = PointMass()
    random, expert = jax.jit(lambda k: task.reference_returns(k, 500))(KEY)
    assert expert > random + 1.0
    assert normalised_return(expert, random, expert) == 100
    examples = batch(task, 400)
    to_go = np.asarray(examples.inputs.returns_to_go)
    observations = np.asarray(examples.inputs.observations)
    assert expert < to_go[:, 0].max() <= 0
    rewards = -np.abs(observations[:, 1:, 0] - observations[:, 1:, 1])
    np.testing.assert_allclose(to_go[:, :-1] - to_go[:, 1:], rewards, atol=1e-5)
    moved = observations[:, 1:, 0] - observations[:, :-1, 0]
    np.testing.assert_allclose(moved, 0.25 * np.asarray(examples.targets)[:, :-1, 0], atol=1e-6)
    good = np.mean(np.abs(observations[:, -1, 0] - observations[:, -1, 1]) < 0.15)
    assert 0.4 < good < 0.7


def write_csv(path, series, header=True):
    lines = [f"{2000 + i},{','.join(map(str, row))}" for i, row in enumerate(series)]
    path.write_text("\n".join((["date,a,b"] if header else []) + lines) + "\n")


def test_series_files_are_read_split_and_standardised(tmp_path):
    series = np.random.default_rng(0).normal(3.0, 2.0, (100, 2)).round(4)
    write_csv(tmp_path / "x.csv", [[repr(float(v)) for v in row] for row in series])
    with gzip.open(tmp_path / "x.txt.gz", "wt") as file:
        file.writelines(",".join(repr(float(v)) for v in row) + "\n" for row in series)
    dates = [line.replace("20", "d", 1) for line in (tmp_path / "x.csv").read_text().splitlines()]
    (tmp_path / "dates.csv").write_text("\n".join(dates))
    np.testing.assert_array_equal(read_series(tmp_path / "x.txt.gz"), series)
    np.testing.assert_array_equal(read_series(tmp_path / "dates.csv"), series)

    assert split_bounds("ratio", 100) == {"train": (0, 70), "validation": (70, 80), "test": (80, 100)}
    options = {"path": str(tmp_path / "x.txt.gz"), "input_length": 6, "horizon": 4}
    train, test = SeriesWindows(**options), SeriesWindows(split="test", **options)
    mean, deviation = series[:70].mean(axis=0), series[:70].std(axis=0)
    np.testing.assert_allclose(train.data(), (series[:70] - mean) / deviation, atol=1e-5)
    np.testing.assert_allclose(test.data(), (series[74:] - mean) / deviation, atol=1e-5)
    assert train.num_windows(train.data()) == 61 and test.num_windows(test.data()) == 17
    window = test.window(jnp.int32(16), jnp.asarray(test.data()))
    np.testing.assert_allclose(window.targets, (series[96:] - mean) / deviation, atol=1e-5)
    assert batch(train, 3).inputs.shape == (3, 6, 2)


def test_ett_months():
    assert split_bounds("ett_hour", 17420) == {"train": (0, 8640), "validation": (8640, 11520), "test": (11520, 14400)}
    assert split_bounds("ett_minute", 69680)["test"] == (46080, 57600)
    with pytest.raises(ValueError, match="14400 steps"):
        split_bounds("ett_hour", 1000)


TS = """#comment
@problemName Toy
@timeStamps false
@dimensions 2
@equalLength false
@classLabel true up down
@data
1,2,3:4,5,6:up
1,?:7,8:down
"""


def test_uea_files_are_read_padded_and_standardised(tmp_path):
    (tmp_path / "Toy_TRAIN.ts").write_text(TS)
    (tmp_path / "Toy_TEST.ts").write_text(TS.replace("1,2,3:4,5,6:up", "1,2,3,9:4,5,6,9:down"))
    cases = read_ts(tmp_path / "Toy_TRAIN.ts")
    assert cases.classes == ("up", "down") and list(cases.lengths) == [3, 2] and list(cases.labels) == [0, 1]
    task = UEAClassification(str(tmp_path))
    data = task.data()
    assert task.num_classes == 2 and data["values"].shape == (2, 4, 2)
    first = np.array([1, 2, 3, 1.0])
    np.testing.assert_allclose(data["values"][0, :3, 0], (first[:3] - first.mean()) / first.std(), rtol=1e-5)
    assert data["values"][1, 1, 0] == 0 and np.all(data["values"][1, 2:] == 0)
    test = UEAClassification(str(tmp_path), split="test")
    assert list(test.data()["lengths"]) == [4, 2] and list(test.data()["labels"]) == [1, 1]
    examples = batch(task, 6)
    assert examples.inputs.shape == (6, 4, 2) and set(np.asarray(examples.lengths)) <= {2, 3}


def events_file(tmp_path, count=10):
    rng = np.random.default_rng(0)
    rows = [(np.cumsum(rng.exponential(size=n)), rng.integers(0, 3, n)) for n in rng.integers(4, 12, count)]
    rows[0][0][1] = rows[0][0][0]
    path = tmp_path / "events.jsonl"
    path.write_text("".join(json.dumps({"times": list(t), "marks": m.tolist()}) + "\n" for t, m in rows))
    packed = tmp_path / "events.npz"
    np.savez(packed, times=np.concatenate([t for t, _ in rows]), marks=np.concatenate([m for _, m in rows]),
             lengths=[len(t) for t, _ in rows])  # fmt: skip
    return path, packed, rows


def test_event_files_are_read_split_and_cut(tmp_path):
    path, packed, rows = events_file(tmp_path)
    for (times, marks), (want_times, want_marks), (same, _) in zip(read_events(path), rows, read_events(packed)):
        np.testing.assert_allclose(times, want_times)
        np.testing.assert_allclose(same, want_times)
        np.testing.assert_array_equal(marks, want_marks)
    parts = [EventSequences(str(path), split=s, max_length=4) for s in ("train", "validation", "test")]
    assert parts[0].num_marks == 3
    sizes = [task.data()["events"].sum() for task in parts]
    assert min(sizes) > 0 and sum(sizes) <= sum(len(t) for t, _ in rows)
    data = parts[0].data()
    assert data["intervals"].shape[1] == 5 and np.all(data["intervals"] > 0) and data["events"].max() == 5
    examples = batch(parts[0], 20)
    lengths = np.asarray(examples.lengths)
    np.testing.assert_array_equal(np.asarray(examples.mask).sum(axis=1), lengths)
    np.testing.assert_array_equal(examples.inputs.intervals[:, 1:], examples.targets.intervals[:, :-1])
    mean, deviation = parts[0].log_interval_statistics()
    assert np.isfinite(mean) and deviation > 0


def trajectories_file(tmp_path):
    rng = np.random.default_rng(0)
    data = {
        "observations": rng.normal(5.0, 2.0, (12, 3)),
        "actions": rng.uniform(-1, 1, (12, 2)),
        "rewards": np.arange(12.0),
        "terminals": np.isin(np.arange(12), [4]),
        "timeouts": np.isin(np.arange(12), [8]),
    }
    path = tmp_path / "pushing.npz"
    np.savez(path, **data)
    return path, data


def test_recorded_trajectories_become_windows_inside_episodes(tmp_path):
    path, raw = trajectories_file(tmp_path)
    task = OfflineTrajectories(str(path), context=4, return_scale=10.0)
    assert (task.observation_dim, task.action_dim) == (3, 2)
    data = task.data()
    np.testing.assert_array_equal(data["timesteps"], [0, 1, 2, 3, 4, 0, 1, 2, 3, 0, 1, 2])
    want = [10, 10, 9, 7, 4, 26, 21, 15, 8, 30, 21, 11]
    np.testing.assert_allclose(data["returns_to_go"], np.array(want) / 10, rtol=1e-6)
    np.testing.assert_allclose(data["observations"].mean(axis=0), 0, atol=1e-5)
    examples = batch(task, 200)
    window, mask = examples.inputs, np.asarray(examples.mask)
    assert mask[:, 0].all() and set(mask.sum(axis=1)) == {1, 2, 3, 4}
    steps = np.asarray(window.timesteps)
    assert np.all(np.diff(steps, axis=1)[mask[:, 1:]] == 1)
    rewards = (np.asarray(window.returns_to_go)[:, :-1] - np.asarray(window.returns_to_go)[:, 1:]) * 10
    assert np.all(np.isin(np.round(rewards[mask[:, 1:]]), raw["rewards"]))


def test_hdf5_files_are_read(tmp_path):
    import h5py

    path, raw = trajectories_file(tmp_path)
    with h5py.File(tmp_path / "pushing.hdf5", "w") as file:
        for name, array in raw.items():
            file[name] = array
    for name, array in read_trajectories(tmp_path / "pushing.hdf5").items():
        np.testing.assert_array_equal(array, read_trajectories(path)[name])


def test_an_hdf5_file_without_h5py_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    (tmp_path / "x.hdf5").write_bytes(b"")
    with pytest.raises(ModuleNotFoundError, match="needs h5py"):
        read_trajectories(tmp_path / "x.hdf5")


@pytest.mark.parametrize(
    ("read", "source"),
    [
        (read_series, "ETDataset"),
        (read_ts, "timeseriesclassification.com"),
        (read_events, "JSON lines"),
        (read_trajectories, "D4RL"),
    ],
)
def test_a_missing_file_names_a_public_source(read, source, tmp_path):
    with pytest.raises(FileNotFoundError, match=source) as error:
        read(tmp_path / "missing.csv")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("read", "name", "text", "words"),
    [
        (read_series, "x.csv", "", "no time steps"),
        (read_series, "x.csv", "date,a\n1,2\n", None),
        (read_series, "x.csv", "a,b\n1,2\n3\n", "line 3: 1 fields, but 2"),
        (read_series, "x.csv", "1,2\n3,nan\n", "line 2: 'nan' is not a finite number"),
        (read_ts, "x.ts", "@problemName x\n@data\n1:a\n", "no line '@classLabel"),
        (read_ts, "x.ts", "@timeStamps true\n", "time stamps"),
        (read_ts, "x.ts", "hello\n", "expected a header line"),
        (read_ts, "x.ts", TS + "1,2:3,4:left\n", "unknown class label 'left'"),
        (read_ts, "x.ts", TS + "1,2:up\n", "1 channels, but 2 before"),
        (read_ts, "x.ts", TS + "1,b:1,2:up\n", "could not convert"),
        (read_events, "x.jsonl", '{"times": [2.0, 1.0], "marks": [0, 0]}\n', "line 1: times must be finite"),
        (read_events, "x.jsonl", '{"times": [1.0], "marks": [-1]}\n', "marks must be integers from 0"),
        (read_events, "x.jsonl", '{"marks": [1]}\n', "line 1: KeyError"),
        (read_events, "x.jsonl", "not json\n", "line 1: JSONDecodeError"),
        (read_events, "x.jsonl", '{"times": [1.0, 2.0]}\n', None),
        (read_events, "x.jsonl", "\n", "holds no sequences"),
    ],
)
def test_wrong_files_are_refused_with_their_line(read, name, text, words, tmp_path):
    (tmp_path / name).write_text(text)
    if words is None:
        read(tmp_path / name)
    else:
        with pytest.raises(ValueError, match=words):
            read(tmp_path / name)


def test_wrong_settings_are_refused(tmp_path):
    write_csv(tmp_path / "x.csv", np.ones((30, 2)))
    for make, words in (
        (lambda: SeriesWindows(str(tmp_path / "x.csv"), split="tset"), "did you mean 'test'"),
        (lambda: SeriesWindows(str(tmp_path / "x.csv")).data(), "too few for one window"),
        (lambda: MotifClassification(motif_length=50), "does not fit"),
        (lambda: MarkovLogNormal(deviation=0.0), "deviation must be positive"),
        (lambda: SumOfSines(horizon=0), "horizon must be a positive integer"),
        (lambda: PointMass(speed=0.0), "speed must be positive"),
    ):
        with pytest.raises(ValueError, match=words):
            make()
    with pytest.raises(FileNotFoundError, match="0 files"):
        UEAClassification(str(tmp_path)).data()
    path, raw = trajectories_file(tmp_path)
    raw.pop("rewards")
    np.savez(path, **raw)
    with pytest.raises(ValueError, match="lacks rewards"):
        read_trajectories(path)
