"""FlashRNN (Pöppel, Beck, Hochreiter 2024): recurrent networks with memory mixing track states, and need not be slow.

The quick preset has three parts:

* parity: one layer of lstm, slstm, gru or elman, two heads of size 16, is trained on 8 to 24 bits and tested on 24 and on
  64; a causal Transformer of two layers is the baseline;
* speed: the compiled recurrence against the same network run step by step, operation by operation; and seconds against
  length, next to flax.linen's LSTM and causal attention (reported, not judged);
* agreement: states and gradients of all backends, the fused kernel by interpretation.

``task=lm`` (preset paper) trains language models of about 165M parameters whose blocks hold an lstm, an slstm or attention,
on a file of tokens. ``python -m benchmarks.flashrnn`` has the paper's grids of head size, batch and length, and the study
of rounding.
"""

import dataclasses
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import zoo
from experiments.experiment import Arm, Check, Experiment, Trained, Training, register
from zoo.checks import check_choice
from zoo.layers import accuracy, cross_entropy
from zoo.scans import cell_counts, flashrnn
from zoo.tasks import Parity, TokenFile

FUNCTIONS = ("elman", "gru", "lstm", "slstm")
BACKENDS = ("vanilla", "vanilla_fwbw", "alternating", "fused")
SHORT = Training(
    steps=250, batch_size=64, optimizer="adam", learning_rate=5e-3, schedule="cosine", clip_norm=1.0, steps_per_call=50
)
LONG = dataclasses.replace(SHORT, steps=600)
TRANSFORMER = dataclasses.replace(SHORT, learning_rate=1e-3)


@dataclasses.dataclass(frozen=True)
class ParityTask:
    """Parity of all bits so far: trained on ``min_time`` to ``time`` bits, tested on exactly ``test_times``.

    Attributes:
      arms: of ``FUNCTIONS`` and "transformer".
      heads, head_dim: of the recurrent layer; the width of every arm is their product.
      lstm, others, transformer: how they are trained.
      test_size: test examples of each length.
    """

    arms: tuple[str, ...] = ("lstm", "slstm", "gru", "elman", "transformer")
    heads: int = 2
    head_dim: int = 16
    time: int = 24
    min_time: int = 8
    test_times: tuple[int, ...] = (24, 64)
    lstm: Training = SHORT
    others: Training = LONG
    transformer: Training = TRANSFORMER
    test_size: int = 1000

    def __post_init__(self):
        for arm in self.arms:
            check_choice("arms", arm, (*FUNCTIONS, "transformer"))

    def model(self, arm: str) -> Any:
        """A network that labels every step."""
        dim = self.heads * self.head_dim
        shared = {"num_outputs": 2, "dim": dim, "vocab_size": 2, "pooling": "none"}
        if arm == "transformer":
            spec = {"name": "attention", "heads": 2, "positions": "none", "window": max(self.test_times)}
            return zoo.SequenceClassifier(
                pattern=(spec,), depth=2, mlp="gelu", norm="layer", positions="sinusoidal", **shared
            )
        spec = {"name": "flashrnn", "function": arm, "heads": self.heads}
        return zoo.SequenceClassifier(pattern=(spec,), mlp="none", norm="none", **shared)


@dataclasses.dataclass(frozen=True)
class Measurements:
    """Untrained measurements.

    Attributes:
      batch, steps, heads, head_dim: of the compiled and the step-by-step network.
      lengths: of the seconds against length; none: left out. ``attention_limit``: longest for attention.
      repeats: timed runs, of which the fastest counts.
      agreement: (B, T, N, D) of the comparison of backends, for ``functions``.
    """

    batch: int = 8
    steps: int = 256
    heads: int = 4
    head_dim: int = 32
    lengths: tuple[int, ...] = tuple(2**n for n in range(7, 16))
    attention_limit: int = 4096
    repeats: int = 3
    agreement: tuple[int, int, int, int] = (3, 9, 2, 8)
    functions: tuple[str, ...] = FUNCTIONS


