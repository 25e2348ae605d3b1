"""Saved models, and weights from and to other ecosystems."""

from zoo.interchange.layouts import LAYOUTS
from zoo.interchange.pretrained import export_weights, import_weights, load_pretrained, load_tokenizer, save_pretrained
from zoo.interchange.saved_model import load, save

__all__ = [
    "LAYOUTS",
    "export_weights",
    "import_weights",
    "load",
    "load_pretrained",
    "load_tokenizer",
    "save",
    "save_pretrained",
]
