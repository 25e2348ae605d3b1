"""The smoke preset of every registered experiment runs from its name to a passing verdict."""

import json

import pytest

import experiments
from experiments.experiment import experiments as registered


@pytest.mark.parametrize("name", registered())
def test_smoke(name, tmp_path):
    verdict = experiments.run(name, preset="smoke", workdir=tmp_path / "run", progress=False)
    assert verdict["passed"], verdict["checks"]
    for file in ("config.json", "metrics.jsonl", "curves.png", "report.md", "verdict.json"):
        assert (tmp_path / "run" / file).stat().st_size > 0
    recorded = json.loads((tmp_path / "run" / "verdict.json").read_text())
    assert recorded["experiment"] == name
    assert recorded["checks"] == verdict["checks"]
