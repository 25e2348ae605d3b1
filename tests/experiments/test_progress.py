"""What a user sees: a bar on a terminal, a line now and then in a log, nothing when told so."""

import fcntl
import os
import re
import struct
import subprocess
import sys
import termios

import pytest

from experiments.progress import Progress

SCRIPT = """
import time
from experiments.progress import Progress, say
bar = Progress("lstm", 100, per_step=640, unit="tokens", interval=0.0)
for step in range(10, 101, 10):
    time.sleep(0.03)
    bar.update(step, 3.0 / step)
    if step == 50:
        say("a message")
bar.close()
"""


@pytest.mark.parametrize("columns", [110, 0])
def test_on_a_terminal_there_is_a_bar_with_loss_speed_and_time_left(columns):
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    process = subprocess.Popen([sys.executable, "-c", SCRIPT], stderr=slave, stdout=slave)
    os.close(slave)
    shown = b""
    while True:
        try:
            shown += os.read(master, 4096)
        except OSError:  # the other end is closed
            break
    assert process.wait() == 0
    os.close(master)
    lines = [line.strip() for line in re.split(r"[\r\n]+", shown.decode()) if line.strip()]
    assert "a message" in lines
    assert re.search(r"lstm: 100%.*100/100.*loss 0.03, \S+ steps/s, \S+ tokens/s, 0:00 left", lines[-1]), lines[-1]


def test_in_a_log_there_are_lines():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    lines = done.stderr.splitlines()
    assert "a message" in lines and len(lines) == 11 and done.stdout == ""
    pattern = r"lstm: step 60/100, loss 0\.05, \S+ steps/s, \S+ tokens/s, 0:0\d left"
    assert any(re.fullmatch(pattern, line) for line in lines)


def test_lines_come_at_most_once_per_interval_and_at_the_end(capsys):
    bar = Progress("gru", 30, per_step=1, unit="examples", interval=1000.0)
    for step in (10, 20, 30):
        bar.update(step, 1.0)
    bar.close()
    assert capsys.readouterr().err.count("\n") == 1


def test_quiet_is_quiet(capsys):
    bar = Progress("gru", 10, per_step=1, unit="examples", show=False, interval=0.0)
    bar.update(10, 1.0)
    bar.close()
    assert capsys.readouterr() == ("", "")
