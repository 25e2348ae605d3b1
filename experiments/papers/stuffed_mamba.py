"""Stuffed Mamba (Chen et al. 2024): a state that is too large for its training length is never taught to forget.

The quick preset trains a small Mamba-2 to find a key among random symbols, 32 tokens at a time, and asks it in streams of
up to 4096 tokens for keys that are never farther back than in training. A model that forgets what it does not need would
not notice the length. Then the same parameters run under what is to help, see ``zoo.mixers.mamba2``:

* base: as trained;
* window: the state of the last 32 tokens, exactly;
* rri: retention scaled to 0.98; rri_insertion: to 0.995, and what is inserted to 0.75;
* norm: the norm of a head's state bounded by 2 after every step; norm_chunk: after every 32 steps;
* dt_scale: step sizes doubled, a baseline;
* restart: the last 32 tokens alone, a baseline.

``--set=task=capacity`` trains over state sizes and training lengths and fits the laws of forgetting and recall; ``task=lm``
(preset paper) trains the paper's language models on streams of long documents with the state carried between segments, and
without.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import freeze

import zoo
from experiments.arms import language_modelling
from experiments.experiment import Arm, Check, Experiment, Trained, Training, register
from zoo.analysis import state_collapse as sc
from zoo.checks import check_choice, check_positive
from zoo.decoding import left_pad
from zoo.layers import accuracy, batch_axes, cross_entropy, rows_back, rows_first
from zoo.models import with_mixer_options
from zoo.tasks.document_streams import DocumentStreams
from zoo.tasks.passkey import PasskeyStream, passkey_accuracy

QUICK = Training(
    steps=500, batch_size=48, learning_rate=3e-3, schedule="cosine", weight_decay=0.01, clip_norm=1.0, steps_per_call=50
)


SCORES = ("loss", "accuracy")
BASELINES = ("mamba",)
VARIANTS = ("window", "rri", "rri_insertion", "norm", "norm_chunk", "dt_scale")


@dataclasses.dataclass(frozen=True)
class Toy:
    """A small Mamba-2 on ``zoo.tasks.PasskeyStream``.

    Attributes:
      dim, depth, state_dim, head_dim, chunk_size: of the model; its blocks have no MLP.
      train_length: tokens of a training example, key anywhere.
      pool: training examples there are.
      within: in tests the marker is one of the last so many tokens.
      test_lengths: tokens of the tests, the first ``train_length``.
      test_size: sequences per test.
      watched: sequences whose states are watched, over the longest test.
      every: tokens between two looks at the states.
      variants: what is measured besides base and restart, see the module docstring.
      norm: bound of norm and norm_chunk.
      dt_scale: of the baseline.
      baselines: other mixers that are trained as it is and tested as they are, of ``BASELINES``.
      training: how it is trained.
    """

    dim: int = 32
    depth: int = 2
    state_dim: int = 32
    head_dim: int = 16
    chunk_size: int = 32
    train_length: int = 32
    pool: int | None = 7200
    within: int = 28
    test_lengths: tuple[int, ...] = (32, 256, 1024, 4096)
    test_size: int = 256
    watched: int = 8
    every: int = 32
    variants: tuple[str, ...] = VARIANTS
    norm: float = 2.0
    dt_scale: float = 2.0
    baselines: tuple[str, ...] = ()
    training: Training = QUICK

    def __post_init__(self):
        for name in self.variants:
            check_choice("variants", name, VARIANTS)
        for name in self.baselines:
            check_choice("baselines", name, BASELINES)

    def model(self, name: str = "mamba2") -> Any:
        """The language model."""
        sizes = {"state_dim": self.state_dim}
        if name == "mamba2":
            sizes |= {"head_dim": self.head_dim, "chunk_size": self.chunk_size}
        mixer = {"name": name, **sizes}
        vocab_size = PasskeyStream().vocab_size
        return zoo.LanguageModel(
            vocab_size=vocab_size, dim=self.dim, depth=self.depth, pattern=(freeze(mixer),), mlp="none"
        )

    def test(self, length: int) -> PasskeyStream:
        """The task of one test."""
        return PasskeyStream(length, within=min(self.within, length))

    def arms(self) -> dict[str, Arm]:
        """The model, which is changed after training only, and the baselines."""
        task = PasskeyStream(self.train_length, pool=self.pool)
        test = self.test(self.train_length)
        return {
            name: language_modelling(model, task, self.training, test=test, test_size=self.test_size)
            for name, model in {"base": self.model(), **{name: self.model(name) for name in self.baselines}}.items()
        }

    def options(self) -> dict[str, dict[str, Any]]:
        """Options of the mixers, by variant."""
        every = {
            "base": {},
            "window": {"window": self.train_length},
            "rri": {"retention_scale": 0.98},
            "rri_insertion": {"retention_scale": 0.995, "insertion_scale": 0.75},
            "norm": {"max_norm": self.norm},
            "norm_chunk": {"max_chunk_norm": self.norm},
            "dt_scale": {"dt_scale": self.dt_scale},
        }
        return {name: every[name] for name in ("base", *self.variants)}

    def measure(self, trained: Mapping[str, Trained], key: jax.Array) -> dict[str, float]:
        """Loss and accuracy of every variant at every length; the states of the model as trained."""
        base = trained["base"]
        longest = PasskeyStream(max(self.test_lengths), within=min(self.within, self.train_length))
        found = {}
        runs = {
            name: with_mixer_options(base.arm.model, base.params, "mamba2", options)
            for name, options in self.options().items()
        } | {name: (trained[name].arm.model, trained[name].params) for name in self.baselines}
        for name, (model, params) in runs.items():
            scores = query_scores(
                model, params, longest, self.test_lengths, key, self.test_size, segment=self.train_length
            )
            found |= {f"{name}/{k}_{n}": v for n, values in scores.items() for k, v in values.items()}
        # reading the last tokens alone is reading a sequence as short as in training, whatever came before
        found |= {f"restart/{k}_{n}": found[f"base/{k}_{self.train_length}"] for n in self.test_lengths for k in SCORES}
        for name in (*self.options(), *self.baselines, "restart"):
            loss = found[f"{name}/loss_{self.beyond}"]
            found[f"growth/{name}"] = loss / found[f"{name}/loss_{self.train_length}"]
            found[f"share of base/{name}"] = loss / found[f"base/loss_{self.beyond}"]
        watched = watch(base.arm.model, base.params, self)
        return found | {f"states/{k}": v for k, v in watched.summary.items()}

    @property
    def beyond(self) -> int:
        """The test length that is judged: 1024, or the longest below."""
        return max(n for n in self.test_lengths if n <= 1024)

    def figures(self, trained: Mapping[str, Trained], metrics: Mapping[str, float]) -> dict[str, Any]:
        """Loss against the position of the query per variant; variance of the states; retention of the first token."""
        from matplotlib.figure import Figure

        base = trained["base"]
        loss = Figure(figsize=(7, 4.2), layout="constrained")
        axes = loss.subplots()
        for (name, marker), style in zip(
            zip((*self.options(), *self.baselines, "restart"), "osv^D<>xP"), ("-", "--") * 5
        ):
            losses = [metrics[f"{name}/loss_{n}"] for n in self.test_lengths]
            axes.plot(self.test_lengths, losses, marker=marker, linestyle=style, markersize=4, label=name)
        axes.axvline(self.train_length, color="0.6", linewidth=1)
        axes.annotate(" training length", (self.train_length, 1), xycoords=("data", "axes fraction"), va="top")
        axes.set(xlabel="position of the query", ylabel="loss at the query, nats", yscale="log")
        axes.set_xscale("log", base=2)
        axes.set_title(f"Keys at most {self.within} tokens back, {self.test_size} sequences")
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, ncols=2, fontsize=9)

        watched = watch(base.arm.model, base.params, self)
        variance = Figure(figsize=(9, 3.8), layout="constrained")
        panels = variance.subplots(1, 2)
        for layer in range(self.depth):
            for head in range(watched.variance.shape[-1]):
                panels[0].plot(
                    watched.positions, watched.variance[:, layer, head], color=f"C{head}", label=f"{layer}, {head}",
                    linestyle=("-", "--", "-.", ":")[layer % 4],
                )  # fmt: skip
        panels[0].axvline(self.train_length, color="0.6", linewidth=1)
        panels[0].set(xlabel="tokens read", ylabel="variance of the state", title="layer, head", yscale="log")
        panels[0].set_xscale("log", base=2)
        panels[0].legend(frameon=False, ncols=2, fontsize=8)
        early, late, edges = watched.histogram
        for counts, label in ((early, watched.positions[0]), (late, watched.positions[-1])):
            panels[1].stairs(np.maximum(counts, 0.5), edges, label=f"{label} tokens")
        panels[1].set(xlabel="entries of all states", ylabel="count", yscale="log")
        panels[1].legend(frameon=False)

        retention = Figure(figsize=(6, 3.8), layout="constrained")
        axes = retention.subplots()
        steps = np.arange(1, watched.retention.shape[1] + 1)
        for layer in range(self.depth):
            for head in range(watched.retention.shape[2]):
                axes.plot(steps, watched.retention[layer, :, head], color=f"C{head}",
                          linestyle=("-", "--", "-.", ":")[layer % 4], label=f"{layer}, {head}")  # fmt: skip
        axes.axvline(self.train_length, color="0.6", linewidth=1)
        axes.set(xlabel="tokens read", ylabel="retention of the first token", title="layer, head", ylim=(-0.02, 1.02))
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, ncols=2, fontsize=8)
        return {"loss_by_position.png": loss, "state_variance.png": variance, "retention.png": retention}


def query_scores(
    model: Any, params: Any, task: PasskeyStream, lengths: tuple[int, ...], key: jax.Array, count: int, segment: int
) -> dict[int, dict[str, float]]:
    """Loss in nats and accuracy at the queries of ``count`` sequences of ``task``, reading their last n tokens for every n
    of ``lengths``; segment by segment with the state carried, which makes one program of all lengths."""
    if any(n % segment for n in lengths):
        raise ValueError(f"test_lengths must be multiples of {segment}, got {lengths}")
    batch = task.batch(key, count)
    wanted = batch.targets[:, -1]

    @jax.jit
    def score(params, segments):
        def read(i, carry):
            state, _ = carry
            start = task.time - (segments - i) * segment
            tokens = jax.lax.dynamic_slice_in_dim(batch.inputs, start, segment, axis=1)
            logits, state = model.apply(params, tokens, state)
            return state, logits[:, -1]

        empty = (model.initial_state(count), jnp.zeros((count, model.vocab_size)))
        logits = jax.lax.fori_loop(0, segments, read, empty)[1]
        return cross_entropy(logits, wanted), accuracy(logits, wanted)

    scores = {n: score(params, n // segment) for n in lengths}
    return {n: {"loss": float(loss), "accuracy": float(hits)} for n, (loss, hits) in scores.items()}


@dataclasses.dataclass(frozen=True)
class Watched:
    """States along long streams: ``variance`` [K, layers, heads] at ``positions`` [K], ``retention`` [layers, T, heads] of
    the first token in the first sequence, ``histogram`` (early, late, edges), and numbers for the report."""

    positions: np.ndarray
    variance: np.ndarray
    retention: np.ndarray
    histogram: tuple
    summary: dict[str, float]


def watch(model: Any, params: Any, toy: Toy) -> Watched:
    """Reads ``toy.watched`` sequences of the longest test and looks at the states every ``toy.every`` tokens."""
    length = max(toy.test_lengths)
    tokens = toy.test(length).batch(jax.random.key(0), toy.watched).inputs
    streamed = jax.jit(lambda p, t: sc.stream(model, p, t, every=toy.every)[:2])(
        params, jnp.pad(tokens, ((0, 0), (0, 1)))
    )
    # The last look comes right after key and query, which no other look has read: it would pass for an explosion.
    states = np.asarray(streamed[1])[:-1]  # [K, L, B, H, N, P]
    positions = toy.every * np.arange(1, len(states) + 1)
    variance = np.asarray(sc.state_statistics(states).variance)
    heads = np.asarray(sc.exploding_heads(variance.mean(axis=2), positions, toy.train_length))
    channels = np.asarray(sc.exploding_channels(states, positions, toy.train_length))
    made = jax.jit(lambda p, t: sc.selections(model, p, t))(params, tokens[:1, : 8 * toy.train_length])
    retention = np.asarray(sc.memory_retention(made.delta[:, 0], made.A))
    inserted = np.asarray(sc.state_statistics(sc.insertion(made.delta, made.keys), axes=1).rms)
    within = positions <= toy.train_length
    first = retention[:, toy.train_length - 1]
    summary = {
        "heads": heads.size,
        "exploding_heads": heads.sum(),
        "exploding_channels": channels.mean(),
        "variance_growth": np.max(
            variance[~within].mean(axis=2).max(axis=0) / variance[within].mean(axis=2).max(axis=0)
        ),
        "insertion_rms": inserted.mean(),
        "retention_of_the_first_token_max": first.max(),
        "retention_of_the_first_token_median": np.median(first),
        **{f"retention_of_the_first_token_{i}_{j}": r for i, row in enumerate(first) for j, r in enumerate(row)},
    }
    histogram = sc.state_histograms(states[0], states[-1])
    numbers = {name: float(value) for name, value in summary.items()}
    return Watched(positions, variance.mean(axis=2), retention, histogram, numbers)


@dataclasses.dataclass(frozen=True)
class Capacity:
    """The sweep over state sizes and training lengths: how long must training be, until a state is forgotten in time?

    Attributes:
      state_dims: state sizes N of the mixers.
      train_lengths: tokens of the training examples, multiples of the first.
      test_length: tokens of the test for a collapse, with the key no farther back than in training.
      recall_lengths: contexts of the test for recall, with the key anywhere.
      factor: a loss at ``test_length`` of more than so many times that at the training length is a collapse.
      toy: everything else.
    """

    state_dims: tuple[int, ...] = (4, 8, 16)
    train_lengths: tuple[int, ...] = (16, 32, 64, 128)
    test_length: int = 1024
    recall_lengths: tuple[int, ...] = (16, 32, 64, 128, 256, 512, 1024)
    factor: float = 2.0
    toy: Toy = Toy()

    def toys(self) -> dict[tuple[int, int], Toy]:
        """(state size, training length) -> the toy to train."""
        return {
            (size, length): dataclasses.replace(
                self.toy, state_dim=size, train_length=length, within=length - 4, chunk_size=length,
                test_lengths=(length, self.test_length),
            )
            for size in self.state_dims
            for length in self.train_lengths
        }  # fmt: skip

    def arms(self) -> dict[str, Arm]:
        """One arm per state size and training length."""
        return {f"N{size}_T{length}": toy.arms()["base"] for (size, length), toy in self.toys().items()}

    def measure(self, trained: Mapping[str, Trained], key: jax.Array) -> dict[str, float]:
        """Growth of the loss of every arm, T_forget and T_recall of every state size, and the laws through them.

        State sizes N_S are in millions of numbers (all layers), lengths in thousands of tokens.
        """
        found, collapsed, recalled, sizes = {}, {}, {}, {}
        for (size, length), toy in self.toys().items():
            name = f"N{size}_T{length}"
            model, params = trained[name].arm.model, trained[name].params
            task = PasskeyStream(self.test_length, within=toy.within)
            scores = query_scores(model, params, task, toy.test_lengths, key, toy.test_size, segment=length)
            growth = scores[self.test_length]["loss"] / scores[length]["loss"]
            found[f"growth/{name}"] = growth
            collapsed.setdefault(size, []).append(not growth <= self.factor)
            hits = [
                query_scores(model, params, PasskeyStream(n), (n,), key, toy.test_size, segment=n)[n]["accuracy"]
                for n in self.recall_lengths
            ]
            found |= {f"recall/{name}_{n}": accuracy for n, accuracy in zip(self.recall_lengths, hits)}
            recalled.setdefault(size, []).append(sc.recall_length(self.recall_lengths, hits))
            sizes[size] = sum(leaf.size for leaf in jax.tree.leaves(sc.layer_states(model.initial_state(1)))) / 1e6
        forgotten = {size: sc.forgetting_length(self.train_lengths, bad) for size, bad in collapsed.items()}
        for size in self.state_dims:
            found[f"N_S, millions/N{size}"] = sizes[size]
            found[f"T_recall, thousand tokens/N{size}"] = max(recalled[size]) / 1e3
            if np.isfinite(forgotten[size]):
                found[f"T_forget, thousand tokens/N{size}"] = forgotten[size] / 1e3
        found["every state size is forgotten in time"] = float(np.all(np.isfinite(list(forgotten.values()))))
        laws = {
            "T_forget": (sc.fit_linear, 2, {sizes[n]: t / 1e3 for n, t in forgotten.items() if np.isfinite(t)}),
            "T_recall": (sc.fit_exponential, 3, {sizes[n]: max(t) / 1e3 for n, t in recalled.items()}),
        }
        for name, (fit, least, points) in laws.items():
            if len(points) >= least:
                law = fit(list(points), list(points.values()))
                found |= {f"law of {name}/{k}": v for k, v in law.coefficients.items()}
                found[f"law of {name}/r_squared"] = law.r_squared
        return found

    def figures(self, trained: Mapping[str, Trained], metrics: Mapping[str, float]) -> dict[str, Any]:
        """Growth of the loss beyond the training length, against that length, one line per state size."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.subplots()
        for size, marker in zip(self.state_dims, "osv^D" * len(self.state_dims)):
            growth = [metrics[f"growth/N{size}_T{length}"] for length in self.train_lengths]
            axes.plot(self.train_lengths, growth, marker=marker, label=f"N = {size}")
        axes.axhline(self.factor, color="0.6", linewidth=1)
        axes.set(xlabel="training length", ylabel=f"loss at {self.test_length} over loss in training", yscale="log")
        axes.set_xscale("log", base=2)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
        return {"capacity.png": figure}


