"""The gateway's settings, from the environment. Names begin with `ROUTER_`: operators' runbooks call the gateway the router."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

import pydantic
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from quadrate.config.features import Features, read_flags
from quadrate.config.mapping import ModelMapping, MoreNames
from quadrate.config.refused import reason
from quadrate.config.shipped import shipped
from quadrate.config.tls import ClientTls, KeyPair, ServerTls
from quadrate.errors import ConfigError

Port = Annotated[int, pydantic.Field(ge=0, le=65535)]


class GatewaySettings(BaseSettings):
    """What one gateway process is told. Every field is the environment variable `ROUTER_` and its name, unless it says another."""

    model_config = SettingsConfigDict(
        env_prefix="ROUTER_", env_ignore_empty=True, frozen=True, extra="ignore", use_attribute_docstrings=True, hide_input_in_errors=True
    )

    host: str = "127.0.0.1"
    """The address to listen on. `0.0.0.0` where other machines call the gateway itself, as in a container."""
    port: Port = 8000
    """The gRPC port. 0 takes a free one."""
    http_port: Port = 8001
    """The HTTP port for metrics and health. 0 takes a free one."""
    tls_cert_path: Path | None = None
    """The gateway's certificate in PEM, followed by those that lead to its authority. With it the gRPC port speaks TLS alone. Renewed
    files are taken up without a restart."""
    tls_key_path: Path | None = None
    """The certificate's private key in PEM, without a password."""
    tls_client_ca_path: Path | None = None
    """The authorities in PEM whose clients alone may connect (mTLS). Unset: anybody may."""
    upstream_ca_path: Path | None = None
    """The authorities in PEM that upstreams of `grpcs://` are trusted by, and those of `https://` besides the public ones. Unset: the
    public ones."""
    upstream_cert_path: Path | None = None
    """The certificate that the gateway shows to upstreams of `grpcs://` and `https://` that ask for one, in PEM."""
    upstream_key_path: Path | None = None
    """Its private key in PEM, without a password."""
    reflection: Literal["keyed", "open", "off"] = "keyed"
    """Who may ask by gRPC reflection, as grpcurl does, which services there are: `keyed` whoever may call (with a key, unless anonymous
    callers are served), `open` everybody, `off` nobody. `true` and `false` are older words for open and off."""
    drain_seconds: float = pydantic.Field(default=10.0, ge=0)
    """How long calls in flight may go on after a signal to stop."""
    drain_notice_seconds: float = pydantic.Field(default=0.25, ge=0)
    """How long calls are still taken after a signal to stop, while health says NOT_SERVING already. The edge asks each second and makes a
    refused call again at another gateway; a balancer that does not do so needs as long as it takes to ask."""
    routing_path: Path = pydantic.Field(default_factory=lambda: shipped("configs") / "routing.yaml")
    """The file of routes. Unset: `routing.yaml` of the `configs` that come with the code, and so on for the next two."""
    auth_path: Path = pydantic.Field(default_factory=lambda: shipped("configs") / "auth.yaml")
    """The file of API keys."""
    rate_limits_path: Path = pydantic.Field(default_factory=lambda: shipped("configs") / "rate_limits.yaml")
    """The file of limits."""
    redis_url: pydantic.SecretStr | None = None
    """Redis or Valkey that several gateways share their quotas by: `redis://HOST:6379/0`, `rediss://` for TLS, `unix://`. A password may
    stand in it. Unset: each gateway counts alone."""
    redis_timeout_seconds: float = pydantic.Field(default=0.2, gt=0)
    """How long one call to Redis may take before it counts as away."""
    gateways: int | None = pydantic.Field(default=None, gt=0)
    """How many gateways share the limits: while Redis is away, each goes on with so large a part of them. Unset: as many as Redis last
    knew of, and at least those of ROUTER_METRICS_PEERS."""
    cache_max_bytes: int = pydantic.Field(default=32 * 2**20, ge=0)
    """What answers that are kept for repeated texts may take in this process. 0 switches the cache off."""
    cache_scope: Literal["mesh", "key"] = "mesh"
    """Who shares answers: `mesh` all callers, `key` each API key has its own, so that nobody can tell by the time of an answer what
    another one asked."""
    cache_redis: bool = False
    """Whether gateways share answers through ROUTER_REDIS_URL, besides what each keeps."""
    cache_live_seconds: int = pydantic.Field(default=3600, gt=0)
    """How long Redis keeps an answer."""
    routing_reload_interval_seconds: float = pydantic.Field(default=5.0, ge=0)
    """How often the files of routes, keys and limits are looked at: an edit takes effect without a restart. 0: only on SIGHUP, which
    always works."""
    canary_interval_seconds: float = pydantic.Field(default=5.0, ge=0)
    """A model that has given no answer for so long is asked for one, so that health says what is. 0: never."""
    request_timeout_seconds: float = pydantic.Field(default=30.0, gt=0)
    """The time a request has whose caller sets no deadline."""
    safe_request_token_limit: int = pydantic.Field(default=524_288, gt=0)
    """The most tokens of one request, all inputs together. The default is 2,048 inputs of 256 tokens."""
    document_token_limit: int | None = pydantic.Field(default=None, gt=0)
    """The most tokens of one document to rerank, special tokens not counted. Unset: the model's own limit."""
    max_documents: int = pydantic.Field(default=50, gt=0, validation_alias="RERANK_MAX_DOCUMENTS")
    """The most documents of one rerank request. Set it alike for gateway and rerank worker."""
    max_document_characters: int = pydantic.Field(default=4096, gt=0, validation_alias="RERANK_MAX_DOCUMENT_LENGTH")
    """The most characters of one document to rerank. Longer ones are cut and named on the Cohere and Jina routes, and refused natively
    unless truncation was asked for. Set it alike for gateway and rerank worker."""
    embed_mapping: ModelMapping = pydantic.Field(default_factory=dict, validation_alias="EMBED_MODEL_MAPPING")
    """More names of embedding models, as a JSON object of name to a route's `model` or `served_name`: requests may use either. One that
    stands for no route is told as a loose end: workers read the variable, too, and know other models."""
    rerank_mapping: ModelMapping = pydantic.Field(default_factory=dict, validation_alias="RERANK_MODEL_MAPPING")
    """The same of rerankers."""
    max_requests_in_flight: int = pydantic.Field(default=4096, gt=0)
    """The most requests at a time, items of streams counted one by one; and as many streams. A caller alone may have four fifths of them
    under way, and the less is free the fewer; more are refused as overloaded, items of streams wait."""
    max_mib_in_flight: int = pydantic.Field(default=256, ge=16)
    """The most MiB of requests at a time, as they came, shared by the same rule. In memory they take several times as much."""
    tokenizer_name: str = ""
    """The tokenizer of models behind HTTP whose routes name none: a `tokenizer.json`, a folder with one, or a repository of the hub,
    perhaps with `@` and a commit. Workers hand over their own. Empty: such models are charged an upper bound, corrected by what their
    servers report."""
    feature_flags: str = ""
    """What is switched off, or on again, by name, separated by commas: `-http_canaries` or `http_canaries=off`. Names:
    `protocol_detection`, `http_canaries`, `estimated_tokens`; docs/routing.md explains them. Unknown ones are told in the log and change
    nothing."""
    allow_disabled_models: bool = False
    """Whether the list of models names disabled ones, too. They cannot be called either way."""
    metrics_peers: Annotated[tuple[str, ...], NoDecode] = ()
    """Every gateway's `host:http_port`, this one's included, separated by commas, for `/metrics/mesh`. A name with several addresses
    stands for all of them. Empty: this gateway alone."""

    @pydantic.field_validator("redis_url")
    @classmethod
    def _check_redis_url(cls, value: pydantic.SecretStr | None) -> pydantic.SecretStr | None:
        if value is None or _is_redis_url(value.get_secret_value()):
            return value
        raise ValueError(
            "is no redis://, rediss:// or unix:// URL, such as redis://redis:6379/0 (special characters of a password: %-encoded)"
        )

    @pydantic.field_validator("feature_flags")
    @classmethod
    def _check_flags(cls, value: str) -> str:
        read_flags(value)
        return value

    @property
    def features(self) -> Features:
        """What is on."""
        return read_flags(self.feature_flags)[0]

    @property
    def unknown_feature_flags(self) -> tuple[str, ...]:
        """The flags that mean nothing to this version."""
        return read_flags(self.feature_flags)[1]

    @property
    def more_names(self) -> MoreNames:
        """Names of models besides those that the routes give them."""
        return MoreNames(self.embed_mapping, self.rerank_mapping)

    @pydantic.model_validator(mode="after")
    def _check_tls(self) -> Self:
        _ = self.tls, self.upstream_tls
        return self

    @pydantic.model_validator(mode="after")
    def _check_cache(self) -> Self:
        if self.cache_redis and self.redis_url is None:
            raise ValueError("ROUTER_CACHE_REDIS is on and ROUTER_REDIS_URL is not set; name the Redis, or leave both out")
        return self

    @property
    def tls(self) -> ServerTls | None:
        """How the gRPC port speaks TLS; None: not at all."""
        return ServerTls.of(self.tls_cert_path, self.tls_key_path, self.tls_client_ca_path, names="ROUTER_TLS")

    @property
    def upstream_tls(self) -> ClientTls:
        """How upstreams whose URL asks for TLS are called."""
        return ClientTls(self.upstream_ca_path, KeyPair.of(self.upstream_cert_path, self.upstream_key_path, names="ROUTER_UPSTREAM"))

    @pydantic.field_validator("reflection", mode="before")
    @classmethod
    def _older_words(cls, value: Any) -> Any:
        return {"true": "open", "false": "off"}.get(str(value).lower(), value)

    @pydantic.field_validator("metrics_peers", mode="before")
    @classmethod
    def _split(cls, value: str | tuple[str, ...]) -> tuple[str, ...]:
        parts = value.split(",") if isinstance(value, str) else value
        return tuple(part.strip() for part in parts if part.strip())

    @pydantic.field_validator("metrics_peers")
    @classmethod
    def _check_peers(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for peer in value:
            host, _, port = peer.rpartition(":")
            if not host or not port.isdigit() or not 0 < int(port) <= 65535:  # noqa: PLR2004 - the highest port
                raise ValueError(f"{peer!r} is no host:port, such as gateway-1:8001")
        return value


def load_gateway_settings() -> GatewaySettings:
    """Read the environment; raises ConfigError that names each wrong variable."""
    try:
        return GatewaySettings()
    except pydantic.ValidationError as exc:
        lines = [f"{_variable(error['loc'])}{reason(error)}" for error in exc.errors()]
        raise ConfigError("\n".join(lines)) from exc


def _is_redis_url(url: str) -> bool:
    """Tell whether it is one, without saying what is wrong: a sentence of the parser's would repeat part of a password."""
    try:
        parts = urlsplit(url)
        return (
            parts.scheme in ("redis", "rediss", "unix")
            and bool(parts.hostname if parts.scheme != "unix" else parts.path)
            and parts.port != 0
        )
    except ValueError:
        return False


def _variable(location: tuple[int | str, ...]) -> str:
    """Return the variable at fault and a colon; nothing where several are, which the message names."""
    if not location:
        return ""
    field = str(location[0])
    return f"{field if field.startswith(('EMBED_', 'RERANK_')) else f'ROUTER_{field.upper()}'}: "
