"""What the gateway's settings say of upstreams over HTTP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from quadrate.config.tls import ClientTls


@dataclass(frozen=True, slots=True, kw_only=True)
class OverHttp:
    """How servers over HTTP are met.

    Args:
        tokenizer_name: The tokenizer of models whose routes name none; empty: none.
        finds_protocol: Whether `infinity` and `rerank` may be workers. Otherwise they are taken to speak HTTP.
        takes_canaries: Whether models that nobody asks are asked now and then whether they answer.
        takes_estimates: Whether models without a tokenizer are served, at an upper bound of what they read.
        tls: Whom the gateway trusts, and who it is; None: whom the machine trusts.
    """

    tokenizer_name: str = ""
    finds_protocol: bool = True
    takes_canaries: bool = True
    takes_estimates: bool = True
    tls: ClientTls | None = None
