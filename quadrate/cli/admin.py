"""`quadrate models … --worker`: what workers have loaded, and loading and unloading at them while they run."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import grpc
import grpc.aio
from google.protobuf.json_format import MessageToDict

from quadrate.client import failures
from quadrate.client.target import Target
from quadrate.config import lock
from quadrate.config.worker import EmbedSettings, RerankSettings, load_worker_settings
from quadrate.errors import ConfigError, QuadrateError
from quadrate.server import run
from quadrate.v1 import admin_pb2, admin_pb2_grpc, model_pb2, model_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Awaitable, Callable, Sequence
    from pathlib import Path

    from quadrate.config.tls import ClientTls

    Action = Callable[[grpc.aio.Channel, str], Awaitable[int]]

SECONDS = 10.0
"""How long a worker may take to tell what it has."""


def load(config: Path, alias: str, workers: Sequence[str], tls: ClientTls) -> int:
    """Load a model at each worker, or load it again, and say how far it is. Returns 1 if one fails."""

    async def at(channel: grpc.aio.Channel, worker: str) -> int:
        stub: admin_pb2_grpc.AdminServiceAsyncStub = admin_pb2_grpc.AdminServiceStub(channel)
        last = await _follow(stub.LoadModel(admin_pb2.LoadModelRequest(model=alias)), f"{alias} at {worker}")
        print(f"{alias} at {worker}: ready, revision {last.revision}, {last.memory_mib} MiB, {last.provider}")
        return 0

    return _each(workers or _addresses(config, alias), tls, at)


def unload(config: Path, alias: str, workers: Sequence[str], tls: ClientTls) -> int:
    """Drop a model at each worker. Returns 1 if one fails."""

    async def at(channel: grpc.aio.Channel, worker: str) -> int:
        stub: admin_pb2_grpc.AdminServiceAsyncStub = admin_pb2_grpc.AdminServiceStub(channel)
        await stub.UnloadModel(admin_pb2.UnloadModelRequest(model=alias))
        print(f"{alias} at {worker}: unloaded")
        return 0

    return _each(workers or _addresses(config, alias), tls, at)


def show(alias: str, workers: Sequence[str], tls: ClientTls) -> int:
    """Print the card of a model as each worker has it, as JSON."""

    async def at(channel: grpc.aio.Channel, _: str) -> int:
        stub: model_pb2_grpc.ModelServiceAsyncStub = model_pb2_grpc.ModelServiceStub(channel)
        answer = await stub.GetModel(model_pb2.GetModelRequest(model=alias), timeout=SECONDS)
        print(json.dumps(MessageToDict(answer.model, preserving_proto_field_name=True), indent=2, ensure_ascii=False))
        return 0

    return _each(workers, tls, at)


def listed(workers: Sequence[str], tls: ClientTls, *, as_json: bool) -> int:
    """Print what each worker has, and in which state."""
    rows: list[dict[str, object]] = []

    async def at(channel: grpc.aio.Channel, worker: str) -> int:
        stub: model_pb2_grpc.ModelServiceAsyncStub = model_pb2_grpc.ModelServiceStub(channel)
        answer = await stub.ListModels(model_pb2.ListModelsRequest(), timeout=SECONDS)
        rows.extend(_row(worker, model) for model in answer.models)
        return 0

    code = _each(workers, tls, at)
    if as_json:
        print(json.dumps({"models": rows}, indent=2))
    else:
        _print(rows)
    return code


def _each(workers: Sequence[str], tls: ClientTls, action: Action) -> int:
    """Do something at each worker in turn; what fails is one sentence on stderr."""

    async def all_of_them() -> int:
        code = 0
        for worker in workers:
            try:
                async with _channel(worker, tls) as channel:
                    code = max(code, await action(channel, worker))
            except grpc.aio.AioRpcError as exc:
                print(f"quadrate: {worker}: {_told(exc)}", file=sys.stderr)
                code = 1
        return code

    return run(all_of_them())


def _channel(worker: str, tls: ClientTls) -> grpc.aio.Channel:
    """Return a channel to `host:port`, or over TLS to `grpcs://host:port`. Raises InvalidArgument and ConfigError."""
    target, options = Target.parse(worker), (("grpc.enable_http_proxy", 0),)
    if target.tls:
        return grpc.aio.secure_channel(target.address, tls.credentials(), options=options)
    return grpc.aio.insecure_channel(target.address, options=options)


def _told(failure: grpc.aio.AioRpcError) -> QuadrateError | str:
    if failure.code() is grpc.StatusCode.UNIMPLEMENTED:
        return "it is no worker: models are loaded and unloaded at a worker's own gRPC port, not at a gateway or the edge."
    if failures.told(failure) is None and failure.code() is grpc.StatusCode.UNAVAILABLE:
        return (
            "no worker answers there. `quadrate status` shows where the workers of this machine are; --worker names another, and by "
            f"grpcs://HOST:PORT with --ca one that speaks TLS. gRPC says: {failure.details()}"
        )
    return failures.from_rpc(failure)


async def _follow(steps: AsyncIterable[admin_pb2.LoadModelResponse], label: str) -> model_pb2.Model:
    """Show how far a load is, on a terminal, and return the last card."""
    last, drawn = model_pb2.Model(), False
    async for step in steps:
        last = step.model
        if sys.stderr.isatty() and last.HasField("load_progress"):
            print(f"\r{label}: {100 * last.load_progress:3.0f} % ", end="", file=sys.stderr, flush=True)
            drawn = True
    if drawn:
        print("\r", end="", file=sys.stderr)
    return last


def _addresses(config: Path, alias: str) -> list[str]:
    """Return where the worker for a model of the catalogue listens on this machine, unless a variable moved it."""
    cards = lock.load(config / "models.yaml").models
    if alias not in cards:
        raise ConfigError(f"{config / 'models.yaml'} describes no {alias!r}; it has: {', '.join(cards)}. --worker names a worker.")
    settings = load_worker_settings(EmbedSettings if cards[alias].task == "embed" else RerankSettings)
    return [f"{'grpcs' if settings.tls else 'grpc'}://127.0.0.1:{settings.port}"]


def _row(worker: str, model: model_pb2.Model) -> dict[str, object]:
    state = model_pb2.ModelState.Name(model.state).removeprefix("MODEL_STATE_").lower()
    return {
        "worker": worker,
        "alias": model.name,
        "state": state,
        "progress": round(model.load_progress, 2) if model.HasField("load_progress") else None,
        "revision": model.revision,
        "memory_mib": model.memory_mib if model.HasField("memory_mib") else None,
        "provider": model.provider,
        "reason": model.state_reason,
    }


def _print(rows: Sequence[dict[str, object]]) -> None:
    from rich.console import Console  # noqa: PLC0415 - only people need it
    from rich.table import Table  # noqa: PLC0415

    table = Table(box=None, pad_edge=False, header_style="dim")
    titles = {"worker": "worker", "alias": "alias", "state": "state", "revision": "revision", "memory_mib": "MiB", "reason": "reason"}
    for title in titles.values():
        table.add_column(title, overflow="fold")
    for row in rows:
        table.add_row(*("" if row[key] is None else str(row[key]) for key in titles))
    Console(highlight=False, width=None if sys.stdout.isatty() else 200).print(table)
