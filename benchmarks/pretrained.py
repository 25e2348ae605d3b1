"""Mamba and Mamba-2 against transformers (torch, CPU) with the same weights: ``python -m benchmarks.pretrained``.

    python -m benchmarks.pretrained --sizes small 130m --lengths 512 2048 8192

A training step is value and gradient of the next-token loss by all parameters; decoding is greedy, 64 tokens after a
prompt of 16, by ``zoo.generate`` and by ``model.generate`` with its cache. One row, float32, random weights that ours
saves and theirs loads. transformers runs these layers on a CPU by its plain torch path (its fast kernels want CUDA): for
Mamba a Python loop over time, for Mamba-2 chunks of 256. Runs alternate; medians; needs the extra [parity].
"""

import argparse
import logging
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import zoo
from benchmarks.cpu import alternate, row
from zoo.layers import cross_entropy

SIZES = {"small": {"dim": 256, "depth": 4}, "130m": {"dim": 768, "depth": 24}}
MIXERS = {"mamba": {"name": "mamba"}, "mamba2": {"name": "mamba2"}}
DECODED = 64
# Theirs keeps [E, T, N] arrays for every layer and step of a loop over time: beyond this it takes minutes and many GB.
LONGEST_STEP = {("mamba", "130m"): 512, ("mamba2", "130m"): 2048, ("mamba", "small"): 2048, ("mamba2", "small"): 8192}


def made(kind: str, size: str, folder: Path) -> tuple:
    """(our model, our parameters, theirs with the same weights)."""
    import transformers

    logging.getLogger("transformers").setLevel(logging.ERROR)
    model = zoo.LanguageModel(
        vocab_size=50288, pattern=(MIXERS[kind],), mlp="none", norm="rms", norm_eps=1e-5, embedding_scale=1.0,
        tie_embeddings=True, **SIZES[size],
    )  # fmt: skip
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))
    zoo.save_pretrained(model, params, folder / f"{kind}-{size}", layout=kind)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder / f"{kind}-{size}", dtype="float32")
    return model, params, theirs.eval()


def measure(
    sizes: Sequence[str] = tuple(SIZES), lengths: Sequence[int] = (512, 2048, 8192), repeats: int = 3
) -> list[dict]:
    """Rows for every kind, size and length."""
    import torch

    torch.set_num_threads(os.cpu_count() or 1)
    rows = []
    with tempfile.TemporaryDirectory() as place:
        for size in sizes:
            for kind in MIXERS:
                model, params, theirs = made(kind, size, Path(place))
                rows.append(_decoding(kind, size, model, params, theirs, repeats))
                for length in lengths:
                    rows += _lengths(kind, size, model, params, theirs, length, repeats)
    return rows


def _told(result: dict) -> dict:
    """Prints a row at once: the long ones take minutes."""
    print({k: f"{v:.4g}" if isinstance(v, float) else v for k, v in result.items()}, file=sys.stderr, flush=True)
    return result


def _lengths(kind, size, model, params, theirs, length, repeats) -> list[dict]:
    import torch

    tokens = np.random.default_rng(0).integers(0, 50000, (1, length))
    ids, shape = torch.tensor(tokens), f"{size} B=1 T={length}"
    forward = jax.jit(lambda p, t: model.apply(p, t)[0])

    def theirs_forward():
        with torch.no_grad():
            return np.float32(theirs(ids, use_cache=False).logits[0, -1, 0])

    rows = []
    a, b = alternate(lambda: forward(params, tokens), theirs_forward, repeats)
    rows.append(_told(row(f"{kind} forward", shape, "transformers, torch", a, b)))
    if length > LONGEST_STEP[kind, size]:
        return rows
    step = jax.jit(jax.value_and_grad(lambda p, t: cross_entropy(model.apply(p, t[:, :-1])[0], t[:, 1:])))

    def theirs_step():
        theirs.zero_grad()
        loss = theirs(ids, labels=ids, use_cache=False).loss
        loss.backward()
        return np.float32(loss.detach())

    a, b = alternate(lambda: step(params, tokens), theirs_step, repeats)
    rows.append(_told(row(f"{kind} forward+backward", shape, "transformers, torch", a, b)))
    return rows


def _decoding(kind, size, model, params, theirs, repeats) -> dict:
    import torch

    prompt = np.random.default_rng(1).integers(0, 50000, (1, 16))
    ids = torch.tensor(prompt)

    def theirs_generate():
        with torch.no_grad():
            out = theirs.generate(ids, max_new_tokens=DECODED, do_sample=False, eos_token_id=None, pad_token_id=0)
        return out.numpy()

    def ours():
        return zoo.generate(
            model, params, jnp.asarray(prompt, jnp.int32), max_new_tokens=DECODED, temperature=0.0
        ).tokens

    a, b = alternate(ours, theirs_generate, repeats)
    return _told(
        row(f"{kind} decoding", f"{size} B=1 N={DECODED}", "transformers, torch", a, b, tokens_per_second=DECODED / a)
    )


def growth(
    mixers: Sequence[str], lengths: Sequence[int] = (1024, 4096, 16384, 65536), dim: int = 16, repeats: int = 3
) -> list[dict]:
    """Exponents of time and of memory in T of value and gradient, fitted over ``lengths``, for every mixer."""
    from zoo.analysis import compare

    rows = []
    for name in mixers:
        measured = compare([name], lengths=lengths, dim=dim, repeats=repeats, decoded=1)
        time_slope, memory_slope = (
            float(np.polyfit(np.log(lengths), np.log([getattr(m, field) for m in measured]), 1)[0])
            for field in ("step_seconds", "peak_bytes")
        )
        first, last = measured[0].step_seconds, measured[-1].step_seconds
        rows.append(
            _told(row(f"{name} growth", f"D={dim} B=1 T={lengths[0]}..{lengths[-1]}", f"T={lengths[0]}", last, first,
                time_exponent=time_slope, memory_exponent=memory_slope))
        )  # fmt: skip
    return rows


def main() -> None:
    """Prints the rows."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pretrained", description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="*", choices=SIZES, default=list(SIZES))
    parser.add_argument("--lengths", nargs="*", type=int, default=[512, 2048, 8192])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--growth", nargs="*", metavar="MIXER", help="instead: growth in T of these mixers")
    arguments = parser.parse_args()
    if arguments.growth:
        growth(arguments.growth)
    else:
        measure(arguments.sizes, arguments.lengths, arguments.repeats)


if __name__ == "__main__":
    main()
