"""Layouts of foreign checkpoints, one file per family; ``LAYOUTS`` by name."""

from zoo.interchange.layouts import (
    delta_net,
    gla,
    gpt2,
    jamba,
    llama,
    mamba,
    mamba2,
    qwen3_next,
    recurrent_gemma,
    rwkv,
    xlstm,
)
from zoo.interchange.layouts.base import Layout, Place, Transform, Weight

_FAMILIES = (mamba, mamba2, jamba, gpt2, llama, recurrent_gemma, rwkv, xlstm, qwen3_next, delta_net, gla)
LAYOUTS: dict[str, Layout] = {layout.name: layout for family in _FAMILIES for layout in family.LAYOUTS}

__all__ = ["LAYOUTS", "Layout", "Place", "Transform", "Weight"]
