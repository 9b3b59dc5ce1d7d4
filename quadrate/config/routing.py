"""`routing.yaml`: which models are served, under which names, and by whom."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Self
from urllib.parse import urlsplit

import pydantic

from quadrate.config.yamlfile import Schema, load

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_SCHEMES = ("http", "https", "grpc", "grpcs")


class Upstream(Schema):
    """Where a model's requests go.

    `type` is `grpc` for Quadrate's own workers, `openai` for any server that speaks the OpenAI embeddings and the Cohere or Jina
    rerank shapes over HTTP; `infinity` (embeddings) and `rerank` (reranking) are older names of the latter.
    """

    type: Literal["grpc", "openai", "infinity", "rerank"]
    url: str
    timeout_ms: int | None = pydantic.Field(default=None, gt=0)
    timeout_seconds: float | None = pydantic.Field(default=None, gt=0)
    priority: int = pydantic.Field(default=0, ge=0)
    """Groups are tried in this order, 0 first; a later one serves only while every earlier one is gone."""
    replicas: tuple[str, ...] = ()
    """More addresses of the same kind, in the form of `url`."""

    @pydantic.field_validator("url", "replicas")
    @classmethod
    def _check_url(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        for url in (value,) if isinstance(value, str) else value:
            _target(url)
        return value

    @pydantic.model_validator(mode="after")
    def _check_timeout(self) -> Self:
        if self.timeout_ms is not None and self.timeout_seconds is not None:
            raise ValueError("timeout_ms and timeout_seconds are both set; keep one")
        return self

    @property
    def targets(self) -> tuple[str, ...]:
        """The `host:port` of `url` and of every replica, each once, in the order written."""
        return tuple(dict.fromkeys(_target(url) for url in (self.url, *self.replicas)))

    @property
    def timeout(self) -> float | None:
        """Seconds that one call may take. None: as long as the caller waits."""
        return self.timeout_seconds if self.timeout_ms is None else self.timeout_ms / 1000


class Route(Schema):
    """One model: `model` is the alias, `served_name` the name it is known by elsewhere; a request may say either."""

    model: str = pydantic.Field(min_length=1)
    served_name: str = ""
    enabled: bool = True
    upstream: Upstream | None = None
    upstreams: tuple[Upstream, ...] = ()

    @pydantic.model_validator(mode="after")
    def _check_upstreams(self) -> Self:
        if (self.upstream is None) == (not self.upstreams):
            raise ValueError(f"model {self.model!r} needs either upstream or a list upstreams")
        return self

    @property
    def groups(self) -> tuple[Upstream, ...]:
        """Every upstream, the lowest priority number first."""
        found = (self.upstream,) if self.upstream is not None else self.upstreams
        return tuple(sorted(found, key=lambda upstream: upstream.priority))

    @property
    def names(self) -> tuple[str, ...]:
        """The names a request may use."""
        return tuple(dict.fromkeys(name for name in (self.model, self.served_name) if name))


class EmbeddingRoute(Route):
    """A model for embeddings."""


class RerankRoute(Route):
    """A model for reranking."""

    max_top_k: int = pydantic.Field(default=50, gt=0)
    """The largest `top_n` a request may ask for."""


class RoutingFile(Schema):
    """The whole file."""

    embeddings: tuple[EmbeddingRoute, ...] = ()
    rerank: tuple[RerankRoute, ...] = ()

    @pydantic.model_validator(mode="after")
    def _check_names(self) -> Self:
        """Names differ within a list, aliases differ everywhere.

        An embedding model and a reranker may share a served name: they may be the same weights, and the call says which is meant.
        """
        _check_unique("embeddings", [name for route in self.embeddings for name in route.names])
        _check_unique("rerank", [name for route in self.rerank for name in route.names])
        _check_unique("embeddings and rerank", [route.model for route in (*self.embeddings, *self.rerank)])
        return self


def _check_unique(where: str, names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"{where}: the name {name!r} stands there twice; the names of models must differ")
        seen.add(name)


def _target(url: str) -> str:
    """Return `host:port` of a URL; raise ValueError with what is allowed."""
    parts = urlsplit(url)
    if parts.scheme not in _SCHEMES or not parts.hostname:
        raise ValueError(f"{url!r} is no address; write it as grpc://host:port or http://host:port")
    try:
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError as exc:
        raise ValueError(f"{url!r} has a port outside 1 to 65535") from exc
    if port is None:
        raise ValueError(f"{url!r} names no port; write it as {parts.scheme}://{parts.hostname}:7997")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{host}:{port}"


def load_routing(path: Path) -> RoutingFile:
    """Read `routing.yaml`; raises ConfigError."""
    return load(path, RoutingFile)
