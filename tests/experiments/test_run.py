"""A run from its name to its verdict, in one process: what it writes, how it goes on, how it stops."""

import json
import os
import shutil
import signal
import threading
import time

import jax
import numpy as np
import pytest

import experiments
from experiments import launch
from experiments.checkpoints import Checkpoints
from experiments.errors import RunError, Stopped, UsageError
from tests.experiments import toy  # noqa: F401  (registers the experiment)


def run(workdir, preset="quick", **options):
    return experiments.run("toy", preset, workdir=workdir, progress=False, **options)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run that went through undisturbed, and its verdict."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    return workdir, run(workdir)


def final_arrays(workdir, arm="wide"):
    """Every byte of the newest checkpoint of an arm, by path."""
    folder = workdir / "checkpoints" / arm
    step = max(int(p.name) for p in folder.iterdir())
    import orbax.checkpoint as ocp

    tree = ocp.PyTreeCheckpointer().restore(folder / str(step) / "state")
    return step, {jax.tree_util.keystr(p): np.asarray(x) for p, x in jax.tree_util.tree_leaves_with_path(tree)}


def assert_same_arrays(first, second, arm="wide"):
    (step_a, a), (step_b, b) = final_arrays(first, arm), final_arrays(second, arm)
    assert step_a == step_b and a.keys() == b.keys()
    assert all(a[k].tobytes() == b[k].tobytes() for k in a)


def rows(workdir):
    """Rows of metrics.jsonl, without what depends on the clock."""
    every = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if "second" not in k} for row in every]


