"""The table of every metric: code, documentation, dashboards and tests read it, so they cannot disagree.

Names are those that operators' dashboards use. In them the gateway is called `router`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

LATENCY_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
SIZE_BYTES = tuple(float(4**power) for power in range(3, 13))
BATCH_TOKENS = (16.0, 32.0, 64.0, 128.0, 256.0, 384.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 32768.0)
COUNTS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0)
RATIO = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98, 1.0)


@dataclass(frozen=True, slots=True)
class Instrument:
    """One metric.

    Args:
        name: Its full name, unit included, as Prometheus prints it.
        kind: What it is.
        help: One sentence.
        labels: Label names. Their values are few and known: routes, models, principals, reasons; never a text of a user.
        buckets: Upper bounds of a histogram's buckets, in the unit of the name.
        component: The processes that have it: a metrics prefix, or `all`.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = LATENCY_SECONDS
    component: Literal["router", "embed", "rerank", "all"] = "all"


_ROUTER = (
    Instrument(
        "router_requests_total",
        "counter",
        "Requests that were answered, by how they ended.",
        ("method", "model", "principal", "status"),
        component="router",
    ),
    Instrument(
        "router_request_duration_seconds",
        "histogram",
        "From a request's arrival at the gateway to its answer.",
        ("method", "model"),
        component="router",
    ),
    Instrument(
        "router_request_stage_seconds",
        "histogram",
        "Time in each stage of a request at the gateway.",
        ("stage",),
        component="router",
    ),
    Instrument(
        "router_tokens_total",
        "counter",
        "Tokens that were charged.",
        ("model", "principal"),
        component="router",
    ),
    Instrument(
        "router_upstream_latency_seconds",
        "histogram",
        "One call to an upstream, from sending to its answer.",
        ("upstream", "model"),
        component="router",
    ),
    Instrument(
        "router_upstream_errors_total",
        "counter",
        "Calls to an upstream that failed, by gRPC status.",
        ("upstream", "status"),
        component="router",
    ),
    Instrument(
        "router_upstream_retries_total",
        "counter",
        "Calls that were tried again, nearly always on another replica.",
        ("model",),
        component="router",
    ),
    Instrument(
        "router_upstream_retries_denied_total",
        "counter",
        "Failures that were told because too many calls were being tried again already.",
        ("model",),
        component="router",
    ),
    Instrument(
        "router_upstream_hedges_total",
        "counter",
        "Short requests that were sent to a second replica, by which of the two answered: `first` or `second`.",
        ("model", "answered"),
        component="router",
    ),
    Instrument(
        "router_upstream_ejections_total",
        "counter",
        "How often a replica was left: because it failed or was slower than the others (`outlier`), or did not answer (`silent`).",
        ("upstream", "model", "cause"),
        component="router",
    ),
    Instrument(
        "router_upstream_serving",
        "gauge",
        "1 while an upstream's health says SERVING, otherwise 0.",
        ("upstream",),
        component="router",
    ),
    Instrument(
        "router_upstream_outstanding_tokens",
        "gauge",
        "Tokens sent to an upstream and not yet answered.",
        ("upstream",),
        component="router",
    ),
    Instrument(
        "router_overload_refusals_total",
        "counter",
        "Requests refused because no upstream had room for them, without asking one again.",
        ("model", "priority"),
        component="router",
    ),
    Instrument(
        "router_rate_limit_drops_total",
        "counter",
        "Requests refused because a limit was used up.",
        ("principal", "limit"),
        component="router",
    ),
    Instrument(
        "router_jwks_fetches_total",
        "counter",
        "Fetches of a token issuer's signing keys, by how they ended: ok, failed.",
        ("outcome",),
        component="router",
    ),
    Instrument(
        "router_cache_hits_total",
        "counter",
        "Texts and documents whose answers were known.",
        ("model",),
        component="router",
    ),
    Instrument(
        "router_cache_misses_total",
        "counter",
        "Texts and documents whose answers were looked for and not known.",
        ("model",),
        component="router",
    ),
    Instrument(
        "router_cache_evictions_total",
        "counter",
        "Answers that had to make room for others.",
        component="router",
    ),
    Instrument(
        "router_cache_bytes",
        "gauge",
        "What kept answers take, of ROUTER_CACHE_MAX_BYTES.",
        component="router",
    ),
    Instrument(
        "router_cache_entries",
        "gauge",
        "Answers that are kept.",
        component="router",
    ),
    Instrument(
        "router_quota_local_charges_total",
        "counter",
        "Requests that this gateway counted by itself, against its share of the limits, because Redis was away.",
        component="router",
    ),
    Instrument(
        "router_quota_refunds_total",
        "counter",
        "Requests whose charge was given back, because they failed or their caller had gone.",
        ("principal",),
        component="router",
    ),
    Instrument(
        "router_quota_gateways",
        "gauge",
        "Gateways that share the limits, as this one knows.",
        component="router",
    ),
    Instrument(
        "router_redis_up",
        "gauge",
        "1 while Redis or Valkey answers, 0 while it is away and limits go on locally. Absent where none is configured.",
        component="router",
    ),
    Instrument(
        "router_redis_errors_total",
        "counter",
        "Calls and probes of Redis or Valkey that failed, by kind.",
        ("kind",),
        component="router",
    ),
    Instrument(
        "router_readiness_degraded_total",
        "counter",
        "How often readiness left ok.",
        ("status",),
        component="router",
    ),
    Instrument(
        "router_canaries_total",
        "counter",
        "Requests of the gateway's own to models that had not answered for a while: answered, failed, refused for want of room.",
        ("upstream", "model", "outcome"),
        component="router",
    ),
    Instrument(
        "router_config_reloads_total",
        "counter",
        "How often edited files took effect (`applied`) or were refused (`refused`).",
        ("outcome",),
        component="router",
    ),
    Instrument(
        "router_config_last_reload_successful",
        "gauge",
        "1 while the files as they are now are in force, 0 while they are refused and former ones are.",
        component="router",
    ),
    Instrument(
        "router_config_last_applied_timestamp_seconds",
        "gauge",
        "When the configuration in force was taken, in Unix seconds.",
        component="router",
    ),
    Instrument(
        "http_request_size_bytes",
        "histogram",
        "Size of request bodies as the gateway reads them.",
        ("method",),
        SIZE_BYTES,
        component="router",
    ),
    Instrument(
        "http_response_size_bytes",
        "histogram",
        "Size of answer bodies as the gateway writes them.",
        ("method",),
        SIZE_BYTES,
        component="router",
    ),
)


