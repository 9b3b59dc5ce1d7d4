"""Routes to the workers of this machine: which they are, and where they lead when flags move or multiply the workers."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from quadrate.config.routing import EmbeddingRoute, RerankRoute, Route, RoutingFile, Upstream
from quadrate.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from quadrate.config.models import ModelCard, ModelsFile

LOOPBACK = "127.0.0.1"
_LOCAL_NAMES = {LOOPBACK, "localhost", "[::1]"}
RouteT = TypeVar("RouteT", bound=Route)


def with_added(routing: RoutingFile, added: Mapping[str, ModelCard], *, embed: Sequence[str], rerank: Sequence[str]) -> RoutingFile:
    """Route the models of `--model` to the workers at `embed` and `rerank`; an alias that is routed already is replaced."""
    embeddings = [route for route in routing.embeddings if route.model not in added]
    rerank_routes = [route for route in routing.rerank if route.model not in added]
    for alias, card in added.items():
        url, *replicas = (f"grpc://{address}" for address in (embed if card.task == "embed" else rerank))
        upstream = Upstream(type="grpc", url=url, replicas=tuple(replicas))
        if card.task == "embed":
            embeddings.append(EmbeddingRoute(model=alias, served_name=card.served_name, upstream=upstream))
        else:
            rerank_routes.append(RerankRoute(model=alias, served_name=card.served_name, upstream=upstream))
    return RoutingFile(embeddings=tuple(embeddings), rerank=tuple(rerank_routes))


def named_ports(routes: Sequence[Route]) -> tuple[int, ...]:
    """Return the ports of this machine's workers that enabled routes name, each once, in the order written."""
    here = (upstream for route in routes if route.enabled for upstream in route.groups if _is_here(upstream))
    return tuple(dict.fromkeys(_port(target) for upstream in here for target in upstream.targets))


def served_at(routes: Sequence[Route], port: int) -> tuple[str, ...]:
    """Return the aliases of the enabled routes that lead to the worker of this machine at `port`."""
    return tuple(route.model for route in routes if route.enabled and port in named_ports((route,)))


def localised(
    routing: RoutingFile, *, embed: Sequence[str] | None = None, rerank: Sequence[str] | None = None, tls: bool = False
) -> RoutingFile:
    """Point every route to a worker of this machine at the workers that will run, given as `host:port`; with `tls` by grpcs.

    None: at those ports that the routes name.
    """
    return RoutingFile(
        embeddings=tuple(_at(route, embed, tls=tls) for route in routing.embeddings),
        rerank=tuple(_at(route, rerank, tls=tls) for route in routing.rerank),
    )


def served_here(routes: Sequence[Route], models: ModelsFile, task: str) -> tuple[str, ...]:
    """Return the aliases of the enabled routes that lead to a worker of this machine; raises ConfigError for one without a card."""
    aliases = tuple(route.model for route in routes if route.enabled and any(map(_is_here, route.groups)))
    for alias in aliases:
        card = models.models.get(alias)
        if card is None:
            raise ConfigError(
                f"routing.yaml sends {alias} to a worker of this machine, and models.yaml does not describe it; "
                f"add its card there, give --model {alias}=FOLDER_OR_HUB_NAME, or set enabled: false."
            )
        if card.task != task:
            raise ConfigError(f"{alias} is for task {card.task} in models.yaml and stands among the {task} routes of routing.yaml.")
    return aliases


def _at(route: RouteT, addresses: Sequence[str] | None, *, tls: bool) -> RouteT:
    """Return the route with its upstreams on this machine moved; the very same one if nothing moves."""

    def moved(upstream: Upstream) -> Upstream:
        is_secure = upstream.url.startswith("grpcs://")
        found = tuple(f"{LOOPBACK}:{_port(target)}" for target in upstream.targets) if addresses is None else tuple(addresses)
        if upstream.targets == found and is_secure >= tls:
            return upstream
        urls = tuple(f"{'grpcs' if tls or is_secure else 'grpc'}://{address}" for address in found)
        return upstream.model_copy(update={"url": urls[0], "replicas": urls[1:]})

    if route.upstream is not None:
        return route.model_copy(update={"upstream": moved(route.upstream) if _is_here(route.upstream) else route.upstream})
    here = [upstream for upstream in route.groups if _is_here(upstream)]
    stay = here if addresses is None else here[:1]  # all would be moved to the same addresses: the first group has them all
    kept = (upstream for upstream in route.upstreams if upstream in stay or not _is_here(upstream))
    return route.model_copy(update={"upstreams": tuple(moved(upstream) if _is_here(upstream) else upstream for upstream in kept)})


def _port(target: str) -> int:
    return int(target.rpartition(":")[2])


def _is_here(upstream: Upstream) -> bool:
    """Tell whether an upstream is a worker that this command runs. One that has a key or another name for the model is another mesh."""
    is_ours = upstream.type == "grpc" and not upstream.model and upstream.api_key is None and not upstream.api_key_env
    return is_ours and all(target.rpartition(":")[0] in _LOCAL_NAMES for target in upstream.targets)
