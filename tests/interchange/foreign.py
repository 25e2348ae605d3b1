"""Foreign weights made by rule, so that logits recorded elsewhere can be compared without storing the weights.

``python -m tests.interchange.foreign`` records the logits of transformers (torch on CPU, extra [parity]) for the tiny
configurations of tests/parity/tiny.py in recorded_logits.json.
"""

import json
import tempfile
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from tests.parity.tiny import CONFIGURATIONS
from zoo.interchange import LAYOUTS
from zoo.interchange.config import Config
from zoo.interchange.layouts.base import foreign_shape
from zoo.interchange.pretrained import _parameter_shapes

RECORDED = Path(__file__).parent / "recorded_logits.json"
TOKENS = np.random.default_rng(0).integers(3, 60, (2, 11))


def value(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers that depend on the key alone: near 1 for norms, otherwise of a size that keeps signals alive."""
    draw = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(shape)
    if "norm" in key or key.endswith((".D", "ln_1.weight", "ln_2.weight", "ln_f.weight")):
        return np.float32(1 + 0.3 * draw)
    if key.endswith("A_log"):
        return np.float32(np.abs(draw))
    return np.float32(draw * (0.5 if len(shape) < 2 else 0.2 if "embed" in key or "wte" in key else shape[-1] ** -0.5))


def made(name: str) -> tuple[dict, dict[str, np.ndarray]]:
    """Configuration and weights of the tiny model ``name``, in its layout."""
    kind = name.split("-")[0]
    layout, fields = LAYOUTS[kind], {"model_type": kind, **CONFIGURATIONS[name][1]}
    model = layout.model(Config(fields))
    shapes = _parameter_shapes(model, name)
    return fields, {w.key: value(w.key, foreign_shape(w, shapes)) for w in layout.weights(model, frozenset())}


def record() -> None:
    """Writes the last logits of every tiny model as transformers computes them."""
    import torch
    import transformers

    from zoo.interchange.pretrained import import_weights, save_pretrained

    rows = {}
    for name, (kind, _) in CONFIGURATIONS.items():
        fields, arrays = made(name)
        model, params = import_weights(fields, arrays)
        cls = getattr(transformers, "GPT2LMHeadModel" if kind == "GPT2" else f"{kind}ForCausalLM")
        with torch.no_grad(), tempfile.TemporaryDirectory() as place:
            folder = save_pretrained(model, params, Path(place) / name, layout=name.split("-")[0])
            logits = cls.from_pretrained(folder).eval()(torch.tensor(TOKENS)).logits[:, -1].numpy()
        rows[name] = [[round(float(v), 6) for v in row] for row in logits]
        ours, _ = jax.jit(model.apply)(params, jnp.asarray(TOKENS))
        print(name, "largest difference", np.max(np.abs(np.asarray(ours)[:, -1] - logits)))
    lines = [f"{json.dumps(name)}: {json.dumps(row)}" for name, row in rows.items()]
    RECORDED.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    record()
