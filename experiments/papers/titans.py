"""Titans (Behrouz et al. 2025): a memory that learns at test time remembers what attention with a window cannot see.

``task`` chooses what is trained:

* needle (quick): four pairs of key and value at the beginning, noise, and one key at the end. The neural memory alone (lmm),
  as a gate, context and layer of attention (mag, mac, mal), without momentum (no_momentum), against attention with a window
  that does not reach the pairs (swa), and other recurrent memories; read at the training length and at twice that.
* language (paper): language models of 170M to 760M parameters on a file of tokens, baselines and ablations as arms; with a
  tokenizer and texts, needles in haystacks and the stories of bAbI in long texts.
* series: forecasting with the memory in the place of Mamba in SiMBA's blocks, over files of series.
* dna: classification of the sequences of GenomicsBenchmarks.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import freeze

import zoo
from experiments import stand_ins
from experiments.arms import classification_of_files, language_modelling, supervised
from experiments.experiment import Arm, Check, Experiment, Trained, Training, register
from experiments.papers.stuffed_mamba import greedy_answers
from zoo.checks import check_choice
from zoo.layers import accuracy, cross_entropy
from zoo.models import Forecaster, SequenceClassifier
from zoo.tasks import GenomicsBenchmark, KeyValueNeedle, SeriesWindows, TokenFile
from zoo.tasks.babi import read_folder
from zoo.tasks.needles import KINDS, needle_accuracy, story_accuracy

TASKS = ("needle", "language", "series", "dna")
TITANS = ("lmm", "mac", "mag", "mal")
ABLATIONS = {
    "linear_memory": {"depth": 1},
    "depth_1": {"depth": 1, "residual_norm": True},
    "depth_3": {"depth": 3},
    "depth_4": {"depth": 4},
    "no_conv": {"conv_size": 0},
    "no_momentum": {"momentum": False},
    "no_decay": {"decay": False},
    "no_persistent": {},
}
BASELINES = ("transformer", "swa", "ttt_linear", "ttt_mlp", "deltanet", "gated_deltanet", "mamba2")
ARMS = (*TITANS, *ABLATIONS, *BASELINES)


@dataclasses.dataclass(frozen=True)
class Layer:
    """Sizes of a sequence layer, shared by every arm.

    Attributes:
      heads: of attention, of memories and of the baselines.
      memory_heads: memories per layer.
      depth, expansion, chunk_size, conv_size, theta_max: of the memory, see ``zoo.layers.neural_memory.NeuralMemory``.
      persistent: persistent tokens.
      window: of sliding-window attention; segment: of MAC.
      context: what "transformer" sees.
      state_dim: of Mamba-2.
    """

    heads: int = 2
    memory_heads: int = 1
    depth: int = 2
    expansion: int = 1
    chunk_size: int = 16
    conv_size: int = 4
    theta_max: float = 0.1
    persistent: int = 4
    window: int = 8
    segment: int = 8
    context: int = 64
    state_dim: int = 16

    def spec(self, arm: str) -> dict[str, Any]:
        """The mixer of ``arm`` as ``zoo.create`` takes it."""
        check_choice("arms", arm, ARMS)
        memory = {name: getattr(self, name) for name in ("depth", "expansion", "chunk_size", "conv_size", "theta_max")}
        memory["heads"] = self.memory_heads
        attention = {"heads": self.heads, "persistent": self.persistent, "memory": memory}
        if arm == "lmm" or arm in ABLATIONS:
            persistent = 0 if arm == "no_persistent" else self.persistent
            return {"name": "titans_memory", "persistent": persistent, **memory, **ABLATIONS.get(arm, {})}
        if arm == "mac":
            # a segment begins a chunk
            chunk = min(self.chunk_size, self.segment)
            return {
                "name": "titans_mac",
                "segment": self.segment,
                **attention,
                "memory": {**memory, "chunk_size": chunk},
            }
        if arm in ("mag", "mal"):
            return {"name": f"titans_{arm}", "window": self.window, **attention}
        if arm in ("transformer", "swa"):
            window = self.context if arm == "transformer" else self.window
            return {"name": "attention", "heads": self.heads, "window": window}
        return {"name": arm, **({"state_dim": self.state_dim} if arm == "mamba2" else {"heads": self.heads})}


@dataclasses.dataclass(frozen=True)
class Needle:
    """One block on ``zoo.tasks.KeyValueNeedle``.

    Attributes:
      arms: of ``ARMS``.
      dim, mlp_dim, depth: of the model.
      layer: of its mixer.
      task: training and first test.
      longer: how many times longer the second test is.
      training: how it is trained.
      test_size: examples per test.
    """

    arms: tuple[str, ...] = ("swa", "lmm", "mag", "mac", "mal", "no_momentum")
    dim: int = 32
    mlp_dim: int = 64
    depth: int = 1
    layer: Layer = Layer()
    task: KeyValueNeedle = KeyValueNeedle()
    longer: int = 2
    training: Training = Training(steps=900, batch_size=64, learning_rate=3e-3, clip_norm=1.0, steps_per_call=50)
    test_size: int = 512

    def arms_of(self) -> dict[str, Arm]:
        """Metrics ``accuracy`` and ``loss`` at the training length, ``accuracy_longer`` and ``loss_longer`` beyond."""
        tests = {"": self.task, "_longer": dataclasses.replace(self.task, time=self.longer * self.task.time)}
        found = {}
        for name in self.arms:
            model = zoo.LanguageModel(
                vocab_size=self.task.vocab_size, dim=self.dim, depth=self.depth, mlp_dim=self.mlp_dim,
                pattern=(freeze(self.layer.spec(name)),),
            )  # fmt: skip
            arm = language_modelling(model, self.task, self.training)

            def evaluate(params, key, data, model=model):
                scores = {}
                for suffix, test in tests.items():
                    batch = test.batch(key, self.test_size)
                    # the answer stands at the last token alone
                    logits = model.apply(params, batch.inputs)[0][:, -1]
                    scores[f"accuracy{suffix}"] = accuracy(logits, batch.targets[:, -1])
                    scores[f"loss{suffix}"] = cross_entropy(logits, batch.targets[:, -1])
                return scores

            found[name] = dataclasses.replace(arm, evaluate=evaluate)
        return found

    def measure(self, trained: Mapping[str, Trained]) -> dict[str, float]:
        """``above_swa/<arm>``: accuracy above that of attention with a window."""
        if "swa" not in trained:
            return {}
        below = trained["swa"].metrics["accuracy"]
        return {f"above_swa/{name}": run.metrics["accuracy"] - below for name, run in trained.items() if name != "swa"}


@dataclasses.dataclass(frozen=True)
class ModelSize:
    """Blocks, width and heads; widths of heads are 64. Chosen so that lmm has as many parameters as the name says."""

    depth: int
    dim: int


SIZES = {
    "170m": ModelSize(18, 768),
    "340m": ModelSize(22, 1024),
    "400m": ModelSize(26, 1024),
    "760m": ModelSize(23, 1536),
}


@dataclasses.dataclass(frozen=True)
class LanguageModelling:
    """The paper's language models on a file of tokens, such as FineWeb-Edu's with the 32,000 tokens of LLaMA 2.

    Attributes:
      path: see ``zoo.tasks.token_file``.
      size: key of ``SIZES``.
      arms: of ``ARMS``.
      layer: of the mixers but for the number of heads; the paper does not state these sizes, they are our choice.
      vocab_size, time: tokens, and tokens per example.
      held_out, validation_rows: tokens at the end of the file, and windows of them that are read.
      training: 15 B tokens in batches of half a million; the paper gives the 760M models 30 B.
      tokenizer: a tokenizer.json file (package tokenizers) for needles and stories; "": they are left out.
      haystack: a text file for needles in real text and for stories.
      babi: folder of the bAbI tasks, see ``zoo.tasks.babi``; stories: tasks that are asked.
      needle_lengths, needle_samples: tokens of the prompts, and prompts for each length and kind.
      dim, depth: instead of those of ``size``.
      dtype: compute dtype.
    """

    path: str = ""
    size: str = "340m"
    arms: tuple[str, ...] = ("lmm", "mac", "mag", "mal", "transformer", "gated_deltanet")
    layer: Layer = Layer(
        expansion=4, chunk_size=64, persistent=16, window=1024, segment=1024, context=4096, state_dim=128
    )
    vocab_size: int = 32_000
    time: int = 4096
    held_out: int = 2_000_000
    validation_rows: int = 64
    training: Training = Training(
        steps=28_610, batch_size=128, learning_rate=4e-4, schedule="cosine", warmup=1000, weight_decay=0.1, clip_norm=1.0,
        accumulate=4, steps_per_call=10, evaluate_every=2_000, checkpoint_every=1_000, shard_optimizer=True,
    )  # fmt: skip
    tokenizer: str = ""
    haystack: str = ""
    babi: str = ""
    stories: tuple[int, ...] = (1, 2, 3)
    needle_lengths: tuple[int, ...] = (2048, 4096, 8192, 16_384)
    needle_samples: int = 100
    dim: int | None = None
    depth: int | None = None
    dtype: str = "bfloat16"

    def __post_init__(self):
        check_choice("size", self.size, SIZES)

    def model(self, arm: str) -> Any:
        """The language model of one arm: pre-norm blocks with SwiGLU, tied embeddings."""
        size = SIZES[self.size]
        dim = self.dim or size.dim
        heads = max(1, dim // 64)
        layer = dataclasses.replace(self.layer, heads=heads, memory_heads=heads)
        return zoo.LanguageModel(
            vocab_size=self.vocab_size, dim=dim, depth=self.depth or size.depth, pattern=(freeze(layer.spec(arm)),),
            tie_embeddings=True, remat=True, dtype=self.dtype,
        )  # fmt: skip

    def arms_of(self) -> dict[str, Arm]:
        """Metrics ``loss`` in nats per held-out token and ``perplexity``."""
        train, held_out = (
            TokenFile(self.path, self.time, split, held_out=self.held_out) for split in ("train", "validation")
        )
        rows = held_out.read(0, 0, range(self.validation_rows), self.validation_rows)
        data = jax.tree.map(jnp.asarray, (rows.inputs, rows.targets))
        found = {}
        for name in self.arms:
            model = self.model(name)
            arm = language_modelling(model, train, self.training)

            def evaluate(params, key, data, model=model):
                def one(row):
                    return cross_entropy(model.apply(params, row[0][None])[0][0], row[1])

                value = jnp.mean(jax.lax.map(one, data))
                return {"loss": value, "perplexity": jnp.exp(value)}

            found[name] = dataclasses.replace(arm, evaluate=evaluate, evaluation_data=data)
        return found

    def measure(self, trained: Mapping[str, Trained]) -> dict[str, float]:
        """Perplexity below the Transformer's; accuracies on needles and stories where there is a tokenizer."""
        found = {}
        if "transformer" in trained:
            base = trained["transformer"].metrics["perplexity"]
            found |= {f"below transformer/{k}": base - run.metrics["perplexity"] for k, run in trained.items()}
        if not self.tokenizer:
            return found
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(self.tokenizer)
        text = pathlib.Path(self.haystack).read_text(encoding="utf-8") if self.haystack else None

        def tokenize(text):
            return tokenizer.encode(text, add_special_tokens=False).ids

        for name, run in trained.items():

            def answer(prompts, run=run):
                rows = greedy_answers(run.arm.model, run.params, prompts, segment=self.layer.segment, new_tokens=16)
                return [tokenizer.decode(row) for row in rows]

            for kind in KINDS if text else KINDS[:1]:
                shares = needle_accuracy(
                    answer, tokenize, kind, self.needle_lengths, samples=self.needle_samples, text=text
                )
                found |= {f"needle/{name}_{kind}_{n}": float(s) for n, s in zip(self.needle_lengths, shares)}
            if text and self.babi:
                for story in self.stories:
                    questions = read_folder(self.babi, (story,), "test")[: self.needle_samples]
                    shares = story_accuracy(answer, tokenize, questions, self.needle_lengths, text)
                    found |= {f"story/{name}_qa{story}_{n}": float(s) for n, s in zip(self.needle_lengths, shares)}
        return found


