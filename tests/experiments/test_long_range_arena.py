"""Every task of Long Range Arena has a paper preset whose training step can be traced without the data."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import stand_ins
from experiments.arms import classification_of_files
from experiments.errors import UsageError
from experiments.experiment import get
from experiments.papers.long_range_arena import PAPER, PAPER_SIZES, TASKS, arms, stand_in
from experiments.steps import abstract_arguments
from zoo.tasks import Pathfinder

LENGTHS = {"listops": (2048,), "text": (4096,), "retrieval": (2, 4000), "image": (1024, 1), "pathfinder": (1024, 1)}


@pytest.mark.parametrize("task", TASKS)
def test_a_task_has_its_shapes_and_its_sizes(task, tmp_path):
    config = stand_in(dataclasses.replace(PAPER, task=task, test_size=4, root=str(tmp_path / "nowhere")), tmp_path)
    arm = arms(config)["s5"]
    state, _, inputs = abstract_arguments(arm, 1)
    sizes = PAPER_SIZES[task]
    assert inputs.rows.inputs.shape[2:] == (sizes.training.batch_size, *LENGTHS.get(task, (16_384, 1)))
    shapes = {jax.tree_util.keystr(p): leaf.shape for p, leaf in jax.tree_util.tree_leaves_with_path(state.params)}
    systems = [shape for path, shape in shapes.items() if "Lambda_re" in path]
    assert systems == [(1, 1, sizes.depth, sizes.state_dim // 2)] or systems == [(1, sizes.depth, sizes.state_dim // 2)]
    assert {len(leaf) for leaf in jax.tree.leaves(arm.evaluation_data)} == {4}


def test_what_cannot_be_is_named():
    experiment = get("long_range_arena")
    quick = experiment.presets["quick"]
    for change, words in (
        ({"task": "pathx"}, "did you mean 'path_x'"),
        ({"task": "text"}, "sizes has no entry for task='text'"),
        ({"task": "text", "sizes": PAPER_SIZES}, "needs files"),
        ({"arms": ("s4",)}, "did you mean 's5'"),
    ):
        with pytest.raises((ValueError, UsageError), match=words):
            arms(dataclasses.replace(quick, **change))
    with pytest.raises(FileNotFoundError, match="lra_release"):
        arms(dataclasses.replace(PAPER, root="nowhere"))


class FirstStep:
    """A stand-in for a model: says class 1 where the first pixel is at least half bright."""

    def apply(self, params, inputs, **_):
        return jnp.stack([jnp.zeros(len(inputs)), inputs[:, 0, 0]], axis=1)


@pytest.mark.parametrize("chunk", [4, 50])
def test_an_evaluation_on_files_counts_every_example_once(chunk, tmp_path):
    task = Pathfinder(stand_ins.pathfinder_images(tmp_path, images=70), "test")
    arm = classification_of_files(FirstStep(), task, PAPER_SIZES["pathfinder"].training, test=task, chunk=chunk)
    metrics = jax.jit(arm.evaluate)({}, jax.random.key(0), arm.evaluation_data)
    batch = task.rows_at(np.arange(task.count))
    logits = np.stack([np.zeros(7), batch.inputs[:, 0, 0]], axis=1)
    right = np.exp(logits[np.arange(7), batch.targets]) / np.exp(logits).sum(axis=1)
    assert task.count == 7 and 0 < metrics["accuracy"] < 1
    assert np.isclose(metrics["accuracy"], np.mean(np.argmax(logits, axis=1) == batch.targets))
    assert np.isclose(metrics["loss"], -np.mean(np.log(right)), rtol=1e-5)
    few = classification_of_files(FirstStep(), task, PAPER_SIZES["pathfinder"].training, test=task, test_size=3)
    assert few.evaluation_data.targets.shape == (3,)
