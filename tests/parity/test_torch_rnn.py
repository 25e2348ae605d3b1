"""LSTM and GRU against torch.nn: the same weights give the same outputs, states and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from zoo.mixers import GRUState, LSTMState, gru, lstm

torch = pytest.importorskip("torch", reason="torch is not installed (extra [parity])")
pytestmark = pytest.mark.slow

BATCH, TIME, DIM, HIDDEN = 3, 11, 5, 7


def close(got, want):
    np.testing.assert_allclose(np.asarray(got), want.detach().numpy(), rtol=1e-12, atol=1e-12)


def ours(module, gates):
    """torch's weights [G H, in] in our layout; its order of gates (i f g o, r z n) is ours."""
    weights = {k: jnp.asarray(v.detach().numpy()) for k, v in module.named_parameters()}
    params = {"input_kernel": weights["weight_ih_l0"].T, "recurrent_kernel": weights["weight_hh_l0"].T}
    if gates == 4:
        return params | {"bias": weights["bias_ih_l0"] + weights["bias_hh_l0"]}
    # The recurrent biases of r and z merge with the input biases, that of n stays inside the reset gate.
    inside = jnp.where(jnp.arange(3 * HIDDEN) < 2 * HIDDEN, weights["bias_hh_l0"], 0)
    return params | {"bias": weights["bias_ih_l0"] + inside, "candidate_bias": weights["bias_hh_l0"][2 * HIDDEN :]}


@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_outputs_states_and_gradients_equal_torch(float64, name):
    torch.manual_seed(0)
    module = (torch.nn.LSTM if name == "lstm" else torch.nn.GRU)(DIM, HIDDEN, batch_first=True).double()
    x, weights = torch.randn(BATCH, TIME, DIM).double(), torch.randn(BATCH, TIME, HIDDEN).double()
    initial = [torch.randn(1, BATCH, HIDDEN).double() for _ in range(2 if name == "lstm" else 1)]
    leaves = [t.requires_grad_() for t in (x, *initial)]
    y, last = module(x, tuple(initial) if name == "lstm" else initial[0])
    (y * weights).sum().backward()

    function, state = (lstm, LSTMState) if name == "lstm" else (gru, GRUState)
    params = ours(module, 4 if name == "lstm" else 3)

    def loss(params, x, *initial):
        y, last = function(params, x, state(*initial))
        return jnp.sum(y * jnp.asarray(weights.numpy())), (y, last)

    arrays = [jnp.asarray(t.detach().numpy()) for t in (x, *(i[0] for i in initial))]
    grad = jax.jit(jax.grad(loss, tuple(range(len(arrays) + 1)), has_aux=True))
    (dparams, *dleaves), (got, got_last) = grad(params, *arrays)
    close(got, y)
    for mine, theirs in zip(jax.tree.leaves(got_last), last if name == "lstm" else [last], strict=True):
        close(mine, theirs[0])
    close(dleaves[0], leaves[0].grad)
    for mine, theirs in zip(dleaves[1:], leaves[1:], strict=True):
        close(mine, theirs.grad[0])
    close(dparams["input_kernel"].T, module.weight_ih_l0.grad)
    close(dparams["recurrent_kernel"].T, module.weight_hh_l0.grad)
    close(dparams["bias"], module.bias_ih_l0.grad)
    if name == "gru":
        close(dparams["candidate_bias"], module.bias_hh_l0.grad[2 * HIDDEN :])


def test_a_registered_lstm_has_the_parameters_of_torch():
    """Weights can be carried over one to one: equal counts but for torch's second, redundant bias."""
    params = zoo.create("lstm", dim=6).init(jax.random.key(0), jnp.ones((1, 2, 6)))
    count = sum(p.size for p in jax.tree.leaves(params))
    assert count == sum(p.numel() for p in torch.nn.LSTM(6, 6).parameters()) - 4 * 6
