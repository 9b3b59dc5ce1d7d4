"""How the gateway's parts are put together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from aiohttp import web

from gateway.admission import Admission
from gateway.auth.authenticator import Authenticator
from gateway.cache.cache import Cache
from gateway.cache.recall import Recall
from gateway.cache.shared import Shared
from gateway.canary import Canaries
from gateway.dispatch import Dispatch
from gateway.doors import description
from gateway.doors.cohere import CohereService
from gateway.doors.native import EmbedService, ModelService, RerankService
from gateway.doors.openai import OpenAiService
from gateway.embedding import Embedding
from gateway.mesh_metrics import MeshMetrics
from gateway.models import Models
from gateway.overload.room import Room
from gateway.quotas.quotas import Quotas
from gateway.readiness import Readiness
from gateway.redis import SharedRedis
from gateway.reload import Configuration, Reload
from gateway.reranking import Reranking, RerankLimits
from gateway.upstreams.http.options import OverHttp
from gateway.upstreams.routes import Routes
from gateway.upstreams.table import EMBED, RERANK
from gateway.usage import UsagePage
from quadrate.config.features import NAMES
from quadrate.health import Health
from quadrate.server import Server
from quadrate.telemetry import log

if TYPE_CHECKING:
    from quadrate.config.gateway import GatewaySettings
    from quadrate.config.mapping import MoreNames
    from quadrate.server import Service
    from quadrate.telemetry import Telemetry


class Gateway:
    """One gateway: its server and its routes. An async context manager.

    Raises ConfigError when a file cannot be used.
    """

    def __init__(self, settings: GatewaySettings, telemetry: Telemetry) -> None:
        self.settings = settings
        self._metrics = telemetry.metrics
        configuration = Configuration.load(settings)
        more_names = _more_names(settings.more_names)
        self.routes = Routes(configuration.routing, telemetry.metrics, over_http=_over_http(settings), more_names=more_names)
        self.redis = _redis(settings, telemetry)
        self.quotas = self._quotas(configuration)
        self.room = Room(requests=settings.max_requests_in_flight, size_bytes=settings.max_mib_in_flight * 2**20)
        self._admission = Admission(
            Authenticator(configuration.auth, telemetry.metrics),
            request_timeout_seconds=settings.request_timeout_seconds,
            room=self.room,
            streams=Room(requests=settings.max_requests_in_flight, size_bytes=0),
            weight_of=self.quotas.weight,
        )
        self.reload = Reload(settings, configuration, self._use, telemetry.metrics)
        health = Health()
        self.readiness = Readiness(self.routes, health, telemetry.metrics)
        self.readiness.explain("configuration", self.reload.report)
        if self.redis is not None:
            self.readiness.explain("redis", self.redis.report)
        self._canaries = Canaries(self.routes, telemetry, interval_seconds=settings.canary_interval_seconds)
        self._mesh = MeshMetrics(telemetry.metrics, settings.metrics_peers, host=settings.host)
        self.server = self._server(health, telemetry)

    def _server(self, health: Health, telemetry: Telemetry) -> Server:
        settings = self.settings
        return Server(
            telemetry=telemetry,
            health=health,
            services=self._services(self._admission),
            host=settings.host,
            port=settings.port,
            http_port=settings.http_port,
            http_routes=[
                web.get("/metrics/mesh", self._mesh.handle),
                web.get("/openapi.json", description.serve),
                web.get("/usage", UsagePage(self.quotas).handle),
            ],
            readiness=self.readiness.report,
            reflection_on=settings.reflection != "off",
            reflection_guard=self._admission.check if settings.reflection == "keyed" else None,
            drain_seconds=settings.drain_seconds,
            notice_seconds=settings.drain_notice_seconds,
            tls=settings.tls,
        )

    def _quotas(self, configuration: Configuration) -> Quotas:
        return Quotas(
            configuration.limits,
            configuration.auth,
            redis=self.redis,
            metrics=self._metrics,
            gateways=self.settings.gateways,
            gateways_at_least=len(self.settings.metrics_peers) or 1,
        )

    def _services(self, admission: Admission) -> list[Service]:
        settings = self.settings
        cache = self._cache()
        dispatch = Dispatch(self.quotas, cache.may_know)
        recall = Recall(dispatch, cache)
        embedding = Embedding(self.routes, dispatch, recall, max_request_tokens=settings.safe_request_token_limit)
        limits = RerankLimits(
            documents=settings.max_documents,
            document_characters=settings.max_document_characters,
            document_tokens=settings.document_token_limit,
            request_tokens=settings.safe_request_token_limit,
        )
        reranking = Reranking(self.routes, dispatch, recall, limits)
        models = Models(self.routes, list_disabled=settings.allow_disabled_models, max_request_tokens=settings.safe_request_token_limit)
        return [
            EmbedService(admission, embedding),
            RerankService(admission, reranking),
            ModelService(admission, models),
            OpenAiService(admission, embedding, models),
            CohereService(admission, reranking, embedding),
        ]

    def _cache(self) -> Cache:
        settings = self.settings
        shared = Shared(self.redis, live_seconds=settings.cache_live_seconds) if self.redis is not None and settings.cache_redis else None
        return Cache(self._metrics, max_bytes=settings.cache_max_bytes, scope=settings.cache_scope, shared=shared)

    async def __aenter__(self) -> Self:
        if self.redis is not None:
            await self.redis.__aenter__()
        await self.quotas.__aenter__()
        await self.server.start()
        self._mesh.http_port = self.server.http_port
        await self.routes.__aenter__()
        await self.reload.__aenter__()
        await self._canaries.__aenter__()
        return self

    async def _use(self, configuration: Configuration) -> None:
        """Let another configuration take effect: all of it at one moment, between two requests. Raises ConfigError, and changes nothing."""
        authenticator = Authenticator(configuration.auth, self._metrics, before=self._admission.authenticator)

        def switch() -> None:
            self._admission.use(authenticator)
            self.quotas.use(configuration.limits, configuration.auth)

        await self.routes.apply(configuration.routing, then=switch)

    async def __aexit__(self, *_: object) -> None:
        await self._canaries.__aexit__()
        await self.reload.__aexit__()
        await self.server.stop()
        await self.routes.__aexit__()
        await self.quotas.__aexit__()
        if self.redis is not None:
            await self.redis.__aexit__()


def _redis(settings: GatewaySettings, telemetry: Telemetry) -> SharedRedis | None:
    if settings.redis_url is None:
        return None
    return SharedRedis(settings.redis_url.get_secret_value(), timeout_seconds=settings.redis_timeout_seconds, metrics=telemetry.metrics)


def _more_names(names: MoreNames) -> dict[tuple[int, str], str]:
    mappings = {EMBED: names.embed, RERANK: names.rerank}
    return {(task, name): target for task, mapping in mappings.items() for name, target in mapping.items()}


def _over_http(settings: GatewaySettings) -> OverHttp:
    for flag in settings.unknown_feature_flags:
        log.warn("a feature flag is not known to this version", flag=flag, known=NAMES)
    features = settings.features
    return OverHttp(
        tokenizer_name=settings.tokenizer_name,
        finds_protocol=features.protocol_detection,
        takes_canaries=features.http_canaries,
        takes_estimates=features.estimated_tokens,
        tls=settings.upstream_tls,
    )
