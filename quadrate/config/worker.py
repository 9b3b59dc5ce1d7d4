"""The workers' settings, from the environment: `EMBED_` and `RERANK_` with the same names after them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import pydantic
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from quadrate.config.mapping import ModelMapping
from quadrate.config.refused import reason
from quadrate.config.tls import ServerTls
from quadrate.cores import usable_cores
from quadrate.errors import ConfigError

_DEVICES = re.compile(r"auto|cpu|gpu(:(\d{1,3}|(GPU|MIG)-[0-9A-Za-z/-]{8,64}))?")


def _check_device(value: str) -> str:
    if not _DEVICES.fullmatch(value):
        raise ValueError("it must be auto, cpu, gpu, gpu:1 (a number of nvidia-smi -L), gpu:GPU-… or gpu:MIG-… (a UUID from there)")
    return value


Device = Annotated[str, pydantic.AfterValidator(_check_device)]
"""`auto`, `cpu`, `gpu`, or `gpu:` and its number or UUID."""
Precision = Literal["exact", "fast", "small"]
Port = Annotated[int, pydantic.Field(ge=0, le=65535)]


class WorkerSettings(BaseSettings):
    """What one worker process is told. Every field is the variable `EMBED_` or `RERANK_` and its name, unless it says another."""

    model_config = SettingsConfigDict(
        env_ignore_empty=True, frozen=True, extra="ignore", use_attribute_docstrings=True, hide_input_in_errors=True
    )

    model_name: Annotated[tuple[str, ...], NoDecode] = ()
    """The models to serve: aliases of the catalogue, separated by commas."""
    model_mapping: ModelMapping = pydantic.Field(default_factory=dict)
    """More names, as a JSON object of name to alias: requests may use either."""
    models_path: Path = pydantic.Field(default=Path("configs/models.yaml"), validation_alias="QUADRATE_MODELS_PATH")
    """The catalogue of models. Read by both kinds of worker."""
    models_reload_interval_seconds: float = pydantic.Field(default=5.0, ge=0, validation_alias="QUADRATE_MODELS_RELOAD_INTERVAL_SECONDS")
    """How often the catalogue and its lock are looked at: a model whose card was edited is loaded again. 0: only on SIGHUP, which always
    works. Read by both kinds of worker."""
    device: Device = "auto"
    """`cpu`; `gpu` (refuse to start without one), `gpu:1` for the second, `gpu:GPU-…` or `gpu:MIG-…` for a card or a slice by its UUID; or
    `auto`: a GPU if this ONNX Runtime and the driver have one."""
    gpu_memory_mib: int = pydantic.Field(default=0, ge=0)
    """The most GPU memory that each model's runs and weights may take, in MiB. 0: no limit."""
    precision: Precision = "exact"
    """The class of arithmetic. `exact`: float32. `fast`: each vector's cosine to `exact` is at least 0.999; bfloat16 through OpenVINO on a
    CPU (extra `openvino`), float16 on a GPU. `small`: at least 0.99; 8-bit products on a CPU. What a machine cannot give is refused at
    the start."""
    mixed_precision: bool = False
    """Another way to ask for `fast`, as earlier deployments did. One that contradicts the precision is refused."""
    quantization: Literal["none", "int8"] = "none"
    """`int8` is another way to ask for `small`; `off` and `false` mean `none`. One that contradicts the precision is refused."""
    max_batch_size: int | None = pydantic.Field(default=None, gt=0, le=4096)
    """The most texts in one run of the model. Unset: 64 on a CPU, 512 on a GPU."""
    max_batch_tokens: int | None = pydantic.Field(default=None, gt=0)
    """The most tokens in one run; a longer text runs alone. Unset: 256 on a CPU, 512 there in precision `fast`, 16384 on
    a GPU."""
    long_text_tokens: int | None = pydantic.Field(default=None, gt=0)
    """Texts of more tokens run beside the others, at a lower priority, so that short ones do not wait for their end (in `fast`
    on a CPU, with more than 1 GiB of weights in float32, they do for that of one run). Unset: `MAX_BATCH_TOKENS`, on a CPU no more than
    256."""
    batch_delay_ms: float = pydantic.Field(default=0.0, ge=0, le=1000)
    """How long an idle worker waits for more texts before it runs. 0 is best nearly always: while it works, texts gather by themselves."""
    queue_timeout_ms: float = pydantic.Field(default=10_000.0, gt=0)
    """The longest time until a request's first text runs. One that would wait longer is refused at once."""
    memory_budget_mib: int | None = pydantic.Field(default=None, gt=0)
    """The most that the weights of all loaded models may take, in MiB. A model that would not fit is refused before it is loaded. Unset: no
    limit."""
    threads: int = pydantic.Field(default_factory=usable_cores, gt=0)
    """Cores for the model: so many runs at once. Unset: all that the process may use."""
    stuck_seconds: float = pydantic.Field(default=10.0, gt=0)
    """A run that takes longer than this, and 20 times longer than predicted, is stuck: the worker gives up and leaves."""
    session: Literal["onnx", "null"] = "onnx"
    """`null` answers without running a model, to measure what is around it. Never for serving."""
    null_run_ms: float = pydantic.Field(default=0.0, ge=0, le=60_000)
    """What each run of a `null` session takes. It sleeps, and takes no processor: so a small machine can be overloaded many times over, to
    see what happens then (docs/overload.md)."""
    null_token_us: float = pydantic.Field(default=0.0, ge=0, le=1_000_000)
    """What each token of a run of a `null` session takes besides, in microseconds."""
    host: str = "127.0.0.1"
    """The address to listen on. `0.0.0.0` where other machines call the worker, as in a container."""
    port: Port = 0
    """The gRPC port. 0 takes a free one."""
    http_port: Port = 0
    """The HTTP port for metrics and health. 0 takes a free one."""
    tls_cert_path: Path | None = None
    """The worker's certificate in PEM, followed by those that lead to its authority. With it the gRPC port speaks TLS alone. Renewed
    files are taken up without a restart."""
    tls_key_path: Path | None = None
    """The certificate's private key in PEM, without a password."""
    tls_client_ca_path: Path | None = None
    """The authorities in PEM whose clients alone may connect (mTLS). Unset: anybody may."""
    reflection: bool = True
    """Whether gRPC reflection is served, which tools such as grpcurl list services by."""
    drain_seconds: float = pydantic.Field(default=10.0, ge=0)
    """How long calls in flight may go on after a signal to stop."""
    drain_notice_seconds: float = pydantic.Field(default=0.25, ge=0)
    """How long calls are still taken after a signal to stop, while health says NOT_SERVING already: so long gateways have to hear of it."""

    @pydantic.model_validator(mode="after")
    def _check_tls(self) -> Self:
        _ = self.tls
        return self

    @property
    def tls(self) -> ServerTls | None:
        """How the gRPC port speaks TLS; None: not at all."""
        names = f"{self.model_config.get('env_prefix', '')}TLS"
        return ServerTls.of(self.tls_cert_path, self.tls_key_path, self.tls_client_ca_path, names=names)

    @pydantic.field_validator("model_name", mode="before")
    @classmethod
    def _split(cls, value: str | tuple[str, ...]) -> tuple[str, ...]:
        parts = value.split(",") if isinstance(value, str) else value
        return tuple(dict.fromkeys(part.strip() for part in parts if part.strip()))

    @pydantic.field_validator("quantization", mode="before")
    @classmethod
    def _switched_off(cls, value: object) -> object:
        return "none" if str(value).lower() in {"off", "false", "no", "0"} else value

    @pydantic.model_validator(mode="after")
    def _agree(self) -> WorkerSettings:
        """Let the three settings that speak of precision say one thing."""
        prefix = str(self.model_config.get("env_prefix", ""))
        asking = {f"{prefix}PRECISION or --precision": self.precision} if "precision" in self.model_fields_set else {}
        asking |= {f"{prefix}MIXED_PRECISION": "fast"} if self.mixed_precision else {}
        asking |= {f"{prefix}QUANTIZATION": "small"} if self.quantization == "int8" else {}
        asked = set(asking.values())
        if len(asked) > 1:
            raise ValueError(
                f"{' and '.join(sorted(asked))} are asked for: "
                f"{', '.join(f'{name} asks for {precision}' for name, precision in asking.items())}; set precision alone"
            )
        object.__setattr__(self, "precision", next(iter(asked), "exact"))  # frozen for everybody but this
        return self


