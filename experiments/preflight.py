"""``python -m experiments.preflight --experiment=NAME --preset=paper --target=tpu:v5p:4x4x4``: does it fit?

Compiles the training step of every arm for accelerators that need not be there (see experiments/targets.py), by the
same ahead-of-time compilers that would run it, and prints per arm: parameters, memory on each device, operations per
optimiser step, bytes of memory traffic where the compiler tells them, the shortest time a step can take, and whether it
fits. Data that the configuration gives no path for is stood in for by random files of the public data's sizes. Exit
status 0: everything fits; 3: something does not; 2: bad usage or a missing compiler.
"""

import dataclasses
import json
import os
import pathlib
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import jax
from absl import flags

from experiments.config import override, parse_settings
from experiments.errors import UsageError
from experiments.experiment import Arm, Experiment, get
from experiments.experiment import experiments as registered
from experiments.steps import AXIS, abstract_arguments, call_length, compile_step, training_step
from experiments.targets import MissingPackage, Target, parse_target
from zoo.analysis import count_parameters, flops
from zoo.checks import check_choice
from zoo.scans import compiling_for

# What --all compiles for: one slice of each kind, large enough for the paper presets.
DEFAULT_TARGETS = ("tpu:v5e:2x2", "tpu:v5p:2x2x1", "tpu:v6e:2x2", "gpu:h100:8")


@dataclasses.dataclass(frozen=True)
class Report:
    """What compiling one arm for one target told.

    Attributes:
      arm, target: their names.
      devices: number of devices the batch is spread over.
      parameters: number of parameters.
      memory: bytes on each device: arguments, outputs and temporaries, less what is donated; where the compiler gave up for
        want of memory, the temporaries that it asked for.
      limit: bytes that a device has; None for the CPU.
      step_flops: floating-point operations of one optimiser step on one device.
      step_bytes: memory traffic of one call's program on one device with loop bodies counted once, as XLA tells it;
        None where it does not.
      floor_seconds: shortest time of one step: operations at peak, or parameters and optimiser state once through
        memory, whichever is longer; None for the CPU.
      compile_seconds: how long compiling took.
    """

    arm: str
    target: str
    devices: int
    parameters: int
    memory: int
    limit: float | None
    step_flops: float
    step_bytes: float | None
    floor_seconds: float | None
    compile_seconds: float

    @property
    def fits(self) -> bool:
        """Whether the program's memory is at most what a device has."""
        return self.limit is None or self.memory <= self.limit


def preflight(name: str, arm: Arm, target: Target) -> Report:
    """Compiles ``arm``'s training step for ``target``, without running anything.

    Raises:
      ValueError: the batch does not divide over the devices, or there is no such target.
      MissingPackage: the target's compiler is not installed.
    """
    devices = target.devices()
    share = arm.training.batch_size / (len(devices) * arm.training.accumulate)
    if share != int(share):
        raise UsageError(
            f"training.batch_size={arm.training.batch_size} of arm {name!r} does not divide over {len(devices)} devices "
            f"of {target.text} times accumulate={arm.training.accumulate}"
        )
    arguments = abstract_arguments(arm, len(devices))
    start = time.perf_counter()
    with compiling_for(target.platform):
        lowered = compile_step(arm, devices).lower(*arguments)
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        memory, cost = _memory_asked_for(error), {}
    else:
        plan, cost = compiled.memory_analysis(), compiled.cost_analysis() or {}
        memory = (
            plan.argument_size_in_bytes + plan.output_size_in_bytes + plan.temp_size_in_bytes - plan.alias_size_in_bytes
        )
    seconds = time.perf_counter() - start

    # One lane stands for a device; it has no others to share the optimiser's state with.
    alone = dataclasses.replace(arm, training=dataclasses.replace(arm.training, shard_optimizer=False))
    lane = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct((1, *a.shape[1:]), a.dtype), abstract_arguments(alone, len(devices))
    )
    step = jax.vmap(training_step(alone, len(devices)), axis_name=AXIS)
    operations = flops(step, *lane) / call_length(arm.training)
    chip, floor = target.limits, None
    if chip is not None:
        state_bytes = sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(arguments[0])) / len(devices)
        floor = max(operations / chip.flops, 2 * state_bytes / chip.bandwidth)
    return Report(
        name, target.text, len(devices), count_parameters(arguments[0].params) // len(devices), memory,
        chip and chip.memory, operations, cost.get("bytes accessed"), floor, seconds,
    )  # fmt: skip


