"""Starts launcher processes quickly: a process that has imported everything forks a child for each command line.

The children are real processes, to be killed and starved at will; only the imports are shared. No device is touched
before the fork.
"""

import json
import os
import pathlib
import subprocess
import sys
import traceback

ROOT = pathlib.Path(__file__).parents[2]


class Zygote:
    """Runs one command line of the launcher at a time."""

    def __init__(self):
        environment = {**os.environ, "ZOO_EXPERIMENT_MODULES": "tests.experiments.toy", "JAX_PLATFORMS": "cpu"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.zygote"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment,
        )  # fmt: skip

    def start(self, argv: list[str], stderr: pathlib.Path) -> int:
        """Starts a child and returns its process id."""
        self._process.stdin.write(json.dumps({"argv": argv, "stderr": str(stderr)}) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())["pid"]

    def wait(self) -> int:
        """Waits for the child; its exit status, negative for the signal that killed it."""
        return json.loads(self._process.stdout.readline())["status"]

    def close(self) -> None:
        """Ends the process that forks."""
        self._process.stdin.close()
        self._process.wait()


def _serve() -> None:
    import orbax.checkpoint  # noqa: F401

    import experiments.report
    import experiments.runner  # noqa: F401
    import tests.experiments.toy  # noqa: F401
    from experiments import launch, logs

    logs._summary_writer()
    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            with open(request["stderr"], "w") as stderr:
                os.dup2(stderr.fileno(), 2)
                os.dup2(stderr.fileno(), 1)
                status = 1
                try:
                    status = launch.main(request["argv"])
                except BaseException:
                    traceback.print_exc()
                finally:
                    sys.stdout.flush()
                    sys.stderr.flush()
                    os._exit(status)
        print(json.dumps({"pid": pid}), flush=True)
        _, status = os.waitpid(pid, 0)
        print(json.dumps({"status": os.waitstatus_to_exitcode(status)}), flush=True)


if __name__ == "__main__":
    _serve()
