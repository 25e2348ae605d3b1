"""The recorded means of several seeds are means, and seeds with different checks are not mixed."""

import json

import pytest

from experiments.claims import RESULTS, mean_verdict


def verdict(seed, value, threshold=0.5):
    check = {"name": "accuracy", "value": value, "op": ">=", "threshold": threshold, "passed": value >= threshold}
    return {"experiment": "toy", "preset": "quick", "seed": seed, "checks": [check]}


def test_a_check_is_judged_on_the_mean_over_seeds():
    summary = mean_verdict([verdict(0, 0.9), verdict(1, 0.3)])
    assert summary["checks"][0]["value"] == pytest.approx(0.6)
    assert summary["passed"] and summary["seeds"] == [0, 1]
    assert not mean_verdict([verdict(0, 0.5), verdict(1, 0.3)])["passed"]


def test_a_missing_value_fails():
    one = verdict(0, 0.9)
    one["checks"][0]["value"] = None
    assert not mean_verdict([one, verdict(1, 0.9)])["passed"]


def test_seeds_with_other_thresholds_are_refused():
    with pytest.raises(ValueError, match="differ"):
        mean_verdict([verdict(0, 0.9), verdict(1, 0.9, threshold=0.4)])


def test_recorded_means_belong_to_the_recorded_seeds():
    files = sorted(RESULTS.glob("*-quick-mean.json"))
    assert files
    for file in files:
        name = file.name.removesuffix("-quick-mean.json")
        seeds = [json.loads(f.read_text()) for f in sorted(RESULTS.glob(f"{name}-quick-seed*.json"))]
        assert mean_verdict(seeds) == json.loads(file.read_text())
