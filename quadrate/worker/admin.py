"""The admin service of a worker: models come and go while it runs. Served on the worker's own port alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quadrate.errors import InvalidArgument
from quadrate.v1 import admin_pb2
from quadrate.worker.models import describe

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from quadrate.server import Call
    from quadrate.worker.catalogue import Catalogue
    from quadrate.worker.loading import Loader


class AdminService:
    """Loads and unloads a worker's models."""

    descriptor = admin_pb2.DESCRIPTOR.services_by_name["AdminService"]

    def __init__(self, catalogue: Catalogue, loader: Loader) -> None:
        self._catalogue = catalogue
        self._loader = loader

    async def load_model(self, request: admin_pb2.LoadModelRequest, call: Call) -> AsyncIterator[admin_pb2.LoadModelResponse]:
        """Load a model and tell how far it is; a caller who leaves does not stop it. Raises ModelNotFound, LoadFailed."""
        alias = _alias(request.model)
        call.log["model"] = alias
        async for _ in self._loader.load(alias).steps():
            entry = self._catalogue.find(alias)
            if entry is not None:
                yield admin_pb2.LoadModelResponse(model=describe(entry))

    async def unload_model(self, request: admin_pb2.UnloadModelRequest, call: Call) -> admin_pb2.UnloadModelResponse:
        """Drop a model; the answer comes when its memory was given back. Raises ModelNotFound."""
        alias = _alias(request.model)
        call.log["model"] = alias
        await self._loader.unload(alias)
        return admin_pb2.UnloadModelResponse()


def _alias(name: str) -> str:
    if not name:
        raise InvalidArgument("model is empty. Name a model of the catalogue by its alias.", param="model")
    return name
