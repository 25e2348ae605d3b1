"""Golden data of In-Context Language Learning: n-gram heads, the back-off predictor, Baum-Welch."""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zoo.mixers.ngram_head import ngram_head, ngram_mean, ngram_weights
from zoo.models.baum_welch import baum_welch, edge_hmm, next_symbol
from zoo.models.in_context_ngram import in_context_ngram
from zoo.tasks.regbench import dfa_accuracy, next_symbol_distribution, states_after, total_variation


def check(case: Any) -> Iterator[tuple[str, Any]]:
    """Yields every output of ``case``."""
    systems = {"ngram_head": head, "ngram_predictor": predictor, "baum_welch": hidden_markov}
    prefix = next((name for name in systems if case.name.startswith(name)), None)
    if prefix is None:
        raise ValueError(f"{case.name} is not built yet (built: {', '.join(systems)})")
    return systems[prefix](case)


def head(case: Any) -> Iterator[tuple[str, Any]]:
    """Every order by both forms, and token by token with either state."""
    x, weight = jnp.asarray(case.inputs["x"]), jnp.asarray(case.inputs["w"])
    tokens = jnp.asarray(case.inputs["input_ids"])
    names = {"head": "t0.weight", "head_bias": "t0.bias", "skip": "t1.weight", "skip_bias": "t1.bias"}
    vocab_size = int(tokens.max()) + 1
    for order in case.config["orders"]:
        params = {name: jnp.asarray(case.params[f"{order}/{key}"]).T for name, key in names.items()}
        options = {"order": order, "vocab_size": vocab_size}
        yield f"outputs/attn_{order}", ngram_weights(tokens, order)

        @jax.jit
        def run(params, x, options=options):
            def loss(params, x, method):
                y, _ = ngram_head(params, x, tokens, method=method, **options)
                return jnp.sum(y * weight), y

            return {
                method: jax.value_and_grad(functools.partial(loss, method=method), (0, 1), has_aux=True)(params, x)
                for method in ("quadratic", "sorted")
            }

        def by_steps(options):
            state, found = None, []
            step = jax.jit(lambda x, w, state: ngram_mean(x, w, state, **options))
            for t in range(tokens.shape[1]):
                mean, state = step(x[:, t : t + 1], tokens[:, t : t + 1], state)
                found.append(mean)
            return jnp.concatenate(found, axis=1)

        results = run(params, x)
        mean = ngram_mean(x, tokens, **options)[0]
        for other in (by_steps(options), by_steps({"order": order, "window": tokens.shape[1]})):
            if not np.allclose(other, mean, rtol=1e-10, atol=1e-11):
                raise ValueError(f"order {order}: token by token is not the whole")
        (_, y), (param_grads, x_grad) = results["sorted"]
        for a, b in zip(jax.tree.leaves(results["quadratic"]), jax.tree.leaves(results["sorted"]), strict=True):
            if not np.allclose(a, b, rtol=1e-10, atol=1e-11):
                raise ValueError(f"order {order}: the sorted form is not the quadratic one")
        yield f"outputs/head_{order}", mean
        yield f"outputs/y_{order}", y
        yield f"grads/{order}/x", x_grad
        for name, key in names.items():
            yield f"grads/{order}/{key}", param_grads[name].T


def predictor(case: Any) -> Iterator[tuple[str, Any]]:
    """Back-off of every order in the file, the true distributions, metrics of those named with an order."""
    ids = jnp.asarray(case.inputs["ids"])
    vocab = case.config["vocab"]
    separator = vocab.index("|")
    table = jnp.asarray(case.inputs["pfa_next_state"])[:, 1:separator]  # symbols stand between padding and separator
    truth = next_symbol_distribution(table, states_after(table, ids))
    yield "outputs/true_probs", truth
    counted = jnp.concatenate([ids[1:] != separator, jnp.ones(1, bool)])
    orders = sorted({int(key[len("ngram")]) for key in case.outputs if key.startswith("ngram")})
    for order in orders:
        probs = in_context_ngram(ids[None], vocab_size=len(vocab), order=order, separator=separator)[0]
        results = {
            "probs": probs,
            "tvd": total_variation(probs, truth, counted),
            "dfa_acc": dfa_accuracy(probs, truth, counted),
        }
        for name, value in results.items():
            if f"ngram{order}_{name}" in case.outputs:
                yield f"outputs/ngram{order}_{name}", value


def hidden_markov(case: Any) -> Iterator[tuple[str, Any]]:
    """The fit, and the posterior of the next symbol."""
    config = case.config
    observations = jnp.asarray(case.inputs["observations"])
    a, b = (jnp.asarray(case.params[name]) for name in ("A0", "B0"))
    eps, states = config["eps"], config["pfa_states"]
    begin = edge_hmm(a, b, jnp.ones(len(a)) - eps, states=states, eps=eps)
    fitted = {
        method: jax.jit(
            lambda begin, method=method: baum_welch(
                begin, observations, jnp.sum(observations >= 0, axis=1), states=states,
                iterations=config["iterations"], eps=eps, forbidden=case.inputs["A_mask"],
                published_emissions=True, method=method,
            )
        )(begin)
        for method in ("sequential", "associative")
    }  # fmt: skip
    for a, b in zip(*(jax.tree.leaves(f) for f in fitted.values()), strict=True):
        if not np.allclose(a, b, rtol=1e-9, atol=1e-9):
            raise ValueError("the associative form is not the sequential one")
    hmm = fitted["associative"]
    yield "outputs/log_A", hmm.log_transition
    yield "outputs/log_B", hmm.log_emission
    yield "outputs/log_pi", hmm.log_initial
    prefix = jnp.asarray(case.inputs["prefix"])
    yield "outputs/posterior_next", next_symbol(hmm, prefix, jnp.sum(prefix >= 0))
