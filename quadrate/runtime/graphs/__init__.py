"""Graphs written from a model's weights, packed: a batch is one row of tokens, never a padded rectangle."""

from quadrate.runtime.graphs.builder import Form, Graph
from quadrate.runtime.graphs.model import build

__all__ = ["Form", "Graph", "build"]
