"""Graphs written from a model's weights, packed: a batch is one row of tokens, never a padded rectangle."""

from quadrate.runtime.graphs.bert import build
from quadrate.runtime.graphs.builder import Graph

__all__ = ["Graph", "build"]
