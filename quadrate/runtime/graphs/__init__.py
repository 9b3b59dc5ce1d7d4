"""Graphs written from a model's weights, packed: a batch is one row of tokens, never a padded rectangle."""

from quadrate.runtime.graphs.builder import Arithmetic, Form, Graph
from quadrate.runtime.graphs.model import build

__all__ = ["Arithmetic", "Form", "Graph", "build"]