class EmbedSettings(WorkerSettings):
    """The embed worker's settings."""

    model_config = SettingsConfigDict(env_prefix="EMBED_")

    model_name: Annotated[tuple[str, ...], NoDecode] = ("minilm",)
    """The models to serve: aliases of the catalogue, separated by commas."""
    port: Port = 7997
    """The gRPC port. 0 takes a free one."""
    http_port: Port = 7998
    """The HTTP port for metrics and health. 0 takes a free one."""


class RerankSettings(WorkerSettings):
    """The rerank worker's settings."""

    model_config = SettingsConfigDict(env_prefix="RERANK_")

    model_name: Annotated[tuple[str, ...], NoDecode] = ("minilm-rerank",)
    """The models to serve: aliases of the catalogue, separated by commas."""
    port: Port = 9002
    """The gRPC port. 0 takes a free one."""
    http_port: Port = 9003
    """The HTTP port for metrics and health. 0 takes a free one."""
    max_documents: int = pydantic.Field(default=50, gt=0)
    """The most documents of one request."""
    max_document_length: int = pydantic.Field(default=4096, gt=0)
    """The most characters of one document. Longer ones are refused, or cut and named if truncation was asked for."""


SettingsT = TypeVar("SettingsT", bound=WorkerSettings)


def load_worker_settings(kind: type[SettingsT], **given: Any) -> SettingsT:
    """Read the environment, with the fields `given` before it; raises ConfigError that names each wrong variable."""
    try:
        return kind(**given)
    except pydantic.ValidationError as exc:
        raise ConfigError("\n".join(_describe(kind, error["loc"], reason(error)) for error in exc.errors())) from exc


def _describe(kind: type[WorkerSettings], loc: tuple[int | str, ...], text: str) -> str:
    prefix = str(kind.model_config.get("env_prefix", ""))
    if not loc:
        return f"{prefix}*: {text}"
    field = str(loc[0])
    return f"{field if field.startswith('QUADRATE_') else prefix + field.upper()}: {text}"
