"""``python -m experiments.claims`` runs the quick preset of every experiment on three seeds and records the verdicts.

Verdicts go to experiments/results/<experiment>-quick-seed<n>.json; the exit status is 3 when a check failed.
"""

import pathlib
import sys

from absl import app, flags

import experiments
from experiments.experiment import experiments as registered
from experiments.experiment import get

RESULTS = pathlib.Path(__file__).parent / "results"

_NAMES = flags.DEFINE_list("experiments", [], "names to run; all when empty")
_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "seeds to run")
_WORKDIR = flags.DEFINE_string("workdir", "runs/claims", "where the runs are kept")


def main(argv: list[str]) -> int:
    """Runs, copies each verdict, prints one line per run."""
    del argv
    failed = 0
    for name in _NAMES.value or registered():
        get(name)
        for seed in map(int, _SEEDS.value):
            workdir = pathlib.Path(_WORKDIR.value) / f"{name}-quick-seed{seed}"
            verdict = experiments.run(name, preset="quick", seed=seed, workdir=workdir, overwrite=True)
            RESULTS.mkdir(exist_ok=True)
            target = RESULTS / f"{name}-quick-seed{seed}.json"
            target.write_text((workdir / "verdict.json").read_text())
            failed += not verdict["passed"]
            print(f"{'passed' if verdict['passed'] else 'FAILED'} {name} seed {seed} {verdict['seconds']:.0f} s")
    return 3 if failed else 0


if __name__ == "__main__":
    app.run(lambda argv: sys.exit(main(argv)))