@dataclasses.dataclass(frozen=True)
class ModelSize:
    """Layers, width and heads of one of the paper's models; heads of 64 values and 128 keys. ``state`` is the size that the
    paper gives, in millions of numbers; it counts the last three inputs of the convolutions too."""

    depth: int
    dim: int
    heads: int
    state: float


SIZES = {
    "36.4m": ModelSize(6, 512, 16, 0.8),
    "47.0m": ModelSize(12, 512, 16, 1.6),
    "84.6m": ModelSize(12, 768, 24, 2.4),
    "130m": ModelSize(24, 768, 24, 4.8),
    "370m": ModelSize(48, 1024, 32, 12.9),
    "780m": ModelSize(48, 1536, 48, 19.3),
}
FROM_SCRATCH = ("36.4m", "47.0m", "84.6m", "130m", "370m")
PUBLIC = {size: f"state-spaces/mamba2-{size}" for size in ("130m", "370m", "780m")}  # on Hugging Face
LEARNING_RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3)  # the paper's sweep
VOCABULARY = 50_288  # 50,277 tokens of GPT-NeoX, rounded up to a multiple of 16
LM_ARMS = ("carried", "independent")
DEPTHS = 10  # of the passkey, rows of the heat map


@dataclasses.dataclass(frozen=True)
class LanguageModelling:
    """The paper's language models, on a file of GPT-NeoX tokens such as RedPajama-V2's.

    Attributes:
      path: see ``zoo.tasks.token_file``.
      size: key of ``SIZES``; another ``state_dim``, ``dim`` or ``depth`` may be given.
      arms: "carried": the state goes on from segment to segment, the gradient does not; "independent": neither does.
      time: tokens per segment, the training length.
      segments: segments per stream.
      min_length: shorter documents are dropped.
      end_of_text: ends a document.
      vocab_size: rows of the embedding.
      start: folder of a model saved by ``zoo.save`` to go on from, e.g. one of ``PUBLIC``; "": random parameters.
      training: how they are trained; the paper chose the rate among ``LEARNING_RATES`` by passkey accuracy.
      validation_rows, validation_segments: held-out streams that are read with the state carried.
      held_out: tokens at the end of the file that are kept for that.
      window: of the windowed variant, None for no such variant.
      retention_scale, insertion_scale: of the variant rri.
      tokenizer: a tokenizer.json file (package tokenizers), for passkey retrieval; "": it is left out.
      passkey_lengths, passkey_samples: contexts, and prompts for each.
      begin: token before every passkey prompt, None for none.
      dtype: of the mixers; embeddings, residual stream and logits are float32.
    """

    path: str = ""
    size: str = "370m"
    arms: tuple[str, ...] = LM_ARMS
    time: int = 8192
    segments: int = 12
    min_length: int = 4096
    end_of_text: int = 0
    vocab_size: int = VOCABULARY
    start: str = ""
    training: Training = Training(
        steps=500_000, batch_size=64, learning_rate=5e-4, schedule="wsd", warmup=1000, decay_share=0.1, weight_decay=0.1,
        clip_norm=1.0, accumulate=4, steps_per_call=10, evaluate_every=5_000, checkpoint_every=1_000,
        shard_optimizer=True,
    )  # fmt: skip
    validation_rows: int = 8
    validation_segments: int = 8
    held_out: int = 2_000_000
    window: int | None = 8192
    retention_scale: float = 0.9999
    insertion_scale: float = 0.75
    tokenizer: str = ""
    passkey_lengths: tuple[int, ...] = tuple(1024 * 2**n for n in range(9))
    passkey_samples: int = 200
    begin: int | None = None
    dim: int | None = None
    depth: int | None = None
    state_dim: int = 128
    dtype: str = "bfloat16"

    def __post_init__(self):
        check_choice("size", self.size, SIZES)
        for arm in self.arms:
            check_choice("arms", arm, LM_ARMS)
        if self.validation_segments < 2:
            raise ValueError(f"validation_segments must be at least 2, got {self.validation_segments}")

    def model(self) -> Any:
        """The language model: pre-norm blocks of Mamba-2 without MLP, tied embeddings."""
        size = SIZES[self.size]
        dim = self.dim or size.dim
        mixer = {
            "name": "mamba2", "state_dim": self.state_dim, "head_dim": 2 * dim // size.heads if self.dim else 64,
            "dtype": self.dtype,
        }  # fmt: skip
        return zoo.LanguageModel(
            vocab_size=self.vocab_size, dim=dim, depth=self.depth or size.depth, pattern=(freeze(mixer),), mlp="none",
            tie_embeddings=True, remat=True,
        )  # fmt: skip

    def task(self, split: str, time: int, segments: int) -> DocumentStreams:
        """Streams of one split."""
        return DocumentStreams(
            self.path, time, segments, self.min_length, self.end_of_text, split, held_out=self.held_out
        )

    def arms_of(self) -> dict[str, Arm]:
        """One arm per entry of ``arms``."""
        return {name: stream_arm(self, carried=name == "carried") for name in self.arms}

    def measure(self, trained: Mapping[str, Trained], key: jax.Array) -> dict[str, float]:
        """Held-out loss of every arm under the mitigations, and passkey accuracies."""
        found = {}
        variants: dict[str, dict[str, Any]] = {
            "base": {}, "rri": {"retention_scale": self.retention_scale, "insertion_scale": self.insertion_scale}
        }  # fmt: skip
        if self.window is not None:
            variants["window"] = {"window": self.window}
        for name, arm in trained.items():
            for variant, options in variants.items():
                model, params = with_mixer_options(arm.arm.model, arm.params, "mamba2", options)
                if variant != "base":
                    scores = jax.jit(held_out_scores(model, self))(params, key, arm.arm.evaluation_data)
                    found |= {f"{name}_{variant}/{k}": float(v) for k, v in scores.items()}
                if self.tokenizer:
                    found |= passkey_scores(self, model, params, f"{name}_{variant}")
        return found

    def figures(self, trained: Mapping[str, Trained], metrics: Mapping[str, float]) -> dict[str, Any]:
        """Passkey accuracies per length and depth, one heat map for every arm and variant that was asked."""
        from matplotlib.figure import Figure

        first = f"_{self.passkey_lengths[0]}_0"
        names = [
            k.removeprefix("passkey at depth/").removesuffix(first)
            for k in metrics
            if k.startswith("passkey at depth/") and k.endswith(first)
        ]
        drawn = {}
        for name in names:
            grid = [
                [metrics[f"passkey at depth/{name}_{n}_{depth}"] for n in self.passkey_lengths]
                for depth in range(DEPTHS)
            ]
            figure = Figure(figsize=(7, 3.6), layout="constrained")
            axes = figure.subplots()
            image = axes.imshow(grid, vmin=0, vmax=1, cmap="RdYlGn", aspect="auto")
            axes.set_xticks(range(len(self.passkey_lengths)), self.passkey_lengths, rotation=45)
            axes.set(xlabel="context, tokens", ylabel="depth of the passkey, tenths", title=name)
            figure.colorbar(image, label="accuracy")
            drawn[f"passkey_{name}.png"] = figure
        return drawn


