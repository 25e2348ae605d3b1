"""The gallery, and what the documents say of it."""

import json
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

import zoo
from zoo.__main__ import gallery
from zoo.registry import entry

ROOT = pathlib.Path(__file__).parents[2]


def test_readme_shows_the_gallery_of_the_registry():
    readme = (ROOT / "README.md").read_text()
    table = readme.split("<!-- gallery -->")[1].split("<!-- /gallery -->")[0]
    assert table.strip() == gallery(markdown=True).strip(), "run: python -m zoo --markdown, and paste it into README.md"


def test_python_m_zoo_prints_every_architecture():
    out = subprocess.run([sys.executable, "-m", "zoo"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in zoo.list():
        assert name in out.stdout


@pytest.mark.parametrize("name", zoo.list())
def test_every_entry_is_described(name):
    e = entry(name)
    assert e.summary.endswith("."), "the class docstring starts with one sentence"
    assert any(year in e.paper for year in map(str, range(1985, 2031))), "paper: authors, year, title"
    assert len((sys.modules[e.cls.__module__].__doc__ or "").splitlines()) >= 3, "the module docstring says what it is"


@pytest.mark.parametrize("name", zoo.list("model"))
def test_models_are_recreated_from_their_description(name):
    for options in entry(name).variants.values():
        model = zoo.create(name, **options)
        assert zoo.create(json.loads(json.dumps(zoo.describe(model)))) == model


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: zoo.create("lrru", dim=4), "did you mean 'lru'"),
        (lambda: zoo.create("lru", dim=4, state_dims=3), "did you mean 'state_dim'"),
        (lambda: zoo.create("lru"), "needs dim"),
        (lambda: zoo.create({"dim": 3}), "needs the key 'name'"),
        (lambda: zoo.list("mixers"), "did you mean 'mixer'"),
        (lambda: zoo.describe(object()), "not a registered architecture"),
    ],
)
def test_wrong_names_give_the_nearest(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_the_readme_library_examples_run():
    examples = (ROOT / "README.md").read_text().split("<!-- example -->")[1:]
    assert len(examples) == 2
    for example in examples:
        code = example.split("```python")[1].split("```")[0]
        assert len([line for line in code.splitlines() if line.strip()]) <= 12
        exec(compile(code, "README.md", "exec"), {})


@pytest.mark.parametrize("depth", [1, 3])
def test_a_language_model_streams_whatever_its_pattern(depth):
    """The cut law for whole models: patterns with repeated and scanned layers, positions, packed documents."""
    pattern = ("lru", "lru", {"name": "attention", "window": 16})
    model = zoo.LanguageModel(vocab_size=11, dim=8, pattern=pattern, depth=3 * depth, positions="sinusoidal")
    tokens = jax.random.randint(jax.random.key(0), (2, 9), 0, 11)
    reset = jnp.zeros((2, 9), bool).at[0, 4].set(True)
    params = jax.jit(model.init)(jax.random.key(1), tokens)
    apply = jax.jit(lambda t, s, r: model.apply(params, t, s, reset=r))
    whole, state = apply(tokens, None, reset)
    first, middle = apply(tokens[:, :5], model.initial_state(2), reset[:, :5])
    second, last = apply(tokens[:, 5:], middle, reset[:, 5:])
    assert jnp.allclose(whole, jnp.concatenate([first, second], axis=1), atol=2e-5)
    assert jax.tree.structure(state) == jax.tree.structure(last)
    alone, _ = apply(tokens[:1, 4:], None, reset[:1, :5] & False)
    assert jnp.allclose(whole[0, 4:], alone[0], atol=2e-5), "a packed document equals the document alone"
