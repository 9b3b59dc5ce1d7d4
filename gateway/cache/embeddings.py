"""Embeddings taken apart by text, and put together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quadrate.v1.embed_pb2 import EmbedRequest, EmbedResponse

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.upstreams.errand import Errand


def narrow(errand: Errand, places: Sequence[int]) -> Errand:
    """Return an errand for the texts at some places alone."""
    whole = errand.request
    assert isinstance(whole, EmbedRequest)  # noqa: S101 - `method` says so
    request = EmbedRequest()
    request.CopyFrom(whole)
    del request.inputs[:]
    request.inputs.extend(whole.inputs[place] for place in places)
    special = errand.read_by.tokenizer.special_count
    return errand._replace(request=request, tokens=sum(len(item.token_ids.ids) + special for item in request.inputs))


def apart(answer: EmbedResponse) -> list[bytes]:
    """Return what may be kept of each text: an answer of its own, without what belongs to this request."""
    kept = []
    for found in answer.embeddings:
        one = EmbedResponse(embeddings=[found], provenance=answer.provenance)
        one.embeddings[0].ClearField("index")
        one.embeddings[0].ClearField("usage")
        kept.append(one.SerializeToString())
    return kept


def together(values: Sequence[bytes], errand: Errand) -> EmbedResponse:
    """Return one answer to all texts, in order. Messages that follow one another are one message with the items of all (protobuf)."""
    answer = EmbedResponse.FromString(b"".join(values))
    assert isinstance(errand.request, EmbedRequest)  # noqa: S101 - `method` says so
    special = errand.read_by.tokenizer.special_count
    for index, (found, item) in enumerate(zip(answer.embeddings, errand.request.inputs, strict=True)):
        found.index = index
        found.usage.tokens, found.usage.tokens_cut = len(item.token_ids.ids) + special, 0
        answer.usage.tokens += found.usage.tokens
    return answer