def stream_arm(config: LanguageModelling, carried: bool) -> Arm:
    """Next-token prediction on streams of segments; metrics of ``held_out_scores``."""
    model = config.model()
    task = config.task("train", config.time, config.segments)
    axes = batch_axes(model.initial_state)
    held_out = config.task("validation", config.time * config.validation_segments, 1)
    rows = held_out.read(0, 0, range(config.validation_rows), config.validation_rows)
    tokens = np.concatenate([rows.inputs, rows.targets[:, -1:]], axis=1)

    def init(key, batch):
        return zoo.load(config.start)[1] if config.start else model.init(key, batch.inputs[:, :2])

    def loss(params, batch, key, step, carry):
        # The state comes in as a number: no gradient goes into the segment before.
        state = rows_back(carry, axes) if carried else None
        reset = batch.extra if carried else None
        logits, state = model.apply(params, batch.inputs, state, reset=reset)
        value = cross_entropy(logits, batch.targets)
        return value, ({}, rows_first(state, axes) if carried else carry)

    def carry(size):
        return rows_first(model.initial_state(size), axes)

    return Arm(
        init, loss, task, config.training, held_out_scores(model, config), evaluation_data=jnp.asarray(tokens),
        carry=carry if carried else None, model=model,
    )  # fmt: skip


