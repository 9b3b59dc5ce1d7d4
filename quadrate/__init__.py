"""Quadrate: a self-hosted service mesh for text embeddings and reranking."""

__version__ = "0.1.0"