@dataclasses.dataclass(frozen=True)
class Series:
    """Forecasting by blocks of SiMBA: a mixer, then EinFFT over time and channels.

    Attributes:
      path: file of a series such as ETTm1.csv; protocol: how it is split, see ``zoo.tasks.SeriesWindows``.
      arms: "lmm" in the place of "mamba", which is SiMBA itself.
      input_length, horizons: steps given, and steps to forecast, an arm for each; the paper reports their mean.
      dim, depth, patch: of the forecaster.
      layer: of the memory.
      training: how they are trained.
    """

    path: str = ""
    protocol: str = "ett_minute"
    arms: tuple[str, ...] = ("lmm", "mamba")
    input_length: int = 96
    horizons: tuple[int, ...] = (96, 192, 336, 720)
    dim: int = 128
    depth: int = 2
    patch: int = 4
    layer: Layer = Layer(memory_heads=2, expansion=4, chunk_size=8)
    training: Training = Training(
        steps=5_000, batch_size=32, learning_rate=1e-3, schedule="cosine", steps_per_call=50, evaluate_every=1_000
    )
    test_size: int = 1024

    def arms_of(self) -> dict[str, Arm]:
        """Metrics ``mse`` and ``mae`` of the standardised series."""
        return {f"{arm}_{horizon}": self.arm(arm, horizon) for arm in self.arms for horizon in self.horizons}

    def arm(self, name: str, horizon: int) -> Arm:
        """One mixer at one horizon."""
        check_choice("arms", name, ("lmm", "mamba"))
        options = (self.protocol, self.input_length, horizon)
        train, test = (SeriesWindows(self.path, split, *options) for split in ("train", "test"))
        mixer = self.layer.spec("lmm") if name == "lmm" else {"name": "mamba"}
        model = Forecaster(
            horizon=horizon, dim=self.dim, patch=self.patch, pattern=(freeze(mixer),), depth=self.depth,
            mlp=freeze({"name": "einfft", "over_time": True}), head="all",
        )  # fmt: skip

        def forward(params, batch, **options):
            return model.apply(params, batch.inputs, **options)

        def objective(forecast, batch):
            error = forecast - batch.targets
            mse = jnp.mean(error**2)
            return mse, {"mse": mse, "mae": jnp.mean(jnp.abs(error))}

        return supervised(
            model, train, self.training, forward=forward, objective=objective, test=test, test_size=self.test_size
        )

    def measure(self, trained: Mapping[str, Trained]) -> dict[str, float]:
        """``mean/<arm>``: mean squared error over the horizons."""
        return {
            f"mean/{arm}": float(np.mean([trained[f"{arm}_{horizon}"].metrics["mse"] for horizon in self.horizons]))
            for arm in self.arms
        }