def held_out_scores(model: Any, config: LanguageModelling) -> Callable:
    """``evaluate(params, key, tokens [rows, S])``: mean ``loss`` in nats within the training length, ``loss_beyond`` in the
    last segment, their perplexities, and ``collapse_ratio``; the paper calls a ratio above 2 a collapse."""

    def evaluate(params, key, data):
        losses = jax.lax.map(
            lambda row: sc.stream(model, params, row[None], every=config.time, measure=lambda _: None).losses[0], data
        )
        losses = jnp.mean(losses, axis=0)
        within, beyond = jnp.mean(losses[: config.time]), jnp.mean(losses[-config.time :])
        return {
            "loss": within,
            "loss_beyond": beyond,
            "perplexity": jnp.exp(within),
            "perplexity_beyond": jnp.exp(beyond),
            "collapse_ratio": sc.collapse_ratio(losses, config.time),
        }

    return evaluate


def passkey_scores(config: LanguageModelling, model: Any, params: Any, name: str) -> dict[str, float]:
    """Passkey accuracy at every context length, and T_recall in thousands of tokens."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(config.tokenizer)
    grid = passkey_accuracy(
        lambda prompts: [tokenizer.decode(row) for row in greedy_answers(model, params, prompts, segment=config.time)],
        lambda text: tokenizer.encode(text, add_special_tokens=False).ids,
        config.passkey_lengths,
        samples=config.passkey_samples,
        depths=DEPTHS,
        begin=config.begin,
    )
    accuracies = grid.mean(axis=1).tolist()
    found = {f"passkey/{name}_{n}": accuracy for n, accuracy in zip(config.passkey_lengths, accuracies)}
    for n, row in zip(config.passkey_lengths, grid):
        found |= {f"passkey at depth/{name}_{n}_{depth}": float(accuracy) for depth, accuracy in enumerate(row)}
    return found | {f"T_recall, thousand tokens/{name}": sc.recall_length(config.passkey_lengths, accuracies) / 1e3}


def greedy_answers(
    model: Any, params: Any, prompts: list[list[int]], *, segment: int, new_tokens: int = 5, keep: int | None = None
) -> list[list[int]]:
    """The most likely ``new_tokens`` tokens after every prompt, which is read in segments with the state carried.

    ``keep``: only the last tokens of the prompts are read (the baseline that starts anew).
    """
    check_positive("segment", segment)
    prompts = [prompt[-(keep or len(prompt)) :] for prompt in prompts]
    tokens, start = left_pad(prompts)
    reset = jnp.arange(tokens.shape[1])[None] == start[:, None]
    state = model.initial_state(len(prompts))
    read = _reader(model)
    for begin in range(0, tokens.shape[1] - 1, segment):
        part = slice(begin, min(begin + segment, tokens.shape[1] - 1))
        state = read(params, tokens[:, part], state, reset[:, part])
    said = zoo.generate(model, params, tokens[:, -1:], max_new_tokens=new_tokens, temperature=0.0, state=state)
    return np.asarray(said.tokens).tolist()


def _reader(model: Any) -> Callable:
    return jax.jit(lambda params, tokens, state, reset: model.apply(params, tokens, state, reset=reset)[1])


@dataclasses.dataclass(frozen=True)
class Config:
    """What is run: ``task`` names one of the other fields."""

    task: str = "toy"
    toy: Toy = Toy()
    capacity: Capacity = Capacity()
    lm: LanguageModelling = LanguageModelling()

    def __post_init__(self):
        check_choice("task", self.task, ("toy", "capacity", "lm"))


def arms(config: Config) -> dict[str, Arm]:
    """Arms of the chosen task."""
    return config.lm.arms_of() if config.task == "lm" else getattr(config, config.task).arms()


def measure(config: Config, trained: Mapping[str, Trained], key: jax.Array) -> dict[str, float]:
    """Measurements of the chosen task."""
    return getattr(config, config.task).measure(trained, key)


def figures(config: Config, trained: Mapping[str, Trained], metrics: Mapping[str, float]) -> dict[str, Any]:
    """Drawings of the chosen task."""
    return getattr(config, config.task).figures(trained, metrics)


def stand_in(config: Config, folder: pathlib.Path) -> Config:
    """A short file of random tokens, in long documents, for a language model that has no path."""
    if config.task != "lm" or config.lm.path:
        return config
    lm = config.lm
    need = max(lm.held_out, 2 * lm.time * lm.validation_segments)
    random = np.random.default_rng(0)
    tokens = random.integers(1, lm.vocab_size, need + 2 * lm.time * lm.segments, np.uint16)
    tokens[:: 4 * max(lm.time, lm.min_length)] = lm.end_of_text
    path = folder / "tokens.bin"
    tokens.tofile(path)
    return dataclasses.replace(config, lm=dataclasses.replace(lm, path=str(path), held_out=need))


TINY = dataclasses.replace(QUICK, steps=4, batch_size=4, steps_per_call=2)

NOTES = """\
restart is base at the training length by definition: its last 32 tokens are all that it reads. All lengths ask the same
sequences, cut off in front, so that differences between lengths and between variants are not those of the draws.

