"""Checkpoints of transformers: loaded by us and saved by us, they give the same logits and the same continuations.

Tiny random configurations, written by transformers (torch on CPU). Needs the extra [parity].
"""

import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from tests.parity.tiny import CONFIGURATIONS

pytestmark = pytest.mark.slow
torch = pytest.importorskip("torch")
logging.getLogger("transformers").setLevel(logging.ERROR)
transformers = pytest.importorskip("transformers")

TOKENS = np.random.default_rng(0).integers(3, 60, (2, 11))


def made(name):
    """A model of transformers with random weights that are not small, so that every part of it matters."""
    kind, fields = CONFIGURATIONS[name]
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**fields, initializer_range=0.2)
    model = getattr(transformers, f"{kind}ForCausalLM" if kind != "GPT2" else "GPT2LMHeadModel")(config)
    with torch.no_grad():
        for key, p in model.named_parameters():
            if "norm" in key or key.endswith((".D", "dt_bias", "ln_1.weight", "ln_2.weight", "bias")):
                p.add_(0.3 * torch.randn_like(p))
            if "gate_preact" in key:  # gates of the mLSTM begin closed, and see nothing of the input
                p.copy_(torch.randn_like(p))
    return model.eval()


@functools.cache
def logits_of(name):
    with torch.no_grad():
        return made(name)(torch.tensor(TOKENS)).logits.numpy()


@pytest.fixture(scope="module", params=list(CONFIGURATIONS))
def checkpoint(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / request.param
    made(request.param).save_pretrained(path)
    return request.param, path, zoo.load_pretrained(path)


def test_logits_of_what_it_saved_are_equal(checkpoint):
    name, _, (model, params) = checkpoint
    got, _ = jax.jit(model.apply)(params, jnp.asarray(TOKENS))
    np.testing.assert_allclose(got, logits_of(name), atol=1e-4, rtol=1e-4)


def test_cached_decoding_equals_the_whole_pass(checkpoint):
    _, _, (model, params) = checkpoint
    whole, _ = jax.jit(model.apply)(params, jnp.asarray(TOKENS))
    state, steps = model.initial_state(2), []
    one = jax.jit(model.apply)
    for t in range(TOKENS.shape[1]):
        logits, state = one(params, jnp.asarray(TOKENS[:, t : t + 1]), state)
        steps.append(logits)
    np.testing.assert_allclose(np.concatenate(steps, axis=1), whole, atol=1e-4, rtol=1e-4)


def test_greedy_continuations_of_prompts_of_unequal_length_are_identical(checkpoint):
    name, _, (model, params) = checkpoint
    reference = made(name)
    prompts = [TOKENS[0].tolist(), TOKENS[1, :5].tolist()]
    got = zoo.generate(model, params, prompts, max_new_tokens=64, temperature=0.0).tokens
    for row, prompt in enumerate(prompts):
        with torch.no_grad():
            want = reference.generate(
                torch.tensor([prompt]), max_new_tokens=64, do_sample=False, eos_token_id=None, pad_token_id=0
            )
        np.testing.assert_array_equal(np.asarray(got[row]), want[0, len(prompt) :].numpy())


def test_it_loads_what_we_save(checkpoint, tmp_path):
    name, _, (model, params) = checkpoint
    folder = zoo.save_pretrained(model, params, tmp_path / "ours", layout=name.split("-")[0], shard_bytes=20_000)
    assert len(list(folder.glob("*.safetensors"))) > 1
    reference, report = type(made(name)).from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    with torch.no_grad():
        np.testing.assert_allclose(reference.eval()(torch.tensor(TOKENS)).logits, logits_of(name), atol=1e-4, rtol=1e-4)
    again, loaded = zoo.load_pretrained(folder)
    assert again == model
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