def _memory_asked_for(error: Exception) -> int:
    """Bytes that a compiler which ran out of a device's memory says it needed; any other error is raised again."""
    found = re.search(r"RESOURCE_EXHAUSTED.*?\(([\d.]+)([KMG])\) exceeds", str(error), re.DOTALL)
    if found is None:
        raise error
    return int(float(found.group(1)) * 1024 ** " KMG".index(found.group(2)))


def line(report: Report) -> str:
    """One line of the table that is printed."""
    limit = "" if report.limit is None else f" of {report.limit / 1e9:.0f}"
    verdict = "fits" if report.fits else "DOES NOT FIT"
    floor = "" if report.floor_seconds is None else f"  at least {1e3 * report.floor_seconds:.3g} ms/step"
    traffic = "" if report.step_bytes is None else f"  {report.step_bytes / 1e9:.3g} GB/call body"
    return (
        f"{verdict:12} {report.arm:24} {report.target:14} x{report.devices:<4} {report.parameters / 1e6:9.2f} M params  "
        f"{report.memory / 1e9:7.2f}{limit} GB/device  {report.step_flops / 1e12:.3g} TFLOP/step{floor}{traffic}  "
        f"compiled in {report.compile_seconds:.0f} s"
    )


def run(experiment: Experiment, preset: str, targets: Sequence[Target], overrides: dict[str, Any]) -> list[Report]:
    """Preflights every arm of an experiment's preset on every target, printing as it goes."""
    check_choice("preset", preset, experiment.presets)
    config = override(experiment.presets[preset], overrides)
    reports = []
    with tempfile.TemporaryDirectory() as folder:
        if experiment.stand_in is not None:
            config = experiment.stand_in(config, pathlib.Path(folder))
        for name, arm in experiment.arms(config).items():
            for target in targets:
                reports.append(preflight(f"{experiment.name}/{name}", arm, target))
                print(line(reports[-1]), flush=True)
    return reports


def main(argv: list[str]) -> int:
    """Parses flags and runs; returns the exit status."""
    values = flags.FlagValues()
    flags.DEFINE_string("experiment", None, "name of the experiment", flag_values=values)
    flags.DEFINE_string("preset", "paper", "smoke, quick or paper", flag_values=values)
    flags.DEFINE_multi_string("target", [], "e.g. tpu:v5p:4x4x4, gpu:h100:8, cpu; repeatable", flag_values=values)
    flags.DEFINE_multi_string("set", [], "field=value of the configuration; repeatable", flag_values=values)
    flags.DEFINE_bool("all", False, "every experiment, on one slice of each kind", flag_values=values)
    flags.DEFINE_string("json", None, "also write the reports to this file", flag_values=values)
    try:
        rest = values(argv)[1:]
        if rest:
            raise UsageError(f"unexpected argument {rest[0]!r}; every option is a flag such as --experiment=NAME")
        if not values.experiment and not values.all:
            raise UsageError(f"--experiment=NAME or --all is needed (known: {', '.join(registered())})")
        chosen = registered().values() if values.all else [get(values.experiment)]
        texts = values.target or (DEFAULT_TARGETS if values.all else ["cpu"])
        targets, reports = [parse_target(t) for t in texts], []
        for experiment in chosen:
            try:
                reports += run(experiment, values.preset, targets, parse_settings(values.set))
            except (ValueError, FileNotFoundError) as error:
                if not values.all:
                    raise
                print(f"{'NOT COMPILED':12} {experiment.name}: {str(error).splitlines()[0]}", flush=True)
    except (flags.Error, ValueError, FileNotFoundError, MissingPackage) as error:
        print(f"preflight: {str(error).splitlines()[0]}", file=sys.stderr)
        return 2
    if values.json:
        with open(values.json, "w") as file:
            json.dump([{**dataclasses.asdict(r), "fits": r.fits} for r in reports], file, indent=1)
    return 0 if all(r.fits for r in reports) else 3


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    # Autotuning would run candidate kernels on a GPU that is not there. XLA reads its flags once, so before anything.
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_gpu_autotune_level=0"
    sys.exit(main(sys.argv))