@dataclasses.dataclass(frozen=True)
class LanguageModelling:
    """Next-token prediction, e.g. on 15B tokens of SlimPajama: Transformer blocks with the mixer replaced.

    Attributes:
      path: a file of tokens, see ``zoo.tasks.token_file``.
      arms: of "lstm", "slstm", "transformer".
      dim, depth, heads: 165M, 165M and 162M parameters with the embeddings untied.
      time: tokens per window.
      vocab_size: rows of the embedding, 50,277 of the GPT-NeoX-20B tokeniser rounded up to a multiple of 128.
      training: 14,305 steps of 512 windows of 2048 tokens are 15B tokens.
      validation_rows: windows of the held-out end of the file.
      held_out: tokens at that end.
      dtype: compute dtype.
    """

    path: str = ""
    arms: tuple[str, ...] = ("lstm", "slstm", "transformer")
    dim: int = 768
    depth: int = 12
    heads: int = 12
    time: int = 2048
    vocab_size: int = 50_304
    training: Training = Training(
        steps=14_305, batch_size=512, learning_rate=1e-3, schedule="cosine", warmup=750, final_scale=0.1, b2=0.95,
        weight_decay=0.1, accumulate=8, steps_per_call=5, evaluate_every=1_000, checkpoint_every=1_000,
    )  # fmt: skip
    validation_rows: int = 64
    held_out: int = 2_000_000
    dtype: str = "bfloat16"

    def __post_init__(self):
        for arm in self.arms:
            check_choice("arms", arm, ("lstm", "slstm", "transformer"))

    def model(self, arm: str) -> Any:
        """Pre-norm blocks of a mixer and an MLP of four times the width."""
        spec = {
            "lstm": {"name": "flashrnn", "function": "lstm", "heads": self.heads, "group_norm": True},
            "slstm": {"name": "slstm", "heads": self.heads},
            "transformer": {"name": "attention", "heads": self.heads, "window": self.time},
        }[arm]
        return zoo.LanguageModel(
            vocab_size=self.vocab_size, dim=self.dim, depth=self.depth, pattern=(spec,), mlp="gelu", remat=True,
            dtype=self.dtype,
        )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Config:
    """What is run: ``task`` is "parity" or "lm"."""

    task: str = "parity"
    parity: ParityTask = ParityTask()
    lm: LanguageModelling = LanguageModelling()
    measurements: Measurements = Measurements()

    def __post_init__(self):
        check_choice("task", self.task, ("parity", "lm"))


def parity_arm(config: ParityTask, arm: str) -> Arm:
    """Metrics ``accuracy_<T>`` and ``last8_<T>``, that of the last eight steps, for every test length T."""
    model = config.model(arm)
    training = {"lstm": config.lstm, "transformer": config.transformer}.get(arm, config.others)

    def loss(params, batch, key, step, carry):
        logits = model.apply(params, batch.inputs)
        hits = accuracy(logits, batch.targets, batch.mask)
        return cross_entropy(logits, batch.targets, batch.mask), ({"accuracy": hits}, carry)

    def evaluate(params, key, data):
        scores = {}
        for steps in config.test_times:
            batch = Parity(steps).batch(key, config.test_size)
            logits = model.apply(params, batch.inputs)
            scores[f"loss_{steps}"] = cross_entropy(logits, batch.targets)
            scores[f"accuracy_{steps}"] = accuracy(logits, batch.targets)
            scores[f"last8_{steps}"] = accuracy(logits[:, -8:], batch.targets[:, -8:])
        return {"loss": scores[f"loss_{config.test_times[0]}"], **scores}

    task = Parity(config.time, config.min_time)
    return Arm(lambda key, batch: model.init(key, batch.inputs), loss, task, training, evaluate, model=model)


