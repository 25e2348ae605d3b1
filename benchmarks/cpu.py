"""``python -m benchmarks.cpu`` measures the zoo against its alternatives on this machine's CPU, in one run.

Every row compares two ways of doing the same work, alternated so that a noisy machine disturbs both alike; times are
medians and ``ratio`` is theirs / ours (above 1: the zoo is faster). Results go to benchmarks/results/cpu-<date>.json and
.md; sections measured earlier on the same day stay. ``--sections`` picks some of: scans, recurrent, state_space,
decoding, trainer, imports, compilation. benchmarks/scans.py, recurrent.py and state_space.py hold the large sections.
"""

import argparse
import datetime
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

import zoo

RESULTS = pathlib.Path(__file__).parent / "results"


def alternate(ours: Callable[[], object], theirs: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Median seconds of two functions, run in turns; the first call of each (compilation) is not counted."""
    times: tuple[list[float], list[float]] = ([], [])
    jax.block_until_ready((ours(), theirs()))
    for _ in range(repeats):
        for function, record in zip((ours, theirs), times):
            start = time.perf_counter()
            jax.block_until_ready(function())
            record.append(time.perf_counter() - start)
    return statistics.median(times[0]), statistics.median(times[1])


def row(name: str, shape: str, alternative: str, ours: float, theirs: float, **extra: float) -> dict:
    """One line of the results."""
    return {"name": name, "shape": shape, "alternative": alternative, "seconds_ours": ours, "seconds_theirs": theirs,
            "ratio": theirs / ours, **extra}  # fmt: skip


def scans() -> list[dict]:
    """linear_scan against lax.associative_scan and a plain lax.scan."""
    from benchmarks.scans import measure

    return measure()


def recurrent() -> list[dict]:
    """LSTM and GRU layers against flax.linen.RNN and torch.nn."""
    from benchmarks.recurrent import measure

    return measure()


def state_space() -> list[dict]:
    """S5 against lax.associative_scan; S4D and S4 in kernel form against their scan form."""
    from benchmarks.state_space import measure

    return measure()


def pretrained() -> list[dict]:
    """Mamba and Mamba-2 with the same weights: forward, training step and decoding against transformers in torch."""
    from benchmarks.pretrained import measure

    return measure()


def growth() -> list[dict]:
    """Training steps at T = 1,024 to 65,536: ours is the longest, theirs the shortest; exponents are fitted in T."""
    from benchmarks.pretrained import growth as measure

    return measure(("s4", "s4d", "dss", "s5", "lru", "liquid_s4", "h3", "gss", "mamba", "mamba2"))


def decoding() -> list[dict]:
    """Tokens per second of zoo.generate against a Python loop over the jitted one-token call."""
    return [_decoding(mixer, batch) for mixer in ("lstm", "gru", "s5", "attention") for batch in (1, 16)]


def _decoding(mixer: str, batch: int, count: int = 128) -> dict:
    model = zoo.LanguageModel(vocab_size=256, dim=128, pattern=(mixer,), depth=4)
    prompt = jnp.ones((batch, 16), jnp.int32)
    params = jax.jit(model.init)(jax.random.key(0), prompt)
    keys = jax.random.split(jax.random.key(1), batch)
    call = jax.jit(model.apply)

    @jax.jit
    def draw(logits, n):
        return jax.vmap(jax.random.categorical)(jax.vmap(jax.random.fold_in, (0, None))(keys, n), logits[:, -1])

    def ours():
        return zoo.generate(model, params, prompt, max_new_tokens=count, key=keys).tokens

    def theirs():
        logits, state = call(params, prompt)
        out = []
        for n in range(count):
            out.append(draw(logits, n))
            logits, state = call(params, out[-1][:, None], state)
        return jnp.stack(out, axis=1)

    a, b = alternate(ours, theirs, 5)
    shape = f"B={batch} D=128 L=4 N={count}"
    return row(f"generate {mixer}", shape, "Python loop of jitted steps", a, b, tokens_per_second=batch * count / a)


def trainer() -> list[dict]:
    """The trainer against a bare jitted loop: the same model, task, optimiser and steps per call."""
    import optax

    import experiments
    from experiments.config import override
    from experiments.experiment import get
    from experiments.papers.byte_lm import arms

    overrides = {"training.steps": 300, "training.steps_per_call": 10, "training.evaluate_every": None,
                 "training.checkpoint_every": None, "training.warmup": 0, "training.schedule": "constant",
                 "model.dim": 64, "sample_bytes": 1, "data.validation_bytes": 16384, "data.time": 128}  # fmt: skip
    config = override(get("byte_lm").presets["quick"], overrides)
    arm = arms(config)["lm"]
    calls = config.training.steps // config.training.steps_per_call
    optimiser = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(config.training.learning_rate, weight_decay=config.training.weight_decay),
    )
    data = arm.task.data()

    @jax.jit
    def bare(params, state, key, data):
        def one(carry, n):
            params, state = carry
            batch = arm.task.batch(jax.random.fold_in(key, n), config.training.batch_size, data)
            loss = lambda p: arm.loss(p, batch, key, n, None)  # noqa: E731
            (value, _), grads = jax.value_and_grad(loss, has_aux=True)(params)
            updates, state = optimiser.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), value

        (params, state), losses = jax.lax.scan(one, (params, state), jnp.arange(config.training.steps_per_call))
        return params, state, losses

    params = arm.init(jax.random.key(0), arm.task.batch(jax.random.key(0), config.training.batch_size, data))
    state = optimiser.init(params)
    jax.block_until_ready(bare(params, state, jax.random.key(0), data))
    ours, theirs = [], []
    for repeat in range(3):
        with tempfile.TemporaryDirectory() as folder:
            experiments.run("byte_lm", preset="quick", overrides=overrides, workdir=folder, progress=False)
            lines = [json.loads(line) for line in (pathlib.Path(folder) / "metrics.jsonl").read_text().splitlines()]
        logged = [line for line in lines if "loss" in line]
        # From the end of the first call (which compiles) to the end of the last one.
        ours.append(logged[-1]["seconds"] - logged[0]["seconds"])
        p, s, start = params, state, None
        for call in range(calls):
            p, s, losses = bare(p, s, jax.random.fold_in(jax.random.key(repeat), call), data)
            if call == 0:
                jax.block_until_ready(losses)
                start = time.perf_counter()
        jax.block_until_ready((p, losses))
        theirs.append(time.perf_counter() - start)
    a, b = statistics.median(ours), statistics.median(theirs)
    return [row("trainer", "byte_lm D=64 T=128 B=16, 290 steps", "bare jitted loop", a, b, overhead=a / b - 1)]


def imports() -> list[dict]:
    """Seconds of ``import zoo`` beyond ``import jax``, in fresh processes."""
    ours, theirs = [], []
    for _ in range(9):
        for code, record in (("import zoo", ours), ("import jax", theirs)):
            timed = f"import time; t = time.perf_counter(); {code}; print(time.perf_counter() - t)"
            out = subprocess.run([sys.executable, "-c", timed], capture_output=True, text=True, check=True)
            record.append(float(out.stdout))
    a, b = statistics.median(ours), statistics.median(theirs)
    return [row("import zoo", "fresh process", "import jax", a, b, seconds_beyond=a - b)]


def compilation() -> list[dict]:
    """Compile time of a language model's gradient with 2 and with 24 layers; the ratio wanted is near 1."""
    rows = []
    for pattern in (("lstm",), ("s5", "attention")):
        times: dict[int, list[float]] = {2: [], 24: []}
        for _ in range(3):
            for depth, record in times.items():
                model = zoo.LanguageModel(vocab_size=256, dim=64, pattern=pattern, depth=depth)
                tokens = jnp.ones((2, 64), jnp.int32)
                params = jax.eval_shape(model.init, jax.random.key(0), tokens)
                start = time.perf_counter()
                jax.jit(jax.grad(lambda p, t, m=model: jnp.sum(m.apply(p, t)[0]))).lower(params, tokens).compile()
                record.append(time.perf_counter() - start)
        a, b = statistics.median(times[24]), statistics.median(times[2])
        rows.append(row("compile 24 layers", "+".join(pattern), "2 layers", a, b))
    return rows


SECTIONS = {
    f.__name__: f for f in (scans, recurrent, state_space, pretrained, growth, decoding, trainer, imports, compilation)
}


def markdown(results: dict) -> str:
    """The results as a table per section."""
    lines = [f"# CPU measurements, {results['date']}", "", f"{results['machine']}; {results['versions']}.", "",
             "Medians of alternating repeats; ratio = theirs / ours, above 1 the zoo is faster.", ""]  # fmt: skip
    for section, rows in results["sections"].items():
        summary = (SECTIONS[section].__doc__ or "").splitlines()[0]
        header = "| what | shape | against | ours, ms | theirs, ms | ratio | |"
        lines += [f"## {section}", "", summary, "", header, "|---|---|---|---|---|---|---|"]
        for r in rows:
            known = {"name", "shape", "alternative", "seconds_ours", "seconds_theirs", "ratio"}
            extra = ", ".join(
                f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in r.items() if k not in known
            )
            lines.append(f"| {r['name']} | {r['shape']} | {r['alternative']} | {1e3 * r['seconds_ours']:.3f} | "
                         f"{1e3 * r['seconds_theirs']:.3f} | {r['ratio']:.2f} | {extra} |")  # fmt: skip
        lines.append("")
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    """Runs the sections and writes both files."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cpu", description=__doc__.splitlines()[0])
    parser.add_argument("--sections", nargs="*", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--output", type=pathlib.Path, default=RESULTS)
    arguments = parser.parse_args(argv)
    jax.config.update("jax_platforms", "cpu")
    results = {
        "date": datetime.date.today().isoformat(),
        "machine": f"{os.cpu_count()} CPU cores, {platform.machine()}",
        "versions": f"Python {platform.python_version()}, jax {jax.__version__}",
        "sections": {},
    }
    for section in arguments.sections:
        results["sections"][section] = SECTIONS[section]()
        print(
            markdown({**results, "sections": {section: results["sections"][section]}}).split("\n\n", 3)[-1], flush=True
        )
    arguments.output.mkdir(parents=True, exist_ok=True)
    stem = arguments.output / f"cpu-{results['date']}"
    if stem.with_suffix(".json").exists():
        earlier = json.loads(stem.with_suffix(".json").read_text())["sections"]
        results["sections"] = {**earlier, **results["sections"]}
    stem.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
    stem.with_suffix(".md").write_text(markdown(results))
    print(f"written: {stem}.json, {stem}.md")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
