"""The comparison of mixers: sizes that match, members that do not see each other, and clear refusals."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.experiment import Training
from experiments.papers.bench_mixers import (
    ALL,
    PROBLEMS,
    Config,
    arms,
    best_constant,
    clipped,
    mixer_spec,
    model,
    problems_of,
)
from zoo.analysis import count_parameters
from zoo.tasks import Battery

SMALL = Config(mixers=("gru",), problems=("parity", "s3"), time=8, parameters=1200, depth=1, replicas=2,
               training=Training(steps=1, batch_size=4, clip_norm=1.0))  # fmt: skip


def size(network):
    variables = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))
    return count_parameters(variables["params"])


@pytest.mark.parametrize("mixer", ["lstm", "mamba2", "deltaproduct", "attention", "mamba2:state_dim=8;head_dim=8"])
def test_models_have_the_parameters_that_are_asked_for(mixer):
    network = model(Config(), mixer, 64)
    assert abs(size(network) - Config().parameters) <= 0.01 * Config().parameters
    assert network.mlp_dim >= network.dim


def test_every_name_of_the_large_comparison_stands_for_a_causal_mixer():
    assert len(set(ALL)) == len(ALL)
    for name in ALL:
        mixer_spec(name)


def test_every_problem_has_right_answers_in_the_vocabulary_at_both_lengths():
    for stretch, split in ((1, "train"), (2, "test")):
        problems = problems_of(8, stretch, split)
        assert tuple(problems) == PROBLEMS
        battery = Battery(tuple(problems.values()))
        batch = battery.batch(jax.random.key(0), 32, battery.data())
        right = np.take_along_axis(np.asarray(batch.extra), np.asarray(batch.targets)[..., None], -1)[..., 0]
        assert np.all(right | ~np.asarray(batch.mask)), "the target itself is a right answer"
        assert np.all(np.asarray(batch.inputs) < battery.vocab_size)
        chance = np.asarray(best_constant(batch))
        assert np.all((chance > 0) & (chance < 0.85)), dict(zip(PROBLEMS, chance))


def test_members_are_clipped_alone_and_left_out_when_not_finite():
    def gradient(scale):
        return jax.grad(lambda w: jnp.sum(clipped({"w": w}, 1.0)["w"] * scale))(jnp.zeros(4))

    got = jax.vmap(gradient)(jnp.array([10.0, 0.1, jnp.inf]))
    np.testing.assert_allclose(got, np.array([0.5, 0.1, 0.0])[:, None] * np.ones(4), rtol=1e-6)


def test_a_member_trains_as_it_would_alone():
    """Gradients of one replica do not depend on the others, nor on other problems."""
    arm = arms(SMALL)["gru"]
    batch = arm.task.batch(jax.random.key(1), 4)
    params = arm.init(jax.random.key(0), batch)
    slope = jax.jit(jax.grad(lambda p: arm.loss(p, batch, None, 0, None)[0]))
    other = jax.tree.map(lambda p: p.at[1:].add(1.0), params)
    for a, b in zip(jax.tree.leaves(slope(params)), jax.tree.leaves(slope(other))):
        np.testing.assert_array_equal(a[0], b[0])
        assert not np.array_equal(a[1], b[1])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"mixers": ("lstmm",)}, "lstm"),
        ({"mixers": ("bidirectional",)}, "sees the future"),
        ({"mixers": ("gru:layers",)}, "option=value"),
        ({"mixers": ()}, "mixers is empty"),
        ({"problems": ("parrity",)}, "parity"),
        ({"stretch": 9}, "stretch"),
        ({"time": 7}, "time must be at least 8"),
    ],
)
def test_what_cannot_be_compared_is_refused(change, words):
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(SMALL, **change)


def test_a_mixer_that_is_too_large_is_refused():
    with pytest.raises(ValueError, match="parameters=100"):
        arms(dataclasses.replace(SMALL, parameters=100))
