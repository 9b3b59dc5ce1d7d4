"""Meeting a server: the first answer shows its paths and shapes, that it has the model, and the width of its vectors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import orjson

from gateway.upstreams.facts import PeerAway
from gateway.upstreams.http.exchange import failure, no_answer
from gateway.upstreams.http.shapes import ShapeError, embeddings_body, read_scores, read_vectors, rerank_body
from quadrate.errors import DeadlineExceeded, InvalidArgument, QuadrateError, Unavailable, UpstreamFailed
from quadrate.v1 import model_pb2

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from gateway.upstreams.http.dialect import Dialect
    from gateway.upstreams.http.exchange import Exchange, Reply

CANARY = "ready?"
"""What a server is asked to embed, or for."""
_DOCUMENTS = ("yes", "no")
_MOST_BYTES = 4 * 2**20
_LONGEST_MESSAGE = 200
_UNIT_TOLERANCE = 1e-2
_OF_THE_KEY = frozenset({401, 402, 403, 407})
_OF_THE_PATH = frozenset({404, 405, 410})
_OF_THE_SHAPE = frozenset({400, 404, 405, 410, 415, 422})
"""What a server answers to a path or a shape that it does not have."""


class Refused(PeerAway):
    """A server that is there, and answers with what is no answer.

    Args:
        reason: For readiness and logs, as every PeerAway's. It may repeat what the server says.
        told: What callers are told as long as it answers so. It repeats nothing.
    """

    def __init__(self, reason: str, told: Unavailable) -> None:
        super().__init__(reason)
        self.told = told


@dataclass(frozen=True, slots=True)
class Met:
    """What was found.

    Attributes:
        dialect: How the server is asked.
        width: Of its vectors; None for a reranker.
        is_unit: Whether its vectors have length one.
    """

    dialect: Dialect
    width: int | None = None
    is_unit: bool = False


async def meet(exchange: Exchange, dialects: Iterable[Dialect], *, task: int, model: str, width: int | None, deadline: float) -> Met:
    """Ask for one answer in each dialect until one is given.

    Args:
        exchange: The server.
        dialects: The likeliest first.
        task: A number of model_pb2.Task.
        model: What the model is called there.
        width: What its vectors must have; None: whatever they have.
        deadline: On the event loop's clock.

    Raises:
        PeerAway: The server cannot be reached, or did not answer in time.
        Refused: It answered, and not with what was asked for.
    """
    refusals: list[tuple[Dialect, Reply]] = []
    for dialect in dialects:
        reply = await _ask(exchange, dialect, task, model, deadline)
        if reply.is_ok:
            return _checked(_read(reply, dialect, task), width)
        refusals.append((dialect, reply))
        if reply.status not in _OF_THE_SHAPE:
            break
    raise _refused(refusals, model)


async def _ask(exchange: Exchange, dialect: Dialect, task: int, model: str, deadline: float) -> Reply:
    is_embed = task == model_pb2.TASK_EMBED
    body = embeddings_body(model, [CANARY]) if is_embed else rerank_body(dialect.shape, model, CANARY, _DOCUMENTS, None)
    try:
        return await exchange.post(dialect.path, body, deadline=deadline, headers={}, most_bytes=_MOST_BYTES)
    except UpstreamFailed as exc:
        raise Refused(exc.message, exc) from exc
    except DeadlineExceeded as exc:
        raise PeerAway("it did not answer in time") from exc
    except Unavailable as exc:
        raise PeerAway("cannot be reached") from exc
    except QuadrateError as exc:
        raise PeerAway(exc.message) from exc


def _read(reply: Reply, dialect: Dialect, task: int) -> Met:
    try:
        if task != model_pb2.TASK_EMBED:
            read_scores(reply.data, len(_DOCUMENTS), None)
            return Met(dialect)
        rows = read_vectors(reply.data, 1).rows
    except ShapeError as exc:
        raise Refused(f"its answer at {dialect.path} {exc}", no_answer(exc)) from exc
    return Met(dialect, rows.shape[1], bool(abs(np.linalg.norm(rows[0]) - 1) < _UNIT_TOLERANCE))


def _checked(met: Met, width: int | None) -> Met:
    if width is not None and met.width != width:
        told = no_answer(f"holds vectors of {met.width} values where {width} are due")
        raise Refused(f"its vectors have {met.width} values, and had, or are to have, {width}", told)
    return met


def _refused(refusals: list[tuple[Dialect, Reply]], model: str) -> Refused:
    """Return what a server's refusals come to, by the one that tells most."""
    telling = [(dialect, reply) for dialect, reply in refusals if reply.status not in _OF_THE_PATH]
    dialect, reply = telling[-1] if telling else refusals[0]
    paths = ", ".join(dict.fromkeys(dialect.path for dialect, _ in refusals))
    return Refused(_explain(reply, dialect.path) if telling else _without_api(reply, paths, model), _told(reply))


def _told(reply: Reply) -> Unavailable:
    """Return what callers are told of a server that refuses what we ask it ourselves: what is wrong with that is no caller's fault."""
    found = failure(reply)
    if isinstance(found, Unavailable):
        return found
    if isinstance(found, InvalidArgument):
        return UpstreamFailed(f"The server that serves this model refuses whatever it is asked (HTTP {reply.status}). Tell the operator.")
    return Unavailable(found.message, retry_after_seconds=found.retry_after_seconds)


def _explain(reply: Reply, path: str) -> str:
    where = f"it answers HTTP {reply.status} at {path}"
    if reply.status in _OF_THE_KEY:
        return f"{where}: is the key that api_key_env names the right one?"
    return f"{where}{_said(reply)}"


def _without_api(reply: Reply, paths: str, model: str) -> str:
    return f"it answers HTTP {reply.status} at {paths}{_said(reply)}; is its API there, and does it have the model {model!r}?"


def _said(reply: Reply) -> str:
    return f": {message}" if (message := _message(reply)) else ""


def _message(reply: Reply) -> str:
    """Return what the server says of a refusal. It is about our own words: no caller's are in it."""
    try:
        answer: Any = orjson.loads(reply.data)
    except orjson.JSONDecodeError:
        return ""
    for name in ("error", "message", "detail"):
        found = answer.get(name) if isinstance(answer, dict) else None
        if isinstance(found, dict):
            found = found.get("message")
        if isinstance(found, str):
            return " ".join(found.split())[:_LONGEST_MESSAGE]
    return ""
