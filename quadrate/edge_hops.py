"""Proxies before the edge that an operator trusts: who called them, and how they called the request, is believed.

Their connections get a filter chain of their own, so that nothing that anybody else sends can be taken for theirs.
"""

from __future__ import annotations

import copy
import ipaddress
from typing import Any

Tree = dict[str, Any]
_TYPE = "type.googleapis.com/envoy.extensions."
_ID = "request.headers['x-request-id']"
_GOOD_ID: Tree = {
    "append": {
        "header": {"key": "x-request-id", "value": f"%CEL(size({_ID}) <= 128 && {_ID}.matches('^[!-~]+$') ? {_ID} : '')%"},
        "keep_empty_value": True,
        "append_action": "OVERWRITE_IF_EXISTS",
    }
}
"""Empties an id that gateways would not take; for an empty one Envoy makes its own, and so all have the same."""


def chain_of_hops(chain: Tree, networks: tuple[str, ...]) -> Tree:
    """Return the filter chain `chain` as it is for connections from `networks`: with their X-Request-ID and the caller they name.

    X-Forwarded-For goes first: the caller is its last address that is no trusted hop itself. Without it X-Real-IP counts.
    """
    ranges = [_range(network) for network in networks]
    found = copy.deepcopy(chain)
    found["filter_chain_match"] = {"source_prefix_ranges": ranges}
    manager = found["filters"][0]["typed_config"]
    manager["use_remote_address"] = False  # it, and the addresses that follow, exclude each other
    manager["original_ip_detection_extensions"] = [
        _extension("xff", "XffConfig", {"xff_trusted_cidrs": {"cidrs": ranges}, "skip_xff_append": False}),
        _extension("custom_header", "CustomHeaderConfig", {"header_name": "x-real-ip"}),
    ]
    mutations = manager["early_header_mutation_extensions"][0]["typed_config"]["mutations"]
    mutations.remove({"remove": "x-real-ip"})
    mutations.append(copy.deepcopy(_GOOD_ID))
    return found


def _extension(name: str, config: str, values: Tree) -> Tree:
    package = f"http.original_ip_detection.{name}"
    return {"name": f"envoy.{package}", "typed_config": {"@type": f"{_TYPE}{package}.v3.{config}", **values}}


def _range(network: str) -> Tree:
    parsed = ipaddress.ip_network(network)
    return {"address_prefix": str(parsed.network_address), "prefix_len": parsed.prefixlen}
