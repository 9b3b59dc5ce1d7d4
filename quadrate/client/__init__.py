"""The client for people who want neither the OpenAI nor the Cohere SDK: texts in, numpy out, over gRPC.

    from quadrate.client import Client

    with Client("localhost:8085") as client:
        vectors = client.embed(["a text", "another"], model="minilm").vectors       # float32 [2, 384]
        best = client.rerank("a question", ["a text", "another"], model="minilm-rerank").results[0]

`AsyncClient` is the same with `await`. Both speak to a gateway, through the edge or directly, and to a worker alone.
"""

from quadrate.client.answers import Embedded, Embeddings, Model, Provenance, Ranked, Ranking, SparseVector, Timings, Tokens, Usage
from quadrate.client.asynchronous import AsyncClient
from quadrate.client.blocking import Client
from quadrate.client.retries import Retries

__all__ = [
    "AsyncClient",
    "Client",
    "Embedded",
    "Embeddings",
    "Model",
    "Provenance",
    "Ranked",
    "Ranking",
    "Retries",
    "SparseVector",
    "Timings",
    "Tokens",
    "Usage",
]
