"""Two processes of two devices each: the same numbers as one process, and no waiting for the dead."""

import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.faults.conftest import arrays, assert_same_to_the_bit

ROOT = pathlib.Path(__file__).parents[2]
ARGV = [
    "--experiment=toy", "--preset=smoke", "--set=training.steps=200", "--set=training.steps_per_call=5",
    "--set=training.checkpoint_every=10", "--set=training.shard_optimizer=true", "--set=carry=true",
    "--set=training.ema=0.9", "--set=source=host",
]  # fmt: skip


class Pair:
    """Two processes of one run."""

    def __init__(self, workdir: pathlib.Path, *extra: str):
        with socket.create_server(("localhost", 0)) as server:
            port = server.getsockname()[1]
        flags = os.environ["XLA_FLAGS"].replace("device_count=4", "device_count=2")
        environment = {**os.environ, "XLA_FLAGS": flags, "ZOO_EXPERIMENT_MODULES": "tests.experiments.toy"}
        self.processes = [
            subprocess.Popen(
                [
                    sys.executable, "-m", "experiments.launch", *ARGV, *extra, f"--workdir={workdir}",
                    f"--coordinator=localhost:{port}", "--num_processes=2", f"--process_id={i}",
                ],
                cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )
            for i in range(2)
        ]  # fmt: skip

    def wait(self, timeout: float = 180.0) -> list[tuple[int, str]]:
        """Exit status and stderr of both."""
        try:
            texts = [p.communicate(timeout=timeout)[1] for p in self.processes]
        finally:
            for p in self.processes:
                p.kill()
        return [(p.returncode, text) for p, text in zip(self.processes, texts)]


def says_that_a_peer_died(stderr: str) -> bool:
    """Whether one whole line says so and what to do; the collectives library may add its own words before and after."""
    return (
        re.search(r"^process \d of this run died .*; start all processes again with --resume$", stderr, re.M)
        is not None
    )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A run of two processes that went through."""
    workdir = tmp_path_factory.mktemp("pair") / "run"
    results = Pair(workdir).wait()
    assert [status for status, _ in results] == [0, 0], results
    return workdir


def test_two_processes_equal_one(undisturbed, tmp_path):
    import experiments
    from tests.experiments import toy  # noqa: F401

    overrides = dict(a.removeprefix("--set=").split("=") for a in ARGV if a.startswith("--set"))
    experiments.run("toy", "smoke", workdir=tmp_path / "one", overrides=overrides, progress=False)
    (step, one), (_, two) = arrays(tmp_path / "one"), arrays(undisturbed)
    assert step == 200 and one.keys() == two.keys()
    for name in one:
        np.testing.assert_allclose(two[name], one[name], rtol=1e-3, atol=1e-4, err_msg=name)
    assert (undisturbed / "verdict.json").exists() and (undisturbed / "report.md").exists()


@pytest.mark.parametrize("victim", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_when_one_is_killed_the_other_says_so_and_both_resume(undisturbed, tmp_path, victim):
    workdir = tmp_path / "run"
    pair = Pair(workdir, "--set=pause=0.01")
    limit = time.monotonic() + 120
    while not (workdir / "checkpoints" / "wide" / "20").exists():
        assert time.monotonic() < limit and all(p.poll() is None for p in pair.processes), pair.wait()
        time.sleep(0.01)
    pair.processes[victim].send_signal(signal.SIGKILL)
    began = time.monotonic()
    status, stderr = pair.wait(60)[1 - victim]
    assert status == 1 and time.monotonic() - began < 30
    assert "Traceback" not in stderr and says_that_a_peer_died(stderr), stderr
    results = Pair(workdir, "--resume", "--set=pause=0.01").wait()
    assert [status for status, _ in results] == [0, 0], results
    assert_same_to_the_bit(workdir, undisturbed)


def test_a_signal_to_one_stops_both_at_the_same_step(tmp_path):
    workdir = tmp_path / "run"
    pair = Pair(workdir, "--set=pause=0.01")
    while not (workdir / "checkpoints" / "wide" / "20").exists():
        time.sleep(0.01)
    pair.processes[1].send_signal(signal.SIGTERM)
    results = pair.wait()
    assert [status for status, _ in results] == [143, 143], results
    assert all("is saved at step" in stderr for _, stderr in results)
    saved, _ = arrays(workdir)
    assert 20 <= saved < 200 and saved % 5 == 0
