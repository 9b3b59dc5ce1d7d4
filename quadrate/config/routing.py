"""`routing.yaml`: which models are served, under which names, and by whom."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Annotated, Literal, Self, TypeVar
from urllib.parse import urlsplit

import pydantic

from quadrate.config.yamlfile import Schema, load, misplaced

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

_HTTP_SCHEMES = ("http", "https")
_GRPC_SCHEMES = ("grpc", "grpcs")
_HOST = re.compile(r"[^\s,]+")
_Place = tuple[str, int, str]
_Where = tuple[str | int, ...]
"""A list of the file, a number in it, and a key there."""
_QWEN3 = "qwen3"
"""Aliases that begin so and are served over HTTP take these two variables unless the file names others."""
_QWEN3_ENABLED, _QWEN3_API_KEY = "QWEN3_ENABLED", "QWEN3_API_KEY"

Variable = Annotated[str, pydantic.StringConstraints(pattern=r"^([A-Za-z_][A-Za-z0-9_]*)?$")]
"""The name of an environment variable, or nothing."""
RouteT = TypeVar("RouteT", bound="Route")


class Upstream(Schema):
    """Where a model's requests go.

    `type` is `grpc` for Quadrate's own workers, `openai` for any server that speaks the OpenAI embeddings and the Cohere or Jina
    rerank shapes over HTTP; `infinity` (embeddings) and `rerank` (reranking) are older names of the latter, and may name our own
    workers, too: which protocol such a peer speaks is found out.
    """

    type: Literal["grpc", "openai", "infinity", "rerank"]
    url: str
    timeout_ms: int | None = pydantic.Field(default=None, gt=0)
    timeout_seconds: float | None = pydantic.Field(default=None, gt=0, allow_inf_nan=False)
    priority: int = pydantic.Field(default=0, ge=0)
    """Groups are tried in this order, 0 first; a later one serves only while every earlier one is gone."""
    weight: float = pydantic.Field(default=1.0, gt=0, allow_inf_nan=False)
    """What share each of these addresses gets beside others of its priority: one of 2 has twice the tokens under way that one of 1 has."""
    replicas: tuple[str, ...] = ()
    """More addresses of the same kind, in the form of `url`."""
    model: str = ""
    """What the model is called there. Empty: by its alias or its served name; over HTTP by the latter if it has one."""
    api_key: pydantic.SecretStr | None = None
    """The key that is sent there. Better `api_key_env`: this file is read by many."""
    api_key_env: Variable = ""
    """The environment variable that holds the key. It must be set if the route is enabled."""
    max_inputs: int = pydantic.Field(default=2_048, gt=0)
    """HTTP: the most texts of one request there; what has more is sent in several. TEI takes 32 unless told otherwise."""
    takes_token_ids: bool = False
    """HTTP: whether token ids may be sent there as `input`. Otherwise requests that bring ids are refused: what ids mean, and whether
    special tokens are among them, differs between servers."""

    @pydantic.field_validator("url", "replicas")
    @classmethod
    def _check_url(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        for url in (value,) if isinstance(value, str) else value:
            _target(url)
        return value

    @pydantic.model_validator(mode="after")
    def _check(self) -> Self:
        if self.timeout_ms is not None and self.timeout_seconds is not None:
            raise ValueError("timeout_ms and timeout_seconds are both set; keep one")
        if self.api_key is not None and self.api_key_env:
            raise ValueError("api_key and api_key_env are both set; keep api_key_env")
        if self.type == "grpc":
            self._check_grpc()
        elif wrong := self._url_beside(_HTTP_SCHEMES):
            raise ValueError(f"{wrong!r} is no address for type {self.type}; write it as http://host:port, or say type: grpc")
        return self

    @pydantic.field_serializer("api_key", when_used="json")
    def _write_key(self, key: pydantic.SecretStr | None) -> str | None:
        """Write a key only where the file itself holds it: what came from a variable is read from there again."""
        return None if key is None or self.api_key_env else key.get_secret_value()

    def _check_grpc(self) -> None:
        if wrong := self._url_beside(_GRPC_SCHEMES):
            raise ValueError(
                f"{wrong!r} is no address for type grpc; write it as grpc://host:port, or grpcs://host:port with TLS; if it is a server "
                "with an HTTP API, say type: openai"
            )
        if wrong := next((url for url in self._urls if urlsplit(url).path.strip("/")), None):
            raise ValueError(f"{wrong!r} has a path, which gRPC has no use for; write it as grpc://host:port, or say type: openai")
        for name in ("max_inputs", "takes_token_ids"):
            if name in self.model_fields_set:
                raise ValueError(f"{name} is for upstreams over HTTP; leave it out for type grpc")

    def _url_beside(self, schemes: tuple[str, ...]) -> str | None:
        """Return the first URL of another scheme than these."""
        return next((url for url in self._urls if urlsplit(url).scheme not in schemes), None)

    @property
    def _urls(self) -> tuple[str, ...]:
        return (self.url, *self.replicas)

    @property
    def targets(self) -> tuple[str, ...]:
        """The `host:port` of `url` and of every replica, with its path if it has one, each once, in the order written."""
        return tuple(dict.fromkeys(map(_target, self._urls)))

    def url_of(self, target: str) -> str:
        """Return the URL that was written for one of `targets`."""
        return next(url for url in self._urls if _target(url) == target)

    @property
    def timeout(self) -> float | None:
        """Seconds that one call may take. None: as long as the caller waits."""
        return self.timeout_seconds if self.timeout_ms is None else self.timeout_ms / 1000


class Route(Schema):
    """One model: `model` is the alias, `served_name` the name it is known by elsewhere; a request may say either.

    A worker tells its models' tokenizer and card. What is served over HTTP has none, so that the route says what is to be known.
    """

    model: str = pydantic.Field(min_length=1)
    served_name: str = ""
    enabled: bool = True
    enabled_env: Variable = ""
    """The environment variable that says whether it is enabled, if it is set: `true` or `false`. It goes before `enabled`."""
    upstream: Upstream | None = None
    upstreams: tuple[Upstream, ...] = ()
    hedge_after_ms: float | None = pydantic.Field(default=None, gt=0, allow_inf_nan=False)
    """A short request that is not answered by then is sent to a second replica, too, and the first answer counts. Unset: never."""
    tokenizer: str = ""
    """HTTP: what the model reads text with, so that tokens are counted exactly: a `tokenizer.json`, a folder with one, or a repository of
    the hub, perhaps with `@` and a commit. Empty: ROUTER_TOKENIZER_NAME; if that is empty, too, an upper bound is charged and corrected by
    what the upstream reports."""
    max_tokens: int | None = pydantic.Field(default=None, gt=0)
    """HTTP, with a tokenizer: the most tokens that the model reads of one input, special tokens included. None: as the tokenizer's files
    say."""

    @pydantic.field_validator("model", "served_name")
    @classmethod
    def _check_name(cls, value: str) -> str:
        if not value.isprintable() or value != value.strip():
            raise ValueError("the name begins or ends with a blank, or holds a character that cannot be printed")
        return value

    @pydantic.model_validator(mode="after")
    def _check_upstreams(self) -> Self:
        if (self.upstream is None) == (not self.upstreams):
            raise ValueError(f"model {self.model!r} needs either upstream or a list upstreams")
        _check_twice(self.upstreams)
        if not self.over_http:
            for name in _OVER_HTTP & self.model_fields_set:
                raise ValueError(f"{name} is for models that are served over HTTP; the worker of {self.model!r} tells its own")
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

    @property
    def over_http(self) -> bool:
        """Whether some upstream may speak HTTP."""
        return any(upstream.type != "grpc" for upstream in self.groups)

    @property
    def is_qwen3(self) -> bool:
        """Whether QWEN3_ENABLED and QWEN3_API_KEY mean this route."""
        return self.over_http and self.model.lower().startswith(_QWEN3)


class EmbeddingRoute(Route):
    """A model for embeddings."""

    dimensions: int | None = pydantic.Field(default=None, gt=0)
    """HTTP: the width that its vectors must have. None: that of the first answer."""
    matryoshka_dimensions: tuple[Annotated[int, pydantic.Field(gt=0)], ...] = ()
    """HTTP: the widths that `dimensions` of a request may ask for; the gateway cuts. Empty: the model was not trained for any."""
    prompts: dict[str, str] = pydantic.Field(default_factory=dict)
    """HTTP: what is put before a text, by name; `query` and `document` are those of the roles. None where the upstream adds its own."""
    default_prompt_name: str = ""
    """HTTP: the prompt of a request that names none. Empty: no prompt."""
    instruction: str = ""
    """HTTP: the prompt of a query for which a request gives an instruction, with `{instruction}` in its place. Empty: it takes none."""

    @pydantic.model_validator(mode="after")
    def _check_prompts(self) -> Self:
        if self.default_prompt_name and self.default_prompt_name not in self.prompts:
            raise ValueError(f"default_prompt_name {self.default_prompt_name!r} is not among the prompts: {sorted(self.prompts)}")
        if self.instruction and "{instruction}" not in self.instruction:
            raise ValueError(f"instruction must hold {{instruction}}, where the request's own stands: {self.instruction!r}")
        return self

    @pydantic.model_validator(mode="after")
    def _check_widths(self) -> Self:
        widest: int = max(self.matryoshka_dimensions, default=0)
        if self.dimensions is not None and widest > self.dimensions:
            raise ValueError(f"matryoshka_dimensions has {widest}, and dimensions says that the vectors are {self.dimensions} wide")
        return self


class RerankRoute(Route):
    """A model for reranking."""

    max_top_k: int = pydantic.Field(default=50, gt=0)
    """The largest `top_n` a request may ask for."""


_OVER_HTTP = {"tokenizer", "max_tokens", "dimensions", "matryoshka_dimensions", "prompts", "default_prompt_name", "instruction"}
"""What a route says of its model for upstreams that cannot be asked."""


class RoutingFile(Schema):
    """The whole file."""

    embeddings: tuple[EmbeddingRoute, ...] = ()
    rerank: tuple[RerankRoute, ...] = ()

    @pydantic.model_validator(mode="after")
    def _check_names(self) -> Self:
        """Names differ within a list, aliases differ everywhere.

        An embedding model and a reranker may share a served name: they may be the same weights, and the call says which is meant.
        """
        embeddings, rerank = (_places(name, getattr(self, name)) for name in ("embeddings", "rerank"))
        for found in (embeddings, rerank, [(name, place) for name, place in (*embeddings, *rerank) if place[-1] == "model"]):
            _check_unique(found)
        return self

    @property
    def enabled(self) -> tuple[Route, ...]:
        """The routes that are switched on."""
        return tuple(route for route in (*self.embeddings, *self.rerank) if route.enabled)

    def resolved(self, environment: Mapping[str, str]) -> RoutingFile:
        """Return the file with what the environment says in it: `enabled` and keys. Raises ValueError that names the place."""
        embeddings = tuple(_resolve(route, environment, ("embeddings", place)) for place, route in enumerate(self.embeddings))
        rerank = tuple(_resolve(route, environment, ("rerank", place)) for place, route in enumerate(self.rerank))
        return self.model_copy(update={"embeddings": embeddings, "rerank": rerank})


def _places(where: str, routes: Sequence[Route]) -> list[tuple[str, _Place]]:
    """Return the names of routes and where they stand; a model whose two names are one stands there once."""
    found: list[tuple[str, _Place]] = []
    for number, route in enumerate(routes):
        found.append((route.model, (where, number, "model")))
        if route.served_name not in ("", route.model):
            found.append((route.served_name, (where, number, "served_name")))
    return found


def _check_twice(upstreams: Sequence[Upstream]) -> None:
    """Refuse a second upstream at the address of another one. With another name for the model or another key it is somebody else."""
    seen: dict[tuple[object, ...], int] = {}
    for number, upstream in enumerate(upstreams):
        for target in upstream.targets:
            first = seen.setdefault((target, upstream.model, upstream.api_key, upstream.api_key_env), number)
            if first != number:
                url = upstream.url_of(target)
                raise misplaced(f"upstreams[{first}] is at {url!r} already; keep one of the two", "upstreams", number, "url")


def _check_unique(names: Iterable[tuple[str, _Place]]) -> None:
    seen: dict[str, _Place] = {}
    for name, place in names:
        if name in seen:
            where, number, key = seen[name]
            raise misplaced(f"{name!r} is the {key} of {where}[{number}] already; the names of models must differ", *place)
        seen[name] = place


def _resolve(route: RouteT, environment: Mapping[str, str], place: _Where) -> RouteT:
    enabled = _enabled(route, environment, place)
    changes: dict[str, object] = {"enabled": enabled}
    if route.upstream is not None:
        changes["upstream"] = _with_key(route.upstream, route, environment, (*place, "upstream"), enabled=enabled)
    changes["upstreams"] = tuple(
        _with_key(upstream, route, environment, (*place, "upstreams", number), enabled=enabled)
        for number, upstream in enumerate(route.upstreams)
    )
    return route.model_copy(update=changes)


def _enabled(route: Route, environment: Mapping[str, str], place: _Where) -> bool:
    name = route.enabled_env or (_QWEN3_ENABLED if route.is_qwen3 else "")
    written = environment.get(name, "") if name else ""
    if not written:
        return route.enabled
    try:
        return pydantic.TypeAdapter(bool).validate_python(written)
    except pydantic.ValidationError as exc:
        but = "" if route.enabled_env else f", not {written!r}"  # a variable that somebody chose may be the one of the key
        raise misplaced(f"model {route.model!r}: the variable {name} must be true or false{but}", *place, "enabled_env") from exc


def _with_key(upstream: Upstream, route: Route, environment: Mapping[str, str], place: _Where, *, enabled: bool) -> Upstream:
    """Return an upstream with the key that its variable holds. Raises ValueError if the variable has to be set and is not."""
    if upstream.api_key is not None:
        return upstream
    name = upstream.api_key_env or (_QWEN3_API_KEY if route.is_qwen3 and upstream.type != "grpc" else "")
    key = environment.get(name, "").strip() if name else ""
    if upstream.api_key_env and not key and enabled:
        raise misplaced(f"model {route.model!r}: the variable {name}, which api_key_env names, is not set", *place, "api_key_env")
    return upstream.model_copy(update={"api_key": pydantic.SecretStr(key), "api_key_env": name}) if key else upstream


def _target(url: str) -> str:
    """Return `host:port` of a URL, with its path if it has one; raise ValueError with what is allowed."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if parts.scheme not in (*_GRPC_SCHEMES, *_HTTP_SCHEMES) or not _HOST.fullmatch(host):
        raise ValueError(f"{url!r} is no address; write it as grpc://host:port or http://host:port")
    if parts.username is not None or parts.password is not None:
        raise ValueError("an address holds a user or a password; put a key into the variable that api_key_env names")
    if parts.query or parts.fragment:
        raise ValueError(f"{url!r} has more than host, port and path; leave out what follows the path")
    try:
        port = {"http": 80, "https": 443}.get(parts.scheme) if parts.port is None else parts.port
    except ValueError:
        port = 0
    if port == 0:
        raise ValueError(f"{url!r} has a port outside 1 to 65535")
    if port is None:
        raise ValueError(f"{url!r} names no port; write it as {parts.scheme}://{host}:7997")
    return f"{f'[{host}]' if ':' in host else host}:{port}{parts.path.rstrip('/')}"


def load_routing(path: Path, environment: Mapping[str, str] | None = None) -> RoutingFile:
    """Read `routing.yaml` with what the environment adds to it; raises ConfigError."""
    return load(path, RoutingFile, completed=lambda file: file.resolved(os.environ if environment is None else environment))
