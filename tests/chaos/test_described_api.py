"""Schemathesis makes requests of docs/openapi.yaml, good and bad: none is answered by a fault, and each answer is as it is described."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import requests
import schemathesis
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import response_schema_conformance
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import content_type_conformance, status_code_conformance

from quadrate.config.shipped import shipped
from tests.chaos.conftest import is_full

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.chaos.conftest import StartMesh
    from tests.chaos.mesh import ChaosMesh

_SCHEMA: Any = schemathesis.openapi.from_dict(yaml.safe_load(shipped("openapi.yaml").read_text(encoding="utf-8")))
_OPERATIONS = [found.ok() for found in _SCHEMA.get_all_operations()]
ASKED = [
    pytest.param(operation, mode, id=f"{operation.label} {mode.value}")
    for operation in _OPERATIONS
    for mode in GenerationMode
    if mode is GenerationMode.POSITIVE or operation.body  # without a body there is nothing to be said wrongly
]
CONFORMANCE = [status_code_conformance, content_type_conformance, response_schema_conformance]
FAULTS = {500, 502, 503, 504}
REQUESTS = 1_000 if is_full() else 25
"""Of each operation, as described and not as described."""
_SETTINGS = settings(
    max_examples=REQUESTS,
    deadline=None,
    derandomize=True,
    database=None,
    phases=(Phase.generate,),
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def mesh(start_mesh: StartMesh) -> Iterator[ChaosMesh]:
    """A mesh of every kind of worker."""
    with start_mesh(gateways=1, embed_workers=1, rerank_workers=1) as running:
        yield running


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    """Connections that are kept."""
    with requests.Session() as found:
        yield found


@pytest.mark.parametrize(("operation", "mode"), ASKED)
def test_answers_are_as_described(operation: Any, mode: GenerationMode, mesh: ChaosMesh, session: requests.Session) -> None:
    """Status, content type and body of the answer to whatever the description allows, and to what it does not."""

    @_SETTINGS
    @given(case=operation.as_strategy(mode))
    def holds(case: Any) -> None:
        answer = case.call(base_url=mesh.url, session=session, timeout=60)
        assert answer.status_code not in FAULTS, f"{answer.status_code} {answer.text[:300]} to {case.as_curl_command()[:2_000]}"
        case.validate_response(answer, checks=CONFORMANCE)

    holds()
