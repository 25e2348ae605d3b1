"""Preflight: what is compiled is what the trainer runs, and a target that cannot be is refused in one line."""

import importlib.util
import os
import pathlib
import subprocess
import sys

import jax
import pytest

from experiments.experiment import experiments, get
from experiments.preflight import _memory_asked_for, line, preflight, run
from experiments.steps import abstract_arguments
from experiments.targets import MissingPackage, parse_target

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def smoke():
    experiment = get("byte_lm")
    return experiment.arms(experiment.presets["smoke"])["lm"]


def test_the_step_is_compiled_for_four_cpu_devices(smoke):
    report = preflight("lm", smoke, parse_target("cpu:4"))
    params = jax.eval_shape(smoke.init, jax.random.key(0), smoke.task.batch(jax.random.key(0), 1, smoke.task.data()))
    assert report.parameters == sum(leaf.size for leaf in jax.tree.leaves(params))
    assert report.devices == 4
    assert report.fits and report.limit is None
    # The data, Adam's two moments and the parameters are on every device.
    assert report.memory >= 3 * 4 * report.parameters + smoke.task.data().size
    assert "fits" in line(report)


def test_operations_of_a_step_shrink_with_the_number_of_devices(smoke):
    one, four = (preflight("lm", smoke, parse_target(t)).step_flops for t in ("cpu:1", "cpu:4"))
    assert 2 < one / four <= 4.01, "each device does a quarter of the rows, and all of the update"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("tpu:v5q:2x2", "did you mean 'v5"),
        ("tpu:v5p:4x4", "3 axes"),
        ("tpu:v5e:0x2", "2 axes"),
        ("gpu:h200", "did you mean 'h100'"),
        ("gpu:h100:x", "number of devices"),
        ("gpu:h100:12", "hosts of 8"),
        ("npu", "wanted something like"),
        ("tpu:v5e:4096x4096", "that large"),
    ],
)
def test_wrong_targets_say_what_would_be_right(text, words):
    with pytest.raises(ValueError, match=words):
        parse_target(text)


@pytest.mark.parametrize(("package", "text"), [("libtpu", "tpu:v5e:2x2"), ("jax_plugins", "gpu:h100")])
def test_a_missing_compiler_names_the_extra(monkeypatch, package, text):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name.startswith(package) else find(name, *a)
    )
    with pytest.raises(MissingPackage, match="scanzoo"):
        parse_target(text).devices()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--experiment=byte_ln", "--target=cpu"], "did you mean 'byte_lm'"),
        (["--experiment=byte_lm", "--preset=papr"], "did you mean 'paper'"),
        (["--experiment=byte_lm", "--preset=smoke", "--target=cpu", "--set=training.batch_size=6",
          "--set=training.accumulate=4"], "does not divide"),
        ([], "--experiment=NAME or --all"),
        (["--experimet=byte_lm"], "experiment"),
    ],
)  # fmt: skip
def test_wrong_flags_give_one_line_and_status_2(arguments, words, capsys):
    from experiments.preflight import main

    assert main(["preflight", *arguments]) == 2
    printed = capsys.readouterr().err
    assert words in printed
    assert printed.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("target", ["tpu:v5e:2x2", "tpu:v5p:2x2x1", "tpu:v6e:2x2", "gpu:h100:2"])
def test_real_ahead_of_time_compilation(target):
    package = "libtpu" if target.startswith("tpu") else "jax_plugins"
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed (extra [{'tpu' if package == 'libtpu' else 'cuda13'}])")
    command = [
        sys.executable,
        "-m",
        "experiments.preflight",
        "--experiment=byte_lm",
        "--preset=smoke",
        f"--target={target}",
    ]
    env = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_PLATFORMS")}
    out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=env, check=False)
    assert out.returncode == 0, out.stderr[-2000:]
    assert out.stdout.startswith("fits")


def test_a_compiler_that_runs_out_of_memory_says_how_much_it_wanted():
    text = (
        "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory required for HLO "
        "temporaries (114.58G) exceeds available HBM (95.73G)."
    )
    assert _memory_asked_for(RuntimeError(text)) == int(114.58 * 2**30)
    with pytest.raises(RuntimeError, match="INTERNAL"):
        _memory_asked_for(RuntimeError("INTERNAL: something else (3.0G) exceeds"))


def test_run_prints_a_line_for_every_arm(capsys):
    reports = run(get("byte_lm"), "smoke", [parse_target("cpu")], {"model.dim": "8"})
    assert len(capsys.readouterr().out.splitlines()) == len(reports) == 1


@pytest.mark.parametrize("name", [name for name, experiment in experiments().items() if experiment.stand_in])
def test_a_paper_preset_that_reads_files_has_shapes_without_them(name, tmp_path):
    experiment = get(name)
    arms = experiment.arms(experiment.stand_in(experiment.presets["paper"], tmp_path))
    for arm in arms.values():
        shapes = [leaf.shape for leaf in jax.tree.leaves(abstract_arguments(arm, 1))]
        assert shapes and all(0 not in shape for shape in shapes)