Loss at the query on seeds 0, 1, 2: it grows by 1.02, 1.28 and 1.22 times from 32 to 1024 tokens as trained, where three
times are asked for, and by 1.00, 1.00 and 1.01 with the window; scaled retention helps on two seeds of three. Accuracy is
1.00 at all lengths (but with the norm clipped at every step: 0.94 to 1.00), so a model of this size hardly collapses. In
the slowest head 74 to 92 % of the first token are left after 32 tokens; the heads of the public models that collapse keep
more than 99.7 % over all of their training length. Rates and step sizes that begin slower (A = -1, step sizes from 1e-4)
did not change this in trials: 2.0 and 1.1 times on two seeds.

The paper's N_S in millions of numbers counts the state of the heads and the last three inputs of the convolutions.
"""

register(
    Experiment(
        name="stuffed_mamba",
        paper="Chen, Zhang, Hu, Han, Liu, Sun 2024, Stuffed Mamba: State Collapse and State Capacity of RNN-Based "
        "Long-Context Modeling",
        claim="A Mamba-2 trained on short sequences loses what it was just told when it reads on past their length; a "
        "state of the last tokens alone, made from the same parameters without training, does not.",
        presets={
            "smoke": Config(
                toy=Toy(
                    dim=8,
                    depth=1,
                    state_dim=4,
                    head_dim=8,
                    chunk_size=8,
                    train_length=8,
                    pool=16,
                    within=6,
                    test_lengths=(8, 16),
                    test_size=4,
                    watched=2,
                    every=4,
                    training=TINY,
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
                Check("keys are found at the training length, 32", "base/accuracy_32", ">=", 0.97),
                Check("loss at 1024 over loss at 32, as trained", "growth/base", ">=", 3.0),
                Check("... with a window of 32", "growth/window", "<=", 2.0),
                Check("loss at 1024, window over as trained", "share of base/window", "<=", 0.5),
                Check("... retention scaled by 0.98", "share of base/rri", "<", 1.0),
            ),
            "paper": (
                Check(
                    "no collapse at 8 times the segment, state carried in training", "carried/collapse_ratio", "<=", 2.0
                ),
                Check(
                    "with a window: none without the state carried either",
                    "independent_window/collapse_ratio",
                    "<=",
                    2.0,
                ),
            ),
        },
        next_steps="sweep state sizes and training lengths with --set=task=capacity, or train on other lengths with "
        "--set=toy.train_length=64 --set=toy.within=60",
        notes=NOTES,
    )
)
