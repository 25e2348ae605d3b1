"""The smoke preset of every registered experiment runs from its name to a passing verdict."""

import json

import pytest

import experiments
from experiments.experiment import experiments as registered

# What the smoke preset leaves out, for `make test-all`.
MORE = {
    "aaren": {"settings": "classification,events,rl"},
    "critical_review": {"problems": "recall,future,clipping,strokes,captions"},
}


@pytest.mark.parametrize(
    ("name", "overrides"),
    [(name, {}) for name in registered()]
    + [pytest.param(*more, marks=pytest.mark.slow, id=f"{more[0]}-more") for more in MORE.items()],
)
def test_smoke(name, overrides, tmp_path):
    verdict = experiments.run(name, preset="smoke", workdir=tmp_path / "run", overrides=overrides, progress=False)
    assert verdict["passed"], verdict["checks"]
    for file in ("config.json", "metrics.jsonl", "curves.png", "report.md", "verdict.json"):
        assert (tmp_path / "run" / file).stat().st_size > 0
    recorded = json.loads((tmp_path / "run" / "verdict.json").read_text())
    assert recorded["experiment"] == name
    assert recorded["checks"] == verdict["checks"]