@dataclasses.dataclass(frozen=True)
class Dna:
    """Classification of DNA, letter by letter.

    Attributes:
      path: folder of a data set, see ``zoo.tasks.genomics``.
      arms: of ``ARMS``.
      time: letters that are read.
      dim, depth: of the classifier.
      layer: of its mixers.
      training: how it is trained.
    """

    path: str = ""
    arms: tuple[str, ...] = ("lmm", "mamba2", "transformer")
    time: int = 512
    dim: int = 128
    depth: int = 2
    layer: Layer = Layer(heads=4, memory_heads=2, expansion=4, chunk_size=64, persistent=16, context=512, state_dim=64)
    training: Training = Training(
        steps=10_000, batch_size=64, learning_rate=1e-3, schedule="cosine", weight_decay=0.05, steps_per_call=20,
        evaluate_every=1_000,
    )  # fmt: skip

    def arms_of(self) -> dict[str, Arm]:
        """Metrics ``loss`` in nats, ``accuracy`` on every test sequence."""
        train, test = (GenomicsBenchmark(self.path, split, self.time) for split in ("train", "test"))
        found = {}
        for name in self.arms:
            model = SequenceClassifier(
                num_outputs=len(train.classes), dim=self.dim, vocab_size=train.vocab_size, depth=self.depth,
                pattern=(freeze(self.layer.spec(name)),),
            )  # fmt: skip
            found[name] = classification_of_files(model, train, self.training, test=test)
        return found

    def measure(self, trained: Mapping[str, Trained]) -> dict[str, float]:
        return {}


