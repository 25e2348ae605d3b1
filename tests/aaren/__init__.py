"""Tests of the aaren paper: the mixer, its four problem settings, their models and loaders."""
