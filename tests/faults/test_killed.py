"""kill -9 at any moment, a disk that is full, a folder that cannot be written: nothing saved is lost."""

import contextlib
import os
import pathlib
import random
import resource
import shutil
import signal
import subprocess
import time

import pytest

from tests.faults.conftest import arrays, assert_same_to_the_bit

LONG = [
    "--experiment=toy", "--preset=smoke", "--noprogress", "--set=training.steps=300", "--set=training.steps_per_call=10",
    "--set=training.checkpoint_every=20", "--set=training.evaluate_every=100", "--set=carry=true", "--set=training.ema=0.9",
]  # fmt: skip


def go(zygote, workdir: pathlib.Path, *extra: str, kill_after: float | None = None) -> tuple[int, str, float]:
    """Runs or resumes in ``workdir``; returns exit status, stderr, seconds."""
    resume = ["--resume"] if (workdir / "config.json").exists() else []
    stderr = workdir.parent / f"{workdir.name}.stderr"
    began = time.monotonic()
    pid = zygote.start([*LONG, f"--workdir={workdir}", *resume, *extra], stderr)
    if kill_after is not None:
        time.sleep(kill_after)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return zygote.wait(), stderr.read_text(), time.monotonic() - began


@pytest.fixture(scope="module")
def undisturbed(zygote, tmp_path_factory):
    """A run that nobody disturbed, and how long it took with everything compiled before."""
    folder = tmp_path_factory.mktemp("undisturbed")
    for name in ("compiling", "compiled"):
        status, stderr, seconds = go(zygote, folder / name)
        assert status == 0, stderr
    return folder / "compiled", seconds


def kill_and_resume(zygote, undisturbed, tmp_path, kills: int, seed: int) -> None:
    """Kills ``kills`` times at random moments; whenever a run gets through, its end must be the undisturbed one."""
    reference, seconds = undisturbed
    rng = random.Random(seed)
    workdir, done, finished = tmp_path / "run", 0, 0
    while done < kills or not finished:
        # when all kills are done, let it through
        status, stderr, _ = go(zygote, workdir, kill_after=rng.uniform(0, seconds) if done < kills else None)
        assert status in (0, -signal.SIGKILL), stderr
        if status == 0:
            finished += 1
            assert_same_to_the_bit(workdir, reference)
            shutil.rmtree(workdir)
        else:
            done += 1


def test_killed_at_random_moments_a_run_ends_as_if_undisturbed(zygote, undisturbed, tmp_path):
    kill_and_resume(zygote, undisturbed, tmp_path, kills=5, seed=0)


@pytest.mark.slow
def test_killed_a_hundred_times_a_run_ends_as_if_undisturbed(zygote, undisturbed, tmp_path):
    kill_and_resume(zygote, undisturbed, tmp_path, kills=100, seed=1)


def wait_for(path: pathlib.Path, seconds: float = 60.0) -> None:
    """Until ``path`` is there."""
    limit = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < limit, f"{path} did not appear"
        time.sleep(0.005)


def test_a_damaged_newest_checkpoint_costs_only_the_steps_since_the_one_before(zygote, undisturbed, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(undisturbed[0], workdir)
    (workdir / "arms" / "wide.json").unlink()
    newest = workdir / "checkpoints" / "wide" / "300"
    file = max((p for p in newest.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 3] ^= 64
    file.write_bytes(raw)
    status, stderr, _ = go(zygote, workdir, "--progress")
    assert status == 0
    assert "the checkpoint of step 300 is damaged" in stderr and "using the one of step 280" in stderr
    assert_same_to_the_bit(workdir, undisturbed[0])


def test_a_full_disk_ends_in_one_line_and_the_run_goes_on_when_there_is_room(zygote, undisturbed, tmp_path):
    workdir, stderr = tmp_path / "run", tmp_path / "stderr"
    pid = zygote.start([*LONG, f"--workdir={workdir}"], stderr)
    wait_for(workdir / "checkpoints" / "wide" / "20")
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (300, 300))  # no file can grow beyond 300 bytes any more
    assert zygote.wait() == 1
    message = stderr.read_text()
    assert "File too large" in message and "intact" in message and "Traceback" not in message
    assert message.count("\n") == 1
    saved, _ = arrays(workdir)
    assert 0 < saved < 300
    status, message, _ = go(zygote, workdir)
    assert status == 0, message
    assert_same_to_the_bit(workdir, undisturbed[0])


@pytest.fixture
def disk(tmp_path):
    """A small file system of its own; skips where mounting is not allowed."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a file system is not allowed here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_without_room_ends_in_one_line_and_the_run_goes_on_when_there_is_room(
    zygote, undisturbed, disk, tmp_path
):
    workdir, stderr, filler = disk / "run", tmp_path / "stderr", disk / "filler"
    zygote.start([*LONG, f"--workdir={workdir}"], stderr)
    wait_for(workdir / "checkpoints" / "wide" / "20")
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass
    assert zygote.wait() == 1
    message = stderr.read_text()
    assert "No space left on device" in message and "intact" in message and message.count("\n") == 1
    filler.unlink()
    status, message, _ = go(zygote, workdir)
    assert status == 0, message
    assert_same_to_the_bit(workdir, undisturbed[0])


def test_a_read_only_disk_is_bad_usage(zygote, disk, tmp_path):
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    zygote.start([*LONG, f"--workdir={disk / 'run'}"], tmp_path / "stderr")
    assert zygote.wait() == 2
    assert (tmp_path / "stderr").read_text() == f"the workdir {disk / 'run'} cannot be written: Read-only file system\n"


def test_checkpoints_that_cannot_be_written_end_in_one_line(zygote, undisturbed, tmp_path):
    workdir, stderr = tmp_path / "run", tmp_path / "stderr"
    zygote.start([*LONG, f"--workdir={workdir}"], stderr)
    folder = workdir / "checkpoints" / "wide"
    wait_for(folder / "20")
    folder.rename(folder.with_name("aside"))
    folder.write_text("a file where a folder should be")
    assert zygote.wait() == 1
    message = stderr.read_text()
    assert "could not be written" in message and message.count("\n") == 1
    folder.unlink()
    folder.with_name("aside").rename(folder)
    status, message, _ = go(zygote, workdir)
    assert status == 0, message
    assert_same_to_the_bit(workdir, undisturbed[0])


def test_sigterm_saves_and_exits_with_143(zygote, undisturbed, tmp_path):
    workdir, stderr = tmp_path / "run", tmp_path / "stderr"
    pid = zygote.start([*LONG, f"--workdir={workdir}"], stderr)
    wait_for(workdir / "checkpoints" / "wide" / "20")
    os.kill(pid, signal.SIGTERM)
    assert zygote.wait() == 143
    assert "stopped by SIGTERM: wide is saved at step" in stderr.read_text()
    status, message, _ = go(zygote, workdir)
    assert status == 0, message
    assert_same_to_the_bit(workdir, undisturbed[0])