@dataclasses.dataclass(frozen=True)
class Config:
    """What is run: ``task`` names one of the other fields."""

    task: str = "needle"
    needle: Needle = Needle()
    language: LanguageModelling = LanguageModelling()
    series: Series = Series()
    dna: Dna = Dna()

    def __post_init__(self):
        check_choice("task", self.task, TASKS)

    @property
    def chosen(self) -> Any:
        """The field that ``task`` names."""
        return getattr(self, self.task)


def arms(config: Config) -> dict[str, Arm]:
    """Arms of the chosen task."""
    return config.chosen.arms_of()


def measure(config: Config, trained: Mapping[str, Trained], key: jax.Array) -> dict[str, float]:
    """Numbers across arms, see ``measure`` of the tasks."""
    return config.chosen.measure(trained)


def figures(config: Config, trained: Mapping[str, Trained], metrics: Mapping[str, float]) -> dict[str, Any]:
    """The needle: accuracy of every arm at both lengths."""
    if config.task != "needle":
        return {}
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    names, task = list(trained), config.needle.task
    places = np.arange(len(names))
    for shift, (suffix, times) in zip((-0.2, 0.2), (("", 1), ("_longer", config.needle.longer))):
        heights = [metrics[f"{name}/accuracy{suffix}"] for name in names]
        axes.bar(places + shift, heights, 0.38, label=f"{times * task.time} tokens")
    axes.axhline(1 / task.pairs, color="0.5", linewidth=1, linestyle="--")
    axes.annotate("any value that was there ", (1, 1 / task.pairs), xycoords=("axes fraction", "data"), ha="right",
                  va="bottom", fontsize=9)  # fmt: skip
    axes.set_xticks(places, names)
    axes.set(ylabel="accuracy", ylim=(0, 1.05))
    axes.legend(frameon=False, ncols=2)
    return {"needle.png": figure}


