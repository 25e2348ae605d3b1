"""The comparison of mixers: counted costs, the table, the drawing, wrong names."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from zoo.__main__ import main
from zoo.analysis import compare, cost, count_parameters, state_bytes


def test_costs_are_those_of_the_mixer():
    lstm = zoo.create("lstm", dim=8)
    found = cost(lstm, length=32, batch_size=2)
    params = lstm.init(jax.random.key(0), jnp.zeros((1, 1, 8)))
    assert found.parameters == count_parameters(params) and found.state_bytes == state_bytes(lstm) == 2 * 8 * 4
    assert found.decoding_bytes == 4 * found.parameters + 2 * found.state_bytes
    matrices = sum(p.size for p in jax.tree.leaves(params) if p.ndim == 2)
    assert 2 * matrices <= found.decoding_flops <= 3 * matrices
    assert 6 * matrices <= found.training_flops <= 10 * matrices  # forward once, backward twice
    longer = cost(lstm, length=64, batch_size=2)
    np.testing.assert_allclose(longer.training_flops, found.training_flops, rtol=0.05)
    both_ways = cost(zoo.create("bidirectional_attention", dim=8), length=32)
    assert both_ways.state_bytes == 0 and both_ways.decoding_flops is None


def test_rows_come_in_order_and_attention_sees_everything():
    rows = compare(["lru", {"name": "attention", "heads": 2}], lengths=(8, 16), dim=8, repeats=1, decoded=2)
    assert [(r.name, r.length) for r in rows] == [("lru", 8), ("attention", 8), ("lru", 16), ("attention", 16)]
    assert all(r.step_seconds > 0 and r.peak_bytes > 0 and r.decoding_rate > 0 for r in rows)
    assert rows[3].cost.state_bytes == 2 * 16 * 8 * 4 + 8 and rows[1].cost.state_bytes == 2 * 8 * 8 * 4 + 8


def test_the_command_prints_a_table_and_draws(tmp_path, capsys):
    target = tmp_path / "compare.png"
    arguments = ["compare", "lru", "bidirectional_attention", "--lengths", "8", "--dim", "8", "--repeats", "1"]
    assert main([*arguments, "--plot", str(target)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:4]] == ["lru", "bidirectional_attention"]
    assert target.read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(("arguments", "words"), [(["lrru"], "lru"), (["lru", "--lengths", "0"], "lengths")])
def test_wrong_names_and_sizes_end_in_one_line(arguments, words, capsys):
    assert main(["compare", *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
