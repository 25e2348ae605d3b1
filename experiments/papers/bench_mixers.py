"""Which architecture can do what: any mixers of the zoo on a battery of small problems, at matched parameters.

    python -m experiments.launch --experiment=bench_mixers --set=mixers=lstm,mamba2,deltaproduct
    python -m experiments.launch --experiment=bench_mixers --set=problems=parity,recall --set=replicas=5

Every mixer gets the same language model around it (``depth`` blocks of mixer and GELU layer), as wide as ``parameters``
allow: the largest width that is a multiple of ``width_step`` and leaves the feed-forward layers at least as wide as the
model, then the feed-forward width that comes nearest. Nothing is tuned for a problem or a mixer but what ``OPTIONS``
says. The problems:

    parity       is the number of ones so far odd?                            regular, solvable group
    s3, s5       the product of permutations so far                           S3 is solvable, S5 is not
    counting     how often has this symbol come so far?                       counters
    copying      symbols at random places among blanks, in their order        memory that chooses
    induction    what followed the special token when it was last seen?       in-context copying
    recall       MQAR: values of several keys                                 associative memory
    needle       a key after a marker in a stream of fillers                  one thing kept for long
    languages    strings of an automaton never seen before: what may follow?  in-context learning

A cell of the table is the accuracy at the steps that count, the mean over ``replicas`` models from different seeds with
the spread from the worst to the best, once at the length of the training and once at ``stretch`` times it. "by chance" is
the best constant answer's accuracy, measured on the same examples.

All problems and replicas of a mixer are trained at once, as one batched program (an arm is a mixer): they share nothing,
the gradient of each is clipped by itself, and one that is not finite is left out of the step.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import zoo
from experiments.experiment import Arm, Check, Experiment, Trained, Training, register
from zoo.analysis import count_parameters
from zoo.checks import check_choice, check_positive
from zoo.registry import entry
from zoo.tasks import (
    AutomatonSampler,
    Battery,
    Counting,
    GroupWords,
    InductionHeads,
    MultiQueryAssociativeRecall,
    Parity,
    PasskeyStream,
    RegBench,
    SelectiveCopying,
    Task,
)

# What a mixer's name stands for here where its defaults are not what one would use, and names for variants.
OPTIONS: dict[str, dict[str, Any]] = {
    "mamba2": {"name": "mamba2", "head_dim": 16, "state_dim": 32},
    "deltanet_negative": {"name": "deltanet", "allow_neg_eigval": True},
    "deltaproduct": {"name": "deltaproduct", "householders": 2},
}


def problems_of(time: int, stretch: int = 1, split: str = "train") -> dict[str, Task]:
    """Every problem at about ``stretch * time`` tokens a row, with as many things to remember as at ``time``."""
    things, length = max(2, time // 8), stretch * time
    strings = 1 + length // 6
    return {
        "parity": Parity(time=length),
        "s3": GroupWords(group="S3", time=length),
        "s5": GroupWords(group="S5", time=length, limit_to=2),
        "counting": Counting(time=length),
        "copying": SelectiveCopying(time=length - things, items=things),
        "induction": InductionHeads(time=length),
        "recall": MultiQueryAssociativeRecall(vocab_size=4 * time, time=length - length % 2, pairs=things),
        "needle": PasskeyStream(time=length),
        "languages": RegBench(
            AutomatonSampler(symbols=6, states=(4, 6), alphabet=(4, 6)), train=1000, held_out=100, split=split,
            strings=(strings, strings), lengths=(3, 8), time=length, fresh=True,
        ),
    }  # fmt: skip


PROBLEMS = tuple(problems_of(32))
LEAST_TIME = 8  # two pairs of recall and their queries
MOST_STRETCH = 3  # recall has 4 times as many tokens as steps of training


@dataclasses.dataclass(frozen=True)
class Config:
    """What is compared, and how large.

    Attributes:
      mixers: names of the zoo, or of ``OPTIONS``; a name may be followed by options: "mamba2:state_dim=16;head_dim=8".
      problems: some of ``PROBLEMS``.
      time: length of training examples.
      stretch: the second column is measured at ``stretch`` times that length.
      replicas: models from different seeds, per mixer and problem.
      parameters: of one model, embeddings included, as nearly as widths allow.
      width_step: widths are multiples of it.
      depth: blocks.
      test_size: examples per cell and replica.
      training: of all members alike; ``clip_norm`` is applied to each.
    """

    mixers: tuple[str, ...] = ("lstm", "mamba2", "deltaproduct", "attention")
    problems: tuple[str, ...] = PROBLEMS
    time: int = 16
    stretch: int = 2
    replicas: int = 3
    parameters: int = 12_000
    width_step: int = 8
    depth: int = 2
    test_size: int = 128
    training: Training = Training(
        steps=400, batch_size=16, learning_rate=3e-3, schedule="cosine", warmup=40, b2=0.98, steps_per_call=50
    )

    def __post_init__(self):
        for name in ("time", "stretch", "replicas", "parameters", "width_step", "depth", "test_size"):
            check_positive(name, getattr(self, name))
        for name in ("mixers", "problems"):
            if not getattr(self, name):
                raise ValueError(f"{name} is empty; name at least one")
        if self.time < LEAST_TIME:
            raise ValueError(f"time must be at least {LEAST_TIME}, got {self.time}")
        if self.stretch > MOST_STRETCH:
            raise ValueError(f"stretch must be at most {MOST_STRETCH}, got {self.stretch}")
        for problem in self.problems:
            check_choice("problems", problem, PROBLEMS)
        for name in self.mixers:
            mixer_spec(name)


def mixer_spec(text: str) -> dict[str, Any]:
    """The registered name and options that ``text`` stands for: "lstm", "deltanet_negative", "mamba2:state_dim=16"."""
    name, _, rest = text.partition(":")
    spec = dict(OPTIONS.get(name, {"name": name}))
    for option in filter(None, rest.split(";")):
        key, equals, value = option.partition("=")
        if not equals:
            raise ValueError(f"mixers: {text!r}: options have the form name:option=value;option=value")
        spec[key.strip()] = _read(value.strip())
    if not entry(spec["name"]).cls.causal:
        raise ValueError(f"mixers: {text!r} sees the future; these problems are read once, from the left")
    return spec


def _read(value: str) -> Any:
    """A number, a truth value or a name."""
    for convert in (int, float):
        try:
            return convert(value)
        except ValueError:
            continue
    return {"true": True, "false": False, "none": None}.get(value.lower(), value)


def model(config: Config, text: str, vocab_size: int) -> zoo.LanguageModel:
    """The language model around a mixer whose parameters come nearest to ``config.parameters``."""

    def made(dim: int, mlp_dim: int) -> zoo.LanguageModel:
        return zoo.LanguageModel(
            vocab_size=vocab_size, dim=dim, pattern=(mixer_spec(text),), depth=config.depth, mlp="gelu", mlp_dim=mlp_dim,
            tie_embeddings=False,
        )  # fmt: skip

    @functools.cache
    def size(dim: int, mlp_dim: int) -> int:
        variables = jax.eval_shape(made(dim, mlp_dim).init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))
        return count_parameters(variables["params"])

    dim = None
    for candidate in range(config.width_step, config.parameters, config.width_step):
        try:
            fits = size(candidate, candidate) <= config.parameters
        except ValueError:  # not a width for this mixer: its heads do not divide it
            continue
        if not fits:
            break
        dim = candidate
    if dim is None:
        raise ValueError(f"{text} has more than parameters={config.parameters} at every width it can have")
    per_unit = size(dim, dim + 1) - size(dim, dim)
    return made(dim, dim + round((config.parameters - size(dim, dim)) / per_unit))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def clipped(params: Any, norm: float | None) -> Any:
    """``params``, whose gradient is scaled down to global norm ``norm``, and is 0 where it is not finite."""
    return params


def _clip(norm: float | None, _: None, gradient: Any) -> tuple[Any]:
    length = optax.global_norm(gradient)
    scale = 1.0 if norm is None else jnp.minimum(1.0, norm / jnp.maximum(length, 1e-12))
    return (jax.tree.map(lambda g: jnp.where(jnp.isfinite(length), scale * g, 0).astype(g.dtype), gradient),)


clipped.defvjp(lambda params, norm: (params, None), _clip)


def arms(config: Config) -> dict[str, Arm]:
    """One for each mixer: all problems and replicas."""
    return {name: _arm(config, name) for name in config.mixers}


def _arm(config: Config, name: str) -> Arm:
    task, short, long = (
        tuple(problems_of(config.time, *how)[p] for p in config.problems)
        for how in ((), (1, "test"), (config.stretch, "test"))
    )
    task, both = Battery(task), Battery((*short, *long))  # one program for the two lengths
    network = model(config, name, both.vocab_size)
    problems, replicas = len(config.problems), config.replicas

    def members(array):
        """[B, P, T] -> [P R, B, T]: every replica of a problem reads the same examples."""
        return jnp.repeat(jnp.moveaxis(array, 0, 1), replicas, axis=0)

    def init(key, batch):
        keys = jax.random.split(key, problems * replicas)
        return jax.vmap(network.init, (0, None))(keys, batch.inputs[:1, 0])

    def scores(params, batch):
        """Loss and accuracy [P R]."""

        def one(params, inputs, targets, mask, right):
            params = clipped(params, config.training.clip_norm)
            logits, _ = network.apply(params, inputs)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
            said = jnp.argmax(logits, axis=-1)[..., None]
            hits = jnp.take_along_axis(right, said, axis=-1)[..., 0]
            count = jnp.maximum(jnp.sum(mask), 1)
            return jnp.sum(jnp.where(mask, losses, 0)) / count, jnp.sum(mask & hits) / count

        return jax.vmap(one)(params, *(members(a) for a in (batch.inputs, batch.targets, batch.mask, batch.extra)))

    def named(values, quantity):
        table = values.reshape(problems, replicas)
        return {f"{p}_{quantity}_{r}": table[i, r] for i, p in enumerate(config.problems) for r in range(replicas)}

    def loss(params, batch, key, step, carry):
        losses, hits = scores(params, batch)
        # The sum, so that no member's gradient depends on how many others there are.
        return jnp.sum(jnp.where(jnp.isfinite(losses), losses, 0)), ({"accuracy": jnp.mean(hits)}, carry)

    def evaluate(params, key, data):
        batch = both.batch(key, config.test_size, data)
        losses, hits = scores(jax.tree.map(lambda p: jnp.concatenate([p, p]), params), batch)
        chance = best_constant(batch)
        found = {"loss": jnp.mean(losses), "finite_members": jnp.mean(jnp.isfinite(losses))}
        for i, quantity in enumerate(("accuracy", "longer")):
            found |= named(jnp.split(hits, 2)[i], quantity)
            found |= {f"{p}_chance_{quantity}": v for p, v in zip(config.problems, jnp.split(chance, 2)[i])}
        return found

    training = dataclasses.replace(config.training, clip_norm=None)
    return Arm(init, loss, task, training, evaluate, evaluation_data=both.data(), model=network)


def best_constant(batch: Any) -> jax.Array:
    """Accuracy [P] of the best constant answer."""
    steps = batch.mask.astype(jnp.float32)
    counts = jnp.einsum("bptv,bpt->pv", batch.extra.astype(jnp.float32), steps)
    return jnp.max(counts, axis=1) / jnp.maximum(jnp.sum(steps, axis=(0, 2)), 1)


def cells(config: Config, trained: Mapping[str, Trained]) -> dict[tuple[str, str, str], np.ndarray]:
    """(mixer, problem, "accuracy" or "longer") -> accuracy of every replica."""
    return {
        (name, problem, quantity): np.array(
            [run.metrics[f"{problem}_{quantity}_{r}"] for r in range(config.replicas)]
        )
        for name, run in trained.items()
        for problem in config.problems
        for quantity in ("accuracy", "longer")
    }  # fmt: skip


def measure(config: Config, trained: Mapping[str, Trained], key: jax.Array) -> dict[str, float]:
    """Means over replicas, and sizes."""
    found = {
        f"{name}/{problem}" + ("" if quantity == "accuracy" else "_longer"): float(values.mean())
        for (name, problem, quantity), values in cells(config, trained).items()
    }
    for name, run in trained.items():
        members = len(config.problems) * config.replicas
        found[f"{name}/parameters"] = count_parameters(run.params["params"]) / members
        found[f"{name}/seconds"] = run.seconds
    found["finite_members"] = min(run.metrics["finite_members"] for run in trained.values())
    return found


def table(config: Config, trained: Mapping[str, Trained], metrics: Mapping[str, float], quantity: str) -> str:
    """A Markdown table: a row for every mixer, best mean of a column in bold."""
    values = cells(config, trained)
    lines = ["| mixer | parameters | " + " | ".join(config.problems) + " |", "|---" * (len(config.problems) + 2) + "|"]
    best = {p: max(values[n, p, quantity].mean() for n in trained) for p in config.problems}
    for name in trained:
        row = [name, f"{metrics[f'{name}/parameters']:,.0f}"]
        for problem in config.problems:
            cell = values[name, problem, quantity]
            text = f"{cell.mean():.2f}"
            text = f"**{text}**" if cell.mean() >= best[problem] - 0.005 else text
            row.append(f"{text} ({cell.min():.2f}-{cell.max():.2f})" if config.replicas > 1 else text)
        lines.append("| " + " | ".join(row) + " |")
    first = next(iter(trained.values())).metrics
    chance = [f"{first[f'{p}_chance_{quantity}']:.2f}" for p in config.problems]
    return "\n".join([*lines, "| by chance | | " + " | ".join(chance) + " |"])


def texts(config: Config, trained: Mapping[str, Trained], metrics: Mapping[str, float], key: Any) -> dict[str, str]:
    """The two tables."""
    if not trained:
        return {}
    return {
        f"Accuracy at {config.time} tokens, the length of the training: mean (worst-best) of {config.replicas}": table(
            config, trained, metrics, "accuracy"
        ),
        f"Accuracy at {config.stretch * config.time} tokens": table(config, trained, metrics, "longer"),
    }


def figures(config: Config, trained: Mapping[str, Trained], metrics: Mapping[str, float]) -> dict[str, Any]:
    """who_can_do_what.png: both tables as pictures, 0 being chance and 1 all right, with every replica as a dot."""
    from matplotlib.figure import Figure

    if not trained:
        return {}
    values, first = cells(config, trained), next(iter(trained.values())).metrics
    names, problems = list(trained), config.problems
    figure = Figure(figsize=(2.5 + 1.05 * len(problems), 1.6 + 1.3 * len(names)), layout="constrained")
    titles = (f"{config.time} tokens, as trained", f"{config.stretch * config.time} tokens")
    for axes, quantity, title in zip(figure.subplots(2, 1, sharex=True), ("accuracy", "longer"), titles):
        chance = np.array([first[f"{p}_chance_{quantity}"] for p in problems])
        means = np.array([[values[n, p, quantity].mean() for p in problems] for n in names])
        shades = np.clip((means - chance) / np.maximum(1 - chance, 1e-6), 0, 1)
        axes.imshow(shades, vmin=0, vmax=1, cmap="Blues", aspect="auto")
        for i, name in enumerate(names):
            for j, problem in enumerate(problems):
                cell, ink = values[name, problem, quantity], "white" if shades[i, j] > 0.6 else "black"
                axes.text(j, i - 0.12, f"{cell.mean():.2f}", ha="center", va="center", color=ink, fontsize=9)
                axes.plot(j - 0.4 + 0.8 * cell, np.full(len(cell), i + 0.27), "o", color=ink, markersize=2.5, alpha=0.8)
                axes.plot([j - 0.4, j + 0.4], [i + 0.27] * 2, "-", color=ink, linewidth=0.5, alpha=0.5)
        axes.set_yticks(range(len(names)), names)
        axes.set_xticks(range(len(problems)), problems)
        axes.set_title(f"Accuracy at {title}", fontsize=10)
        axes.tick_params(length=0)
    return {"who_can_do_what.png": figure}


ALL = (
    "lstm", "gru", "gilr", "hgrn", "lru", "s5", "s4d", "h3", "hyena", "mamba", "mamba2", "linear_attention", "retnet", "gla",
    "based", "deltanet", "deltanet_negative", "gated_deltanet", "deltaproduct", "rwkv4", "longhorn", "ttt_linear",
    "titans_memory", "yaad", "mlstm", "rg_lru", "aaren", "attention",
)  # fmt: skip

register(
    Experiment(
        name="bench_mixers",
        paper="a comparison of the zoo's own, with problems of the papers that it holds",
        claim="What a sequence mixer can learn depends on its recurrence: no kind of state is good at everything.",
        presets={
            "smoke": Config(
                mixers=("gru",), problems=("parity", "s3", "needle"), time=8, replicas=2, parameters=1500, depth=1,
                test_size=16, training=Training(steps=4, batch_size=4, learning_rate=3e-3, steps_per_call=2),
            ),
            "quick": Config(),
            "paper": Config(
                mixers=ALL, time=128, parameters=1_000_000, width_step=16, depth=4, test_size=512,
                training=Training(
                    steps=20_000, batch_size=64, learning_rate=1e-3, schedule="cosine", warmup=1000, b2=0.98,
                    steps_per_call=100, checkpoint_every=2000,
                ),
            ),
        },
        arms=arms,
        measure=measure,
        figures=figures,
        texts=texts,
        checks=dict.fromkeys(("smoke", "quick", "paper"), (Check("every model is finite", "finite_members", "==", 1.0),)),
        notes=(
            "A measurement and no claim of a paper, so the only check is that every model stayed finite. Quick models are "
            "small and trained for seconds: what a mixer does not learn here it may learn in more time; what it learns so "
            "fast comes easily to it. Mixers run with the defaults of the zoo but for what OPTIONS says."
        ),
        next_steps="--set=mixers=... with any names that `python -m zoo` lists; --preset=paper on an accelerator",
    )
)  # fmt: skip
