"""Command line of the experiments::

    python -m experiments.launch --list [--json]
    python -m experiments.launch --experiment=NAME [--preset=quick] [--seed=0] [--set=training.steps=10 ...]
        [--workdir=DIR] [--resume | --overwrite]
        [--coordinator=HOST:PORT --num_processes=N --process_id=I]

Exit status 0: all checks passed; 3: ran, but a check failed; 2: bad usage; 1: the run broke off; 128 + signal: stopped
by a signal, with its checkpoint written.
"""

import json
import os
import pathlib
import sys
import time
import traceback
from collections.abc import Sequence

from absl import flags

from experiments.errors import RunError, Stopped, UsageError


def define_flags() -> flags.FlagValues:
    """The flags, apart from those that libraries define."""
    values = flags.FlagValues()
    flags.DEFINE_bool("list", False, "List the experiments with their papers and claims.", flag_values=values)
    flags.DEFINE_bool("json", False, "With --list: as JSON.", flag_values=values)
    flags.DEFINE_string("experiment", None, "Which experiment to run.", flag_values=values)
    flags.DEFINE_string("preset", "quick", "smoke (seconds), quick (minutes) or paper (full size).", flag_values=values)
    flags.DEFINE_integer("seed", 0, "Seed of parameters, data, dropout and evaluation.", flag_values=values)
    flags.DEFINE_multi_string("set", [], "PATH=VALUE: override a field of the preset. Repeatable.", flag_values=values)
    flags.DEFINE_string("workdir", None, "Output folder; default runs/EXPERIMENT-PRESET-seedSEED.", flag_values=values)
    flags.DEFINE_bool("resume", False, "Go on with the run in --workdir.", flag_values=values)
    flags.DEFINE_bool("overwrite", False, "Remove the run in --workdir first.", flag_values=values)
    flags.DEFINE_bool("progress", True, "Show progress.", flag_values=values)
    flags.DEFINE_bool("traceback", False, "Show the whole traceback of an error.", flag_values=values)
    flags.DEFINE_string(
        "coordinator", None, "HOST:PORT of process 0, in a run of several processes.", flag_values=values
    )
    flags.DEFINE_integer("num_processes", None, "Number of processes in the run.", flag_values=values)
    flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.", flag_values=values)
    flags.DEFINE_bool("help", False, "Show this.", flag_values=values, short_name="h")
    return values


def parse(argv: Sequence[str]) -> flags.FlagValues:
    """Flags of a command line (without the program's name); UsageError for what does not belong."""
    from zoo.checks import nearest

    values = define_flags()
    try:
        rest = values(["launch", *argv])[1:]
    except flags.UnrecognizedFlagError as error:
        raise UsageError(f"unknown flag --{error.flagname}{nearest(error.flagname, list(values))}") from None
    except flags.Error as error:
        raise UsageError(" ".join(str(error).split())) from None
    if rest:
        raise UsageError(f"unexpected argument {rest[0]!r}; flags are written --name=value")
    return values


def run(argv: Sequence[str]) -> int:
    """Runs one command line and returns the exit status; raises UsageError, RunError and Stopped."""
    values = parse(argv)
    if values.help:
        print(f"{__doc__}\n{values.get_help()}")
        return 0
    if values.list:
        _list(values.json)
        return 0
    if values.json:
        raise UsageError("--json belongs to --list")
    if values.resume and values.overwrite:
        raise UsageError("--resume goes on with a run, --overwrite removes it: give one of them")
    distributed = [values.coordinator, values.num_processes, values.process_id]
    if any(v is not None for v in distributed) and None in distributed:
        raise UsageError("--coordinator, --num_processes and --process_id belong together")
    lifeline = None
    if values.coordinator is not None:
        from experiments.distributed import initialize

        lifeline = initialize(*distributed)
    try:
        return _run(values)
    finally:
        if lifeline is not None and not isinstance(sys.exc_info()[1], Exception):
            lifeline.close()


def _run(values: flags.FlagValues) -> int:
    from experiments import runner
    from experiments.config import parse_settings

    name, preset, seed = values.experiment, values.preset, values.seed
    settings = parse_settings(values.set)
    if name is None and values.resume and values.workdir is not None:
        record = runner.read_record(pathlib.Path(values.workdir).expanduser().absolute())
        name, preset, seed = record["experiment"], record["preset"], record["seed"]
        settings = {**record["overrides"], **settings}
    if name is None:
        raise UsageError("--experiment=NAME is needed (or --list to see the names)")
    verdict = runner.run(
        name, preset, seed, values.workdir, settings, values.resume, values.progress, overwrite=values.overwrite
    )
    import jax

    if jax.process_index() == 0:
        _print_verdict(verdict)
    return 0 if verdict["passed"] else 3


def _list(as_json: bool) -> None:
    from experiments.experiment import PRESETS, experiments

    known = experiments()
    if as_json:
        entries = [
            {"name": e.name, "paper": e.paper, "claim": e.claim, "presets": list(PRESETS)} for e in known.values()
        ]
        print(json.dumps(entries, indent=2))
        return
    for e in known.values():
        print(f"{e.name}\n    {e.paper}\n    {e.claim}")


def _print_verdict(verdict: dict) -> None:
    for title, text in verdict["texts"].items():
        print(f"--- {title}\n{text}\n")
    for check in verdict["checks"]:
        value = "missing" if check["value"] is None else f"{check['value']:.6g}"
        bound = "" if check["threshold"] is None else f" {check['threshold']:.6g}"
        print(f"{'pass' if check['passed'] else 'FAIL'}  {check['name']}: {value} (wanted {check['op']}{bound})")
    result = "passed" if verdict["passed"] else "FAILED"
    print(f"{result}: {verdict['experiment']} in {verdict['seconds']} s")
    where = f"Everything is in {verdict['workdir']} (report.md, curves.png, verdict.json, checkpoints)"
    print(f"{where}; next: {verdict['next_steps']}" if verdict["next_steps"] else where)


def main(argv: Sequence[str] | None = None) -> int:
    """``run`` with errors as one line on stderr and an exit status."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        return run(argv)
    except UsageError as error:
        return _fail(error, 2, argv)
    except RunError as error:
        return _fail(error, 1, argv)
    except Stopped as error:
        return _fail(error, 128 + error.number, argv)


def _fail(error: BaseException, status: int, argv: Sequence[str]) -> int:
    if any(argument.lstrip("-") == "traceback" for argument in argv):
        traceback.print_exception(error)
    print(" ".join(str(error).split()), file=sys.stderr, flush=True)
    return status


def _run_as_program() -> None:
    several = any(argument.lstrip("-").startswith("coordinator") for argument in sys.argv[1:])
    if several:  # the coordination service narrates the death of a peer at length; we say it in one line
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        status = main()
    except Exception:
        if not several:
            raise
        time.sleep(2)  # if the cause is that another process died, its lifeline says so now, and ends this one
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    if several:
        os._exit(status)  # JAX's own shutdown would wait for processes that may be gone
    sys.exit(status)


if __name__ == "__main__":
    _run_as_program()
