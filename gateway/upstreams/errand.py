"""What is asked of a worker on a caller's behalf."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.auth.principal import Principal
    from gateway.upstreams.facts import Facts
    from quadrate.v1.embed_pb2 import EmbedRequest
    from quadrate.v1.rerank_pb2 import RerankRequest


class Errand(NamedTuple):
    """A validated request, as a worker gets it.

    Attributes:
        method: The worker's method.
        request: Its message: token ids alone, or texts as the model is to read them, so that nothing is left for the worker to decide.
        read_by: The card and tokenizer that the ids were made by.
        tokens: What the model will read of it, which is what it costs.
        principal: Who asked.
        counts: What the model will read of each document; empty for texts to embed, which are read as long as they are.
        in_text: Whether the message holds texts, which any replica reads, rather than ids, which mean something to their tokenizer alone.
    """

    method: Literal["embed", "rerank"]
    request: EmbedRequest | RerankRequest
    read_by: Facts
    tokens: int
    principal: Principal
    counts: Sequence[int] = ()
    in_text: bool = False