def stand_in(config: Config, folder: pathlib.Path) -> Config:
    """Files of the public data's layout where a path is missing."""
    if config.task == "language" and not config.language.path:
        count = config.language.held_out + 8 * config.language.time
        path = folder / "tokens.bin"
        random = np.random.default_rng(0)
        random.integers(0, config.language.vocab_size, count).astype("<u2").tofile(path)
        return dataclasses.replace(config, language=dataclasses.replace(config.language, path=str(path)))
    if config.task == "series" and not config.series.path:
        path = stand_ins.series(folder, steps=57_600)
        return dataclasses.replace(config, series=dataclasses.replace(config.series, path=path))
    if config.task == "dna" and not config.dna.path:
        path = stand_ins.dna(folder, time=config.dna.time)
        return dataclasses.replace(config, dna=dataclasses.replace(config.dna, path=path))
    return config


SMOKE = Needle(
    arms=("swa", "lmm"), dim=8, mlp_dim=8, layer=Layer(chunk_size=32, persistent=0),
    task=KeyValueNeedle(time=12, pairs=2), training=Training(steps=2, batch_size=4, steps_per_call=2), test_size=16,
)  # fmt: skip

register(
    Experiment(
        name="titans",
        paper="Behrouz, Zhong and Mirrokni 2025, Titans: Learning to Memorize at Test Time",
        claim="A neural memory that learns at test time answers from far beyond the window of attention, also at twice the "
        "length it was trained at.",
        presets={"smoke": Config(needle=SMOKE), "quick": Config(), "paper": Config(task="language")},
        arms=arms,
        measure=measure,
        figures=figures,
        stand_in=stand_in,
        checks={
            "quick": (
                Check("memory alone finds the needle", "lmm/accuracy", ">=", 0.9),
                Check("memory alone, at twice the length", "lmm/accuracy_longer", ">=", 0.8),
                Check("attention with a window cannot see it", "swa/accuracy", "<=", 0.3),
                Check("attention with a window, at twice the length", "swa/accuracy_longer", "<=", 0.3),
                Check("memory as a gate finds it", "mag/accuracy", ">=", 0.6),
                Check("memory as a gate above attention with a window", "above_swa/mag", ">=", 0.3),
            ),
            "paper": (
                Check("memory alone below the Transformer's perplexity", "below transformer/lmm", ">", 0.0),
                Check("memory as a gate below the Transformer's perplexity", "below transformer/mag", ">", 0.0),
            ),
        },
        next_steps="other memories with --set=needle.arms=lmm,linear_memory,ttt_linear,gated_deltanet; longer training with "
        "--set=needle.training.steps=3000; the other tasks with --preset=paper --set=task=series or dna",
    )
)  # fmt: skip
