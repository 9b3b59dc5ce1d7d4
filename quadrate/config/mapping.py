"""More names of models, besides those that the files give: EMBED_MODEL_MAPPING and RERANK_MODEL_MAPPING."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

import pydantic
from pydantic_settings import NoDecode

from quadrate.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from quadrate.config.routing import Route, RoutingFile


def _read(value: str | dict[str, str]) -> object:
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError as exc:
        raise ValueError('it must be a JSON object of names, such as {"our-model": "minilm"}') from exc


ModelMapping = Annotated[dict[str, str], NoDecode, pydantic.BeforeValidator(_read)]
"""Name → the alias or the served name that it stands for."""


@dataclass(frozen=True, slots=True)
class MoreNames:
    """What both variables say to a gateway: names of requests, with the `model` or `served_name` of a route that each stands for.

    Workers read the same variables, and there a name stands for one of the catalogue. So one may well lead nowhere here.
    """

    embed: Mapping[str, str] = field(default_factory=dict)
    rerank: Mapping[str, str] = field(default_factory=dict)

    def check(self, routing: RoutingFile) -> None:
        """Raise ConfigError if a name is another route's own."""
        for variable, mapping, routes in self._beside(routing):
            owners = _owners(routes)
            for name, target in mapping.items():
                if target in owners and owners.get(name, owners[target]) != owners[target]:
                    raise ConfigError(f"{variable}: {name!r} is the name of {owners[name]!r} already; choose another")

    def loose_ends(self, routing: RoutingFile) -> Iterator[str]:
        """Give a sentence for each name that stands for no route."""
        for variable, mapping, routes in self._beside(routing):
            owners = _owners(routes)
            known = ", ".join(dict.fromkeys(owners.values())) or "none"
            for name, target in mapping.items():
                if target not in owners and name not in owners:
                    yield f"{variable}: {name!r} stands for {target!r}, which no route has as its name; there are: {known}"

    def _beside(self, routing: RoutingFile) -> tuple[tuple[str, Mapping[str, str], Sequence[Route]], ...]:
        return ("EMBED_MODEL_MAPPING", self.embed, routing.embeddings), ("RERANK_MODEL_MAPPING", self.rerank, routing.rerank)


def _owners(routes: Sequence[Route]) -> dict[str, str]:
    return {name: route.model for route in routes for name in route.names}