_OF_A_MODEL = ("model",)
_EITHER_WORKER = (
    Instrument("requests_total", "counter", "Requests that were answered, by how they ended.", ("method", "model", "status")),
    Instrument("request_duration_seconds", "histogram", "From a request's arrival to its answer.", ("method", "model")),
    Instrument("errors_total", "counter", "Requests that failed, by reason.", ("model", "reason")),
    Instrument("documents_total", "counter", "Texts or documents that the model read.", _OF_A_MODEL),
    Instrument("tokens_total", "counter", "Tokens that the model read, special tokens included.", _OF_A_MODEL),
    Instrument("long_texts_total", "counter", "Texts that ran beside the others because they are long.", _OF_A_MODEL),
    Instrument("shared_answers_total", "counter", "Texts that were answered by the run of an identical one under way.", _OF_A_MODEL),
    Instrument("batch_texts", "histogram", "Texts in a batch.", _OF_A_MODEL, COUNTS),
    Instrument("batch_tokens", "histogram", "Tokens in a batch.", _OF_A_MODEL, BATCH_TOKENS),
    Instrument(
        "batch_attention_fill_ratio",
        "histogram",
        "Real tokens over the places in the attention's padded view of a batch; matrix products know no padding.",
        _OF_A_MODEL,
        RATIO,
    ),
    Instrument("queue_seconds", "histogram", "Waiting for a place in a batch.", _OF_A_MODEL),
    Instrument("inference_seconds", "histogram", "One batch through the model.", _OF_A_MODEL),
    Instrument("queue_tokens", "gauge", "Tokens that wait.", _OF_A_MODEL),
    Instrument("queue_estimated_seconds", "gauge", "How long the work that waits will take, as the cost model has it.", _OF_A_MODEL),
    Instrument("dropped_total", "counter", "Texts that were dropped before they ran, by reason.", ("model", "reason")),
    Instrument(
        "config_reloads_total", "counter", "How often an edited catalogue was taken (`applied`) or refused (`refused`).", ("outcome",)
    ),
    Instrument(
        "config_last_reload_successful",
        "gauge",
        "1 while the catalogue as it is now is in force, 0 while it is refused and the former one is.",
    ),
    Instrument("model_memory_bytes", "gauge", "Memory that the model's weights take in this process.", _OF_A_MODEL),
    Instrument("model_load_seconds", "gauge", "From the start of loading to the first right answer.", _OF_A_MODEL),
    Instrument("model_serving", "gauge", "1 while the model answers, otherwise 0.", _OF_A_MODEL),
)
"""What both kinds of worker tell; the kind goes before each name."""


def _worker(kind: Literal["embed", "rerank"]) -> tuple[Instrument, ...]:
    """Return the metrics of one kind of worker."""
    return tuple(replace(one, name=f"{kind}_{one.name}", component=kind) for one in _EITHER_WORKER)


_ALL = (
    Instrument(
        "quadrate_certificate_expires_timestamp_seconds",
        "gauge",
        "When the certificate of the gRPC port ceases to be valid, in Unix seconds. Absent without TLS.",
        ("certificate",),
    ),
    Instrument(
        "quadrate_certificate_failures_total",
        "counter",
        "How often a certificate that had changed could not be used.",
        ("certificate",),
    ),
)

INSTRUMENTS: tuple[Instrument, ...] = (*_ALL, *_ROUTER, *_worker("embed"), *_worker("rerank"))
