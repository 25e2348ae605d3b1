"""Whatever is wrong with a command line gets one line that says so, and exit status 2; nothing is written."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from experiments import launch
from tests.experiments import toy  # noqa: F401  (registers the experiment)

TOY = "--experiment=toy"
# command line, what the message must contain; {tmp} is an empty folder, {run} one that holds a run
WRONG = [
    (["--experimnt=toy"], "unknown flag --experimnt; did you mean 'experiment'"),
    ([TOY, "--stepz=3"], "unknown flag --stepz"),
    (["--experiment"], "experiment"),
    ([], "--experiment=NAME is needed"),
    (["--experiment=tooy"], "did you mean 'toy'"),
    (["--experiment="], "unknown experiment ''"),
    ([TOY, "extra"], "unexpected argument 'extra'"),
    ([TOY, "--preset=quik"], "did you mean 'quick'"),
    ([TOY, "--seed=x"], "--seed"),
    ([TOY, "--seed=-1"], "seed must be an integer from 0"),
    ([TOY, "--seed=1.5"], "--seed"),
    ([TOY, "--resume=perhaps"], "resume"),
    ([TOY, "--json"], "--json belongs to --list"),
    ([TOY, "--resume", "--overwrite"], "give one of them"),
    ([TOY, "--set=training.steps"], "NAME=VALUE"),
    ([TOY, "--set=training.stepz=1"], "did you mean 'training.steps'"),
    ([TOY, "--set=trainin.steps=1"], "did you mean 'training'"),
    ([TOY, "--set=training.steps=ten"], "expected an integer, got 'ten'"),
    ([TOY, "--set=training.steps=-1"], "training.steps must not be negative"),
    ([TOY, "--set=training.batch_size=0"], "training.batch_size must be a positive integer"),
    ([TOY, "--set=training.batch_size=6"], "not divisible by 4"),
    ([TOY, "--set=training.accumulate=3"], "not divisible by 12"),
    ([TOY, "--set=training.optimizer=adamm"], "did you mean 'adam'"),
    ([TOY, "--set=training.schedule=cosin"], "did you mean 'cosine'"),
    ([TOY, "--set=training.ema=2"], "training.ema must lie in [0, 1)"),
    ([TOY, "--set=training.learning_rate=nan"], "got NaN"),
    ([TOY, "--set=training.clip_norm=-1"], "training.clip_norm must be positive or None"),
    ([TOY, "--set=training.slow=("], "not a regular expression"),
    ([TOY, "--set=training.optimizer=sgd", "--set=training.weight_decay=0.1"], "training.weight_decay=0.1 needs"),
    ([TOY, "--set=training=5"], "JSON object of Training fields"),
    ([TOY, "--set=model.width=-1"], "width must be a positive integer, got -1"),
    ([TOY, "--set=model.widths=1,a"], "expected an integer, got 'a'"),
    ([TOY, "--set=model.widths.7=1"], "positions 0 to 1"),
    ([TOY, "--set=model.options=3"], "expected a JSON object"),
    ([TOY, "--set=model.options.scale=big"], "expected a number"),
    ([TOY, "--set=carry=maybe"], "expected true or false"),
    ([TOY, "--set=label.x=1"], "has no parts"),
    ([TOY, "--set=file={tmp}/none.npy"], "No such file or directory"),
    ([TOY, "--set=file={tmp}/broken.npy"], "not possible"),
    ([TOY, "--workdir={tmp}/file"], "cannot be written"),
    ([TOY, "--workdir={tmp}/file/below"], "cannot be written"),
    ([TOY, "--workdir={run}"], "already holds a run: --resume goes on with it"),
    ([TOY, "--workdir={tmp}/none", "--resume"], "nothing to resume"),
    ([TOY, "--workdir={run}", "--resume", "--set=training.steps=61"], "training.steps=60, not 61"),
    ([TOY, "--workdir={run}", "--resume", "--seed=1"], "seed=0, not 1"),
    ([TOY, "--workdir={run}", "--resume", "--preset=smoke"], "preset=quick, not smoke"),
    ([TOY, "--workdir={damaged}", "--resume"], "cannot be read"),
    (["--resume"], "--experiment=NAME is needed"),
    ([TOY, "--coordinator=localhost:1234"], "belong together"),
    ([TOY, "--coordinator=localhost", "--num_processes=2", "--process_id=0"], "must be HOST:PORT"),
    ([TOY, "--coordinator=localhost:1234", "--num_processes=2", "--process_id=2"], "--process_id=2 must lie in 0.."),
]


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """An empty folder with a file and broken data in it, one with a run, one with a damaged run."""
    from experiments.config import override, plain
    from experiments.runner import configure

    tmp = tmp_path_factory.mktemp("wrong")
    (tmp / "file").write_text("not a folder")
    (tmp / "broken.npy").write_bytes(b"\x93NUMPY broken")
    for name in ("run", "damaged"):
        (tmp / name).mkdir()
        config = plain(override(configure("toy", "quick", 0)[1], {}))
        record = {"experiment": "toy", "preset": "quick", "seed": 0, "config": config, "overrides": {}}
        text = json.dumps({**record, "devices": {"count": 4}})
        (tmp / name / "config.json").write_text(text if name == "run" else text[:100])
    return {"tmp": tmp, "run": tmp / "run", "damaged": tmp / "damaged"}


@pytest.mark.parametrize(("argv", "message"), WRONG, ids=[" ".join(argv) or "nothing" for argv, _ in WRONG])
def test_one_line_and_exit_2(argv, message, places, capsys, monkeypatch, as_users_see_it):
    monkeypatch.chdir(places["tmp"])
    before = sorted(str(p) for p in places["tmp"].rglob("*"))
    status = launch.main([part.format(**places) for part in argv])
    out, err = capsys.readouterr()
    assert (status, out, err.count("\n")) == (2, "", 1), err
    assert message in err
    assert sorted(str(p) for p in places["tmp"].rglob("*")) == before


@pytest.mark.parametrize(
    ("argv", "status", "message"),
    [
        (["--experiment=tooy"], 2, "did you mean 'toy'"),
        ([TOY, "--set=training.steps=ten"], 2, "expected an integer"),
        (["--list", "--json"], 0, ""),
    ],
)
def test_as_a_process(argv, status, message, tmp_path):
    root = str(pathlib.Path(launch.__file__).parents[1])
    environment = {**os.environ, "ZOO_EXPERIMENT_MODULES": "tests.experiments.toy", "PYTHONPATH": root}
    command = [sys.executable, "-m", "experiments.launch", *argv]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert done.returncode == status and message in done.stderr and done.stderr.count("\n") == (status == 2)
    if status == 0:
        toys = [e for e in json.loads(done.stdout) if e["name"] == "toy"]
        assert toys == [{"name": "toy", "paper": toys[0]["paper"], "claim": "A small network fits a line.",
                         "presets": ["smoke", "quick", "paper"]}]  # fmt: skip
    assert not list(tmp_path.iterdir())


def test_the_list_for_people_and_help(capsys):
    assert launch.main(["--list"]) == 0
    assert "toy\n    Nobody 2000, On lines\n    A small network fits a line." in capsys.readouterr().out
    assert launch.main(["--help"]) == 0
    assert "--workdir" in capsys.readouterr().out


def test_seeds_and_names_from_a_notebook_are_checked_too(tmp_path, monkeypatch):
    import experiments

    monkeypatch.chdir(tmp_path)
    for options in (
        {"seed": "3"},
        {"seed": True},
        {"preset": "quik"},
        {"overrides": {"training.steps": np.float32(3)}},
    ):
        with pytest.raises(experiments.UsageError):
            experiments.run("toy", progress=False, **options)
