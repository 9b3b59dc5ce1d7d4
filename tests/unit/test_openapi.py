"""docs/openapi.yaml describes the REST surface: no more and no less than the http rules of the protos and Envoy's routes."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.api import annotations_pb2
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from openapi_spec_validator import validate

from re import _constants as kinds, _parser as regex  # isort: skip

from quadrate import __version__
from quadrate.config.edge import EdgeSettings
from quadrate.config.shipped import shipped
from quadrate.edge import configuration
from quadrate.edge_tls import Secrets

OPERATIONS = {("get", "/health/live"), ("get", "/health/ready"), ("get", "/metrics"), ("get", "/openapi.json")}
"""What a gateway answers on its HTTP port; all else is in the protos."""


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    """The description, as it is written."""
    found: dict[str, Any] = yaml.safe_load(shipped("openapi.yaml").read_text(encoding="utf-8"))
    return found


def documented(document: dict[str, Any]) -> set[tuple[str, str]]:
    """Return method and path of each operation."""
    return {(method, path) for path, operations in document["paths"].items() for method in operations}


def http_rules() -> set[tuple[str, str]]:
    """Return method and path of each http rule in Envoy's descriptor set."""
    files = FileDescriptorSet.FromString((shipped("envoy") / "descriptors.binpb").read_bytes()).file
    methods = (method for file in files for service in file.service for method in service.method)
    rules = (method.options.Extensions[annotations_pb2.http] for method in methods)
    found = {(rule.WhichOneof("pattern"), getattr(rule, rule.WhichOneof("pattern") or "custom")) for rule in rules if rule.ByteSize()}
    return {(str(method), path.replace("=**", "")) for method, path in found}


def routed() -> set[str]:
    """Return the REST paths that Envoy sends on: every string that its routes' expressions match, with {model} for whatever follows."""
    listener = configuration(EdgeSettings(), Secrets(Path("/run/quadrate")))["static_resources"]["listeners"][0]
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    routes = [route for route in manager["route_config"]["virtual_hosts"][0]["routes"] if "route" in route]
    rest = [route["match"] for route in routes if route["name"] not in {"stream", "unary"}]
    expressions = [match["safe_regex"]["regex"] if "safe_regex" in match else re.escape(match["path"]) for match in rest]
    return {path for expression in expressions for path in strings(regex.parse(expression))}


def strings(parsed: Any) -> list[str]:
    """Return all strings that a parsed expression matches. It knows what envoy.yaml uses: letters, sets, groups, `|`, `?` and `.+`."""
    return ["".join(parts) for parts in itertools.product(*(choices(kind, value) for kind, value in parsed))]


def choices(kind: Any, value: Any) -> list[str]:
    """Return the strings that one part of an expression matches."""
    if kind is kinds.LITERAL:
        return [chr(value)]
    if kind is kinds.IN:
        return [chr(number) for what, number in value if what is kinds.LITERAL]
    if kind is kinds.BRANCH:
        return [found for branch in value[1] for found in strings(branch)]
    if kind is kinds.SUBPATTERN:
        return strings(value[3])
    assert kind is kinds.MAX_REPEAT, kind
    least, _, inner = value
    if inner[0][0] is kinds.ANY:
        return ["{model}"]
    return [*([""] if least == 0 else []), *strings(inner)]


def test_the_description_is_valid_openapi(document: dict[str, Any]) -> None:
    """OpenAPI 3.1, of this version."""
    validate(document)
    assert document["info"]["version"] == __version__


def test_every_http_rule_is_described_and_nothing_else(document: dict[str, Any]) -> None:
    """The protos' http rules and the gateway's own HTTP paths are the whole description."""
    assert documented(document) == http_rules() | OPERATIONS


def test_envoy_routes_every_described_path_and_nothing_else(document: dict[str, Any]) -> None:
    """What the description does not name is a 404 at the edge, what it names reaches a gateway."""
    assert routed() == set(document["paths"])


def test_operations_have_names_of_their_own(document: dict[str, Any]) -> None:
    """Generators of clients name functions by operationId."""
    names = [operation["operationId"] for operations in document["paths"].values() for operation in operations.values()]
    assert len(names) == len(set(names))
