"""The main job: a byte-level language model on the source code of Python's standard library, compared with xz.

Validation runs through whole held-out files in long streams, with the state carried from segment to segment, so the
model may use everything it has read in its stream. ``xz -9`` compresses the same bytes as one file.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

import zoo
from experiments.arms import language_modelling
from experiments.experiment import Arm, Check, Experiment, Training, register
from zoo.tasks.byte_text import ByteText, load_bytes, order0_entropy, streams, xz_bits


@dataclasses.dataclass(frozen=True)
class Model:
    """The language model; fields as in ``zoo.LanguageModel``."""

    dim: int = 128
    pattern: tuple[str, ...] = ("gru",)
    depth: int = 2
    mlp: str = "swiglu"
    mlp_dim: int | None = None
    positions: str = "none"
    dropout: float = 0.0
    remat: bool = False
    dtype: str = "float32"


@dataclasses.dataclass(frozen=True)
class Data:
    """``path`` to a text file, or "" for the standard library; windows of ``time`` bytes; ``validation_bytes`` held out."""

    path: str = ""
    time: int = 256
    validation_bytes: int = 131_072
    validation_streams: int = 32


@dataclasses.dataclass(frozen=True)
class Config:
    """Configuration of the main job."""

    model: Model = Model()
    data: Data = Data()
    training: Training = Training(
        steps=1200,
        batch_size=8,
        learning_rate=5e-3,
        schedule="cosine",
        warmup=50,
        weight_decay=0.01,
        steps_per_call=10,
        evaluate_every=200,
        checkpoint_every=200,
    )
    sample_bytes: int = 300


def held_out(config: Config) -> np.ndarray:
    """The validation bytes: the beginning of the held-out files."""
    return load_bytes("validation", config.data.path)[: config.data.validation_bytes]


def arms(config: Config) -> dict[str, Arm]:
    """One arm, ``lm``; metrics ``bits`` (per byte, held out), ``accuracy``."""
    model = zoo.LanguageModel(vocab_size=256, **dataclasses.asdict(config.model))
    task = ByteText(config.data.time, "train", config.data.path)
    rows = streams(held_out(config), config.data.validation_streams, config.data.time).astype(np.int32)

    def evaluate(params, key, data):
        inputs, targets = (
            d.reshape(d.shape[0], -1, config.data.time).swapaxes(0, 1) for d in (data[:, :-1], data[:, 1:])
        )

        def segment(state, batch):
            logits, state = model.apply(params, batch[0], state)
            log_p = jnp.take_along_axis(jax.nn.log_softmax(logits), batch[1][..., None], axis=-1)
            return state, (jnp.mean(log_p), jnp.mean(jnp.argmax(logits, axis=-1) == batch[1]))

        _, (log_p, hits) = jax.lax.scan(segment, model.initial_state(data.shape[0]), (inputs, targets))
        return {"bits": -jnp.mean(log_p) / jnp.log(2.0), "accuracy": jnp.mean(hits)}

    arm = language_modelling(model, task, config.training)
    return {"lm": dataclasses.replace(arm, evaluate=evaluate, evaluation_data=jnp.asarray(rows))}


def measure(config: Config, trained, key) -> dict[str, float]:
    """What the model is compared with, on the same held-out bytes."""
    raw = held_out(config)
    bits = trained["lm"].metrics["bits"]
    order0, xz = order0_entropy(raw), xz_bits(raw)
    return {
        "order0_bits": order0,
        "xz_bits": xz,
        "bits_below_order0": order0 - bits,
        "bits_over_xz": bits - xz,
        "validation_bytes": float(len(raw)),
        "training_bytes": float(len(load_bytes("train", config.data.path))),
    }


def figures(config: Config, trained, metrics):
    """Bits per byte against training steps, with the two references."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    rows = [row for row in trained["lm"].history if "bits" in row]
    axes.plot([r["step"] for r in rows], [r["bits"] for r in rows], color="0.7", label="training batches")
    rows = [row for row in trained["lm"].history if "evaluation/bits" in row]
    axes.plot([r["step"] for r in rows], [r["evaluation/bits"] for r in rows], "o-", label="held-out files")
    for name, label in (("order0_bits", "byte frequencies alone"), ("xz_bits", "xz -9 on the held-out bytes")):
        axes.axhline(metrics[name], linestyle="--", linewidth=1, color="k")
        axes.annotate(f"{label}: {metrics[name]:.2f}", (0.99, metrics[name]), xycoords=("axes fraction", "data"),
                      xytext=(0, 3), textcoords="offset points", ha="right", fontsize=9)  # fmt: skip
    axes.set(xlabel="optimiser steps", ylabel="bits per byte", title="Bytes of Python's standard library")
    axes.legend(loc="upper right")
    return {"bits_per_byte.png": figure}


def texts(config: Config, trained, metrics, key) -> dict[str, str]:
    """A sample from the trained model, and the comparison in words."""
    model = trained["lm"].arm.model
    prompt = b"    def __init__(self"
    out = zoo.generate(
        model, trained["lm"].params, [list(prompt)], max_new_tokens=config.sample_bytes, key=key, temperature=0.7
    )
    sample = (prompt + bytes(np.asarray(out.tokens[0], np.uint8).tolist())).decode("utf-8", "replace")
    sample = "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in sample)
    bits, xz = trained["lm"].metrics["bits"], metrics["xz_bits"]
    versus = f"{100 * (xz - bits) / xz:.0f} % fewer than" if bits < xz else f"{100 * (bits - xz) / xz:.0f} % more than"
    return {
        "Comparison": (
            f"{bits:.3f} bits per byte on {metrics['validation_bytes']:,.0f} held-out bytes, against "
            f"{metrics['order0_bits']:.3f} from byte frequencies alone; {versus} xz -9 ({xz:.3f})."
        ),
        "Sample (temperature 0.7)": sample,
    }


register(
    Experiment(
        name="byte_lm",
        paper="Graves 2013, Generating Sequences With Recurrent Neural Networks (byte-level language modelling)",
        claim="A small recurrent model learns the structure of source code from raw bytes within minutes.",
        presets={
            "smoke": Config(
                Model(dim=16, depth=1),
                Data(time=32, validation_bytes=2048, validation_streams=4),
                Training(steps=4, batch_size=4, steps_per_call=2, evaluate_every=2),
                sample_bytes=8,
            ),
            "quick": Config(),
            "paper": Config(
                Model(dim=1024, pattern=("lstm",), depth=7, dropout=0.1, dtype="bfloat16"),
                Data(time=1024, validation_bytes=474_000),
                Training(
                    steps=50_000,
                    batch_size=256,
                    learning_rate=1e-3,
                    schedule="cosine",
                    warmup=1000,
                    weight_decay=0.1,
                    steps_per_call=20,
                    evaluate_every=1000,
                    checkpoint_every=1000,
                ),
            ),
        },
        arms=arms,
        measure=measure,
        figures=figures,
        texts=texts,
        checks={
            "quick": (
                Check("held-out bits per byte well below byte frequencies alone", "bits_below_order0", ">=", 1.5),
                Check("held-out bits per byte are finite", "lm/bits", "finite"),
            ),
            "paper": (Check("held-out bits per byte below xz -9", "bits_over_xz", "<", 0.0),),
        },
        next_steps=(
            "try another architecture with --set=model.pattern=lru,attention, a text of yours with "
            "--set=data.path=FILE, or longer with --set=training.steps=5000"
        ),
    )
)