def language_arm(config: LanguageModelling, arm: str) -> Arm:
    """Metrics ``loss`` in nats and ``perplexity`` on held-out windows."""
    model = config.model(arm)
    task, held = (
        TokenFile(config.path, config.time, split, held_out=config.held_out) for split in ("train", "validation")
    )
    batch = held.windows(np.linspace(0, len(held.tokens()) - config.time - 1, config.validation_rows).astype(int))

    def loss(params, batch, key, step, carry):
        logits, _ = model.apply(params, batch.inputs)
        return cross_entropy(logits, batch.targets), ({"accuracy": accuracy(logits, batch.targets)}, carry)

    def evaluate(params, key, data):
        rows = jnp.stack(data, axis=1)
        values = jax.lax.map(lambda row: cross_entropy(model.apply(params, row[:1])[0], row[1:]), rows)
        return {"loss": jnp.mean(values), "perplexity": jnp.exp(jnp.mean(values))}

    return Arm(
        lambda key, batch: model.init(key, batch.inputs), loss, task, config.training, evaluate,
        evaluation_data=(jnp.asarray(batch.inputs), jnp.asarray(batch.targets)), model=model,
    )  # fmt: skip


def arms(config: Config) -> dict[str, Arm]:
    """Arms of the chosen task."""
    if config.task == "lm":
        return {arm: language_arm(config.lm, arm) for arm in config.lm.arms}
    return {arm: parity_arm(config.parity, arm) for arm in config.parity.arms}


def measure(config: Config, trained: Mapping[str, Trained], key: jax.Array) -> dict[str, float]:
    """Perplexity of the recurrent models over the Transformer's; or speed and agreement of the backends."""
    if config.task == "lm":
        perplexity = {arm: run.metrics["perplexity"] for arm, run in trained.items()}
        base = perplexity.pop("transformer", None)
        return {f"{arm}_over_transformer": value / base for arm, value in perplexity.items() if base}
    found = {f"speed/{k}": v for k, v in speed(config.measurements, key).items()}
    found |= {f"seconds/{k}": v for k, v in against_length(config.measurements, key).items()}
    return found | {f"agreement/{k}": v for k, v in agreement(config.measurements, key).items()}


def layer_arrays(key: jax.Array, function: str, batch: int, steps: int, heads: int, dim: int) -> list[jax.Array]:
    """Wx, R, b of a fresh layer."""
    gates_r, gates_w, _, gates_t, _ = cell_counts(function)
    shapes = ((batch, steps, gates_w, heads, dim), (gates_r, heads, dim, dim), (gates_t, heads, dim))
    scales = (1.0, dim**-0.5, 1.0)
    return [s * jax.random.normal(k, shape) for k, shape, s in zip(jax.random.split(key, 3), shapes, scales)]


def step_by_step(Wx: jax.Array, R: jax.Array, b: jax.Array) -> jax.Array:
    """An LSTM's h in a Python loop, one operation at a time: what a framework does without a compiled loop."""
    h = c = jnp.zeros(Wx.shape[:1] + Wx.shape[3:])
    out = []
    for t in range(Wx.shape[1]):
        i, f, z, o = jnp.moveaxis(Wx[:, t], 1, 0) + jnp.einsum("gnij,bnj->gbni", R, h) + b[:, None]
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(z)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        out.append(h)
    return jnp.stack(out, axis=1)


def seconds(run: Callable, *arguments: Any, repeats: int) -> float:
    """Least seconds of ``run(*arguments)`` after a first call: what else the machine does can only add to them."""
    jax.block_until_ready(run(*arguments))
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(run(*arguments))
        times.append(time.perf_counter() - start)
    return min(times)


