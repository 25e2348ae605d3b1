"""Layouts of foreign checkpoints, one file per family; ``LAYOUTS`` by name."""

from zoo.interchange.layouts import gpt2, jamba, llama, mamba, mamba2
from zoo.interchange.layouts.base import Layout, Place, Transform, Weight

LAYOUTS: dict[str, Layout] = {
    layout.name: layout for module in (mamba, mamba2, jamba, gpt2, llama) for layout in module.LAYOUTS
}

__all__ = ["LAYOUTS", "Layout", "Place", "Transform", "Weight"]