def test_a_run_writes_everything_that_a_reader_needs(finished):
    workdir, verdict = finished
    stored = json.loads((workdir / "verdict.json").read_text())
    assert set(stored) >= {"experiment", "paper", "preset", "seed", "passed", "checks", "seconds", "versions"}
    assert stored["passed"] is True and [c["passed"] for c in stored["checks"]] == [True, True]
    assert set(stored["checks"][0]) == {"name", "value", "op", "threshold", "passed"}
    assert verdict["metrics"]["wide/parameters"] == 41 and verdict["metrics"]["wide/loss"] < 0.2
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    training = [r for r in rows if r["arm"] == "wide" and "loss" in r]
    assert [r["step"] for r in training] == list(range(5, 65, 5)) and training[-1]["loss"] < training[0]["loss"]
    names = {"arm", "step", "loss", "error", "learning_rate", "grad_norm", "seconds", "steps_per_second"}
    assert set(training[0]) == names
    assert [r["step"] for r in rows if r["arm"] == "wide" and "evaluation/loss" in r] == [30, 60]
    config = json.loads((workdir / "config.json").read_text())
    assert config["config"]["training"]["steps"] == 60 and config["seed"] == 0 and config["devices"]["count"] == 4
    assert (workdir / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert list((workdir / "tensorboard" / "wide").glob("events*"))
    report = (workdir / "report.md").read_text()
    for part in ("A small network fits a line.", "wide fits", "curves.png", "--experiment=toy", "training.steps"):
        assert part in report


def test_resuming_a_finished_run_trains_nothing_and_gives_the_same_verdict(finished):
    workdir, verdict = finished
    before = (workdir / "metrics.jsonl").read_text()
    again = run(workdir, resume=True)
    assert {k: v for k, v in again.items() if k != "seconds"} == {k: v for k, v in verdict.items() if k != "seconds"}
    assert (workdir / "metrics.jsonl").read_text() == before


def test_a_signal_saves_and_resuming_ends_where_the_undisturbed_run_ended(finished, tmp_path, capsys):
    workdir = tmp_path / "run"

    def when_saved():
        while not (workdir / "checkpoints" / "wide" / "10").exists():
            time.sleep(0.002)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=when_saved, daemon=True).start()
    status = launch.main(["--experiment=toy", f"--workdir={workdir}", "--noprogress"])
    assert status == 143 and "go on with --resume" in capsys.readouterr().err
    assert not (workdir / "verdict.json").exists() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert launch.main(["--resume", f"--workdir={workdir}", "--noprogress"]) == 0
    for arm in ("wide", "narrow"):
        assert_same_arrays(workdir, finished[0], arm)
    got, wanted = (json.loads((w / "verdict.json").read_text())["metrics"] for w in (workdir, finished[0]))
    assert got.keys() == wanted.keys() and all(got[k] == wanted[k] for k in got if "seconds" not in k)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("loss", "wide: step 23: the loss is not finite; the checkpoint of step 20 is kept"),
        ("gradient", "but a gradient is not finite; first parameter with a non-finite gradient: out/bias"),
    ],
)
def test_what_is_not_finite_stops_with_step_and_parameter_and_keeps_the_checkpoint(tmp_path, capsys, where, message):
    argv = ["--experiment=toy", "--preset=smoke", f"--workdir={tmp_path / 'run'}", "--set=nan_at=23", "--noprogress"]
    assert launch.main([*argv, f"--set=nan_in={where}"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "wide: step 23: " in error and message in error
    assert (tmp_path / "run" / "checkpoints" / "wide" / "20" / "COMMIT").exists()


def test_a_failed_check_exits_with_3(tmp_path, capsys):
    argv = ["--experiment=toy", "--preset=paper", f"--workdir={tmp_path / 'run'}", "--noprogress"]
    assert launch.main([*argv, "--set=training.steps=10", "--set=arms=1"]) == 3
    assert "FAIL  impossible" in capsys.readouterr().out


def test_a_crash_is_not_dressed_up(tmp_path, monkeypatch):
    monkeypatch.setattr("experiments.runner._conclude", lambda *_: 1 / 0)
    argv = ["--experiment=toy", "--preset=smoke", f"--workdir={tmp_path}", "--noprogress", "--set=training.steps=0"]
    with pytest.raises(ZeroDivisionError):
        launch.main(argv)


@pytest.mark.parametrize("source", ["host", "device"])
def test_carry_host_data_and_averages_survive_a_resume_to_the_bit(tmp_path, source):
    overrides = {"carry": True, "source": source, "arms": 1, "training.ema": 0.9, "training.steps": 30}
    overrides["training.shard_optimizer"] = source == "host"
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run(whole, overrides=overrides)
    run(parts, overrides=overrides)
    for step in (20, 30):
        folder = parts / "checkpoints" / "wide" / str(step)
        if folder.exists():
            shutil.rmtree(folder)
    (parts / "arms" / "wide.json").unlink()
    assert run(parts, overrides=overrides, resume=True)["passed"]
    assert_same_arrays(whole, parts)
    assert rows(parts) == rows(whole)
    assert any("ema" in name for name in final_arrays(whole)[1]) and any("carry" in n for n in final_arrays(whole)[1])


def test_a_folder_with_a_run_is_not_touched_unless_told(finished, tmp_path):
    workdir, _ = finished
    with pytest.raises(UsageError, match="already holds a run: --resume"):
        run(workdir)
    with pytest.raises(UsageError, match=r"training.steps=60, not 70"):
        run(workdir, resume=True, overrides={"training.steps": 70})
    with pytest.raises(UsageError, match="seed=0, not 1"):
        run(workdir, resume=True, seed=1)
    keep = tmp_path / "run"
    run(keep, "smoke", overrides={"training.steps": 5})
    (keep / "mine.txt").write_text("kept")
    assert run(keep, "smoke", overrides={"training.steps": 10}, overwrite=True)["passed"]
    assert (keep / "mine.txt").exists() and Checkpoints(keep / "checkpoints" / "wide", "").steps() == [10]


def test_errors_can_be_caught_by_kind():
    assert issubclass(UsageError, ValueError) and issubclass(RunError, RuntimeError)
    assert issubclass(Stopped, KeyboardInterrupt)
