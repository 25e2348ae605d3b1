"""``python -m experiments.claims`` runs the quick preset of every experiment on three seeds and records the verdicts.

Verdicts go to experiments/results/<experiment>-quick-seed<n>.json, and the same checks on the mean over all recorded seeds
to <experiment>-quick-mean.json; the exit status is 3 when a check of a seed failed. ``--summarise`` only computes the means
again.
"""

import json
import pathlib
import statistics
import sys

from absl import app, flags

import experiments
from experiments.experiment import Check, get
from experiments.experiment import experiments as registered

RESULTS = pathlib.Path(__file__).parent / "results"

_NAMES = flags.DEFINE_list("experiments", [], "names to run; all when empty")
_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "seeds to run")
_SUMMARISE = flags.DEFINE_bool("summarise", False, "run nothing, only write the means of the recorded verdicts")
_WORKDIR = flags.DEFINE_string("workdir", "runs/claims", "where the runs are kept")


def mean_verdict(verdicts: list[dict]) -> dict:
    """The checks of several seeds' verdicts on the mean of their values.

    Raises:
      ValueError: the verdicts do not have the same checks.
    """
    rows = []
    for checks in zip(*(v["checks"] for v in verdicts), strict=True):
        first = checks[0]
        if any(
            (c["name"], c["op"], c["threshold"]) != (first["name"], first["op"], first["threshold"]) for c in checks
        ):
            raise ValueError(
                f"the recorded seeds of {verdicts[0]['experiment']} differ in their checks; run them again"
            )
        values = [float("nan") if c["value"] is None else float(c["value"]) for c in checks]  # NaN is written as a word
        value = statistics.fmean(values)
        check = Check(first["name"], "mean", first["op"], first["threshold"])
        rows.append({**check.verdict({"mean": value}), "values": values})
    return {
        "experiment": verdicts[0]["experiment"],
        "preset": verdicts[0]["preset"],
        "seeds": [v["seed"] for v in verdicts],
        "passed": all(row["passed"] for row in rows),
        "checks": rows,
    }


def summarise(name: str) -> dict | None:
    """Writes the mean of the recorded verdicts of an experiment; None when there are none."""
    files = sorted(RESULTS.glob(f"{name}-quick-seed*.json"))
    if not files:
        return None
    summary = mean_verdict([json.loads(file.read_text()) for file in files])
    (RESULTS / f"{name}-quick-mean.json").write_text(json.dumps(summary, indent=1) + "\n")
    return summary


def main(argv: list[str]) -> int:
    """Runs, copies each verdict, prints one line per run."""
    del argv
    failed = 0
    for name in _NAMES.value or registered():
        get(name)
        for seed in [] if _SUMMARISE.value else map(int, _SEEDS.value):
            workdir = pathlib.Path(_WORKDIR.value) / f"{name}-quick-seed{seed}"
            verdict = experiments.run(name, preset="quick", seed=seed, workdir=workdir, overwrite=True)
            RESULTS.mkdir(exist_ok=True)
            target = RESULTS / f"{name}-quick-seed{seed}.json"
            target.write_text((workdir / "verdict.json").read_text())
            failed += not verdict["passed"]
            print(f"{'passed' if verdict['passed'] else 'FAILED'} {name} seed {seed} {verdict['seconds']:.0f} s")
        summary = summarise(name)
        if summary is not None:
            print(f"{'passed' if summary['passed'] else 'FAILED'} {name} on the mean of seeds {summary['seeds']}")
    return 3 if failed else 0


if __name__ == "__main__":
    app.run(lambda argv: sys.exit(main(argv)))
