"""`quadrate smoke URL`: does a mesh do what it is for? Health, models, an embedding's width, a rerank; over REST, from anywhere."""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import httpx

if TYPE_CHECKING:
    from collections.abc import Callable

    from quadrate.config.tls import ClientTls

_TIMEOUT_SECONDS = 30.0
_QUERY = "Where are stars born?"
_DOCUMENTS = ["Bread rises because yeast makes gas.", "Stars are born in cold clouds of gas and dust."]


class _Wrong(Exception):
    """What was asked for came otherwise; the text says how."""


@dataclass(frozen=True, slots=True)
class Check:
    """One question and its outcome."""

    name: str
    ok: bool
    said: str
    seconds: float


def run(url: str, key: str | None, *, tls: ClientTls, as_json: bool) -> int:
    """Ask everything, print each outcome, and return 0 only if all are good. Raises ConfigError if a file of TLS cannot be used."""
    base = url if "://" in url else f"http://{url}"
    headers = {"authorization": f"Bearer {key}"} if key else {}
    with httpx.Client(base_url=base.rstrip("/"), headers=headers, timeout=_TIMEOUT_SECONDS, verify=tls.context()) as http:
        checks = [_check(name, ask, http) for name, ask in _QUESTIONS]
    good = all(check.ok for check in checks)
    if as_json:
        print(json.dumps({"url": base, "ok": good, "checks": [asdict(check) for check in checks]}, indent=2))
    else:
        for check in checks:
            print(f"{'good' if check.ok else 'BAD ':4}  {check.name:<11} {check.said} ({check.seconds * 1000:.0f} ms)")
    return 0 if good else 1


def _check(name: str, ask: Callable[[httpx.Client], str], http: httpx.Client) -> Check:
    began = time.monotonic()
    try:
        ok, said = True, ask(http)
    except httpx.HTTPError as exc:
        ok, said = False, f"{http.base_url} does not answer: {exc}"
    except (_Wrong, KeyError, TypeError, ValueError) as exc:
        ok, said = False, str(exc) if isinstance(exc, _Wrong) else f"the answer has not the shape it must have: {exc!r}"
    return Check(name, ok, said, time.monotonic() - began)


def _live(http: httpx.Client) -> str:
    return str(_json(http.get("/health/live"))["status"])


def _ready(http: httpx.Client) -> str:
    report = _json(http.get("/health/ready"))
    return f"{report['status']}, {len(report['upstreams'])} upstreams"


def _models(http: httpx.Client) -> str:
    names = [model["name"] for model in _listed(http)]
    if not names:
        raise _Wrong("no model is listed; enable one in routing.yaml")
    return ", ".join(names)


def _embedding(http: httpx.Client) -> str:
    found = [model for model in _listed(http) if model["task"] == "TASK_EMBED"]
    if not found:
        return "no embedding model, nothing to ask"
    for model in found:
        answer = _json(http.post("/v1/embeddings", json={"model": model["name"], "input": _QUERY, "encoding_format": "float"}))
        vector = answer["data"][0]["embedding"]
        if len(vector) != model.get("dimensions", len(vector)) or not all(map(math.isfinite, vector)):
            raise _Wrong(f"{model['name']} gave {len(vector)} numbers, its card says {model.get('dimensions')}")
    return ", ".join(f"{model['name']} {model.get('dimensions', '')} wide" for model in found)


def _rerank(http: httpx.Client) -> str:
    names = [model["name"] for model in _listed(http) if model["task"] == "TASK_RERANK"]
    if not names:
        return "no reranker, nothing to ask"
    for name in names:
        results = _json(http.post("/v1/rerank", json={"model": name, "query": _QUERY, "documents": _DOCUMENTS}))["results"]
        order = [result["index"] for result in results]
        if order != [1, 0]:
            raise _Wrong(f"{name} put the documents in the order {order}; the second one answers the question")
    return f"{', '.join(names)} found the answer"


def _listed(http: httpx.Client) -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = _json(http.get("/quadrate/v1/models")).get("models", [])
    return [model for model in listed if model.get("state") != "MODEL_STATE_DISABLED"]


def _json(response: httpx.Response) -> dict[str, Any]:
    """Return the body of a good answer; raises _Wrong with what a bad one says."""
    body: dict[str, Any] = {}
    if response.headers.get("content-type", "").startswith("application/json"):
        body = response.json()
    if not response.is_success:
        error = body.get("error")
        said = error.get("message") if isinstance(error, dict) else body.get("status")
        raise _Wrong(f"{response.request.method} {response.request.url.path} answered {response.status_code}: {said or 'nothing more'}")
    return body


_QUESTIONS = (("live", _live), ("ready", _ready), ("models", _models), ("embedding", _embedding), ("rerank", _rerank))
