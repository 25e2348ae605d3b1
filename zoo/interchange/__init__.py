"""Saved models, and weights from and to other ecosystems."""

from zoo.interchange.saved_model import load, save

__all__ = ["load", "save"]