def speed(config: Measurements, key: jax.Array) -> dict[str, float]:
    """Forward seconds of the compiled and the step-by-step LSTM, their ratio ``factor``, how far their h are apart."""
    arrays = layer_arrays(key, "lstm", config.batch, config.steps, config.heads, config.head_dim)
    compiled = jax.jit(lambda *a: flashrnn(*a)[0][0])
    found = {
        "compiled": seconds(compiled, *arrays, repeats=10 * config.repeats),
        "step_by_step": seconds(step_by_step, *arrays, repeats=config.repeats),
        "difference": float(jnp.max(jnp.abs(compiled(*arrays) - step_by_step(*arrays)))),
    }
    return {**found, "factor": found["step_by_step"] / found["compiled"]}


def against_length(config: Measurements, key: jax.Array) -> dict[str, float]:
    """Forward seconds of one row against its length: ``<network>_<T>``."""
    heads, dim = config.heads, config.head_dim
    width = heads * dim
    peer = nn.RNN(nn.OptimizedLSTMCell(width))
    params = jax.jit(peer.init)(key, jnp.zeros((1, 2, width)))

    def attention(qkv):
        return jax.nn.dot_product_attention(*jnp.moveaxis(qkv, 2, 0), is_causal=True)

    networks = {
        "flashrnn": (jax.jit(lambda *a: flashrnn(*a)[0]), lambda t: layer_arrays(key, "lstm", 1, t, heads, dim)),
        "flax_lstm": (jax.jit(peer.apply), lambda t: (params, jax.random.normal(key, (1, t, width)))),
        "attention": (jax.jit(attention), lambda t: (jax.random.normal(key, (1, t, 3, heads, dim)),)),
    }
    return {
        f"{name}_{steps}": seconds(run, *make(steps), repeats=config.repeats)
        for name, (run, make) in networks.items()
        for steps in config.lengths
        if name != "attention" or steps <= config.attention_limit
    }


def agreement(config: Measurements, key: jax.Array) -> dict[str, float]:
    """Largest difference between any backend and vanilla over all functions: ``forward``, ``gradients``, and by backend."""
    worst: dict[str, float] = {}
    shape = config.agreement
    for function in config.functions:
        arrays = layer_arrays(key, function, *shape)
        weights = jax.random.normal(key, (*shape[:2], *shape[2:]))

        def run(backend, function=function, arrays=arrays, weights=weights):
            def loss(*arrays):
                states, _ = flashrnn(*arrays, function=function, backend=backend)
                return jnp.mean(states[0] * weights), states[0]

            (_, h), grads = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(*arrays)
            return {"forward": h, "gradients": grads}

        want = run("vanilla")
        for backend in BACKENDS[1:]:
            got = run(backend)
            for part in ("forward", "gradients"):
                apart = jax.tree.leaves(jax.tree.map(lambda a, b: jnp.max(jnp.abs(a - b)), got[part], want[part]))
                for name in (part, f"{part}_{backend}"):
                    worst[name] = max(worst.get(name, 0.0), *(float(a) for a in apart))
    return worst


def figures(config: Config, trained: Mapping[str, Trained], metrics: Mapping[str, float]) -> dict[str, Any]:
    """``extrapolation.png``: accuracy at every step of the longest test; ``seconds.png``: seconds against length."""
    from matplotlib.figure import Figure

    if config.task == "lm":
        return {}
    drawn = {}
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    longest = max(config.parity.test_times)
    batch = Parity(longest).batch(jax.random.key(0), config.parity.test_size)
    for name, run in trained.items():
        logits = jax.jit(run.arm.model.apply)(run.params, batch.inputs)
        axes.plot(range(1, longest + 1), jnp.mean(jnp.argmax(logits, -1) == batch.targets, axis=0), label=name)
    axes.axvline(config.parity.time, color="0.6", linestyle="--", linewidth=1)
    axes.annotate("longest in training", (config.parity.time, 0.02), xycoords=("data", "axes fraction"), xytext=(4, 0),
                  textcoords="offset points", fontsize=9)  # fmt: skip
    axes.set(xlabel="bits", ylabel="accuracy of the parity so far", title="Length extrapolation", ylim=(0.4, 1.05))
    axes.legend(loc="lower left", ncols=2)
    drawn["extrapolation.png"] = figure
    if config.measurements.lengths:
        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.subplots()
        for name in ("flashrnn", "flax_lstm", "attention"):
            points = [(t, metrics.get(f"seconds/{name}_{t}")) for t in config.measurements.lengths]
            axes.plot(*zip(*(p for p in points if p[1] is not None)), marker="o", label=name)
        axes.set(
            xscale="log", yscale="log", xlabel="steps", ylabel="seconds, forward, one row", title=jax.default_backend()
        )
        axes.set_xticks(config.measurements.lengths, [str(t) for t in config.measurements.lengths])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend()
        drawn["seconds.png"] = figure
    return drawn


