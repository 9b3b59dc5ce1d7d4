"""Which paths and shapes a server has: found by asking it, once for each connection that is made anew."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from gateway.upstreams.http.shapes import RerankShape


@dataclass(frozen=True, slots=True)
class Dialect:
    """One way to ask.

    Attributes:
        path: Where requests go.
        shape: How a rerank request looks; embeddings have one shape everywhere.
    """

    path: str
    shape: RerankShape = "cohere"


def root_of(url: str) -> str:
    """Return scheme, host and port of a URL."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


def candidates(url: str, task: Literal["embeddings", "rerank"]) -> tuple[Dialect, ...]:
    """Return the ways to try, the likeliest first.

    A URL that ends with the name of the task is taken whole; one with another path is the API's root, as OpenAI's clients have it; one
    without a path may have its API under `/v1` or at its root, as infinity has.
    """
    path = urlsplit(url).path.rstrip("/")
    paths = (path,) if path.endswith(f"/{task}") else (f"{path}/{task}",) if path else (f"/v1/{task}", f"/{task}")
    if task == "embeddings":
        return tuple(Dialect(one) for one in paths)
    if not path:
        paths = (*paths, f"/v2/{task}")
    return (*(Dialect(one) for one in paths), *(Dialect(one, "tei") for one in paths[:2]))