def stand_in(config: Config, folder: pathlib.Path) -> Config:
    """A short file of random tokens for language models that have no path."""
    if config.task != "lm" or config.lm.path:
        return config
    path, count = folder / "tokens.bin", config.lm.held_out + 2 * config.lm.time
    np.random.default_rng(0).integers(0, config.lm.vocab_size, count, np.uint16).tofile(path)
    return dataclasses.replace(config, lm=dataclasses.replace(config.lm, path=str(path)))


TINY = dataclasses.replace(SHORT, steps=4, batch_size=4, steps_per_call=2)

register(
    Experiment(
        name="flashrnn",
        paper="Pöppel, Beck, Hochreiter 2024, FlashRNN: I/O-Aware Optimization of Traditional RNNs on Modern Hardware",
        claim="Recurrent networks with memory mixing learn parity and extrapolate it where a Transformer does not, and a "
        "compiled or fused recurrence gives the same numbers many times faster than one that is run step by step.",
        presets={
            "smoke": Config(
                parity=ParityTask(
                    arms=("slstm",),
                    head_dim=4,
                    time=6,
                    min_time=3,
                    test_times=(6,),
                    others=TINY,
                    transformer=TINY,
                    test_size=16,
                ),
                measurements=Measurements(
                    batch=2,
                    steps=8,
                    heads=2,
                    head_dim=4,
                    lengths=(),
                    repeats=1,
                    agreement=(1, 3, 1, 4),
                    functions=("elman",),
                ),
            ),
            "quick": Config(),
            "paper": Config(task="lm"),
        },
        arms=arms,
        measure=measure,
        figures=figures,
        stand_in=stand_in,
        checks={
            "quick": (
                Check("parity: LSTM, 64 bits", "lstm/accuracy_64", ">=", 0.98),
                Check("parity: sLSTM, 64 bits", "slstm/accuracy_64", ">=", 0.90),
                Check("parity: GRU, 64 bits", "gru/accuracy_64", ">=", 0.90),
                Check("parity: Transformer, last 8 of 64 bits", "transformer/last8_64", "<=", 0.70),
                Check("speed: compiled over step by step", "speed/factor", ">=", 5.0),
                Check("agreement of the backends: h", "agreement/forward", "<=", 1e-5),
                Check("agreement of the backends: gradients", "agreement/gradients", "<=", 1e-4),
            ),
            "paper": (
                Check("LSTM's perplexity over the Transformer's", "lstm_over_transformer", "<=", 1.2),
                Check("sLSTM's perplexity over the Transformer's", "slstm_over_transformer", "<=", 1.2),
            ),
        },
        next_steps="try a cell of your own (zoo.scans.register_cell), or python -m benchmarks.flashrnn on an accelerator",
        notes="Elman's accuracy is reported and not judged: whether it finds parity depends on the seed. On a CPU the fused "
        "kernel is interpreted, so its speed says nothing there; the compiled recurrence is a lax.scan. The thresholds on "
        "perplexity in the paper preset are ours; the paper reports no language-model quality that was checked.",
    )
)
