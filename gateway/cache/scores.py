"""Scores taken apart by document, and put together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quadrate.v1.rerank_pb2 import RerankRequest, RerankResponse

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.upstreams.errand import Errand


def narrow(errand: Errand, places: Sequence[int]) -> Errand:
    """Return an errand for the documents at some places alone, all of whose scores are wanted: the best of all are found here."""
    whole = errand.request
    assert isinstance(whole, RerankRequest)  # noqa: S101 - `method` says so
    request = RerankRequest()
    request.CopyFrom(whole)
    request.ClearField("top_n")
    del request.documents[:]
    request.documents.extend(whole.documents[place] for place in places)
    counts = [errand.counts[place] for place in places]
    query = errand.tokens - sum(errand.counts)
    return errand._replace(request=request, counts=counts, tokens=sum(counts) + query if counts else 0)


def apart(answer: RerankResponse) -> list[bytes]:
    """Return what may be kept of each document, by its place: an answer of its own, without what belongs to this request."""
    kept = {}
    for found in answer.results:
        one = RerankResponse(provenance=answer.provenance)
        one.results.add().relevance_score = found.relevance_score
        kept[found.index] = one.SerializeToString()
    return [kept[place] for place in sorted(kept)]


def together(values: Sequence[bytes], errand: Errand) -> RerankResponse:
    """Return the documents by relevance, equal scores by their place, as many as were asked for."""
    answer = RerankResponse.FromString(b"".join(values))
    assert isinstance(errand.request, RerankRequest)  # noqa: S101 - `method` says so
    for index, found in enumerate(answer.results):
        found.index = index
    answer.results.sort(key=lambda found: (-found.relevance_score, found.index))
    if errand.request.HasField("top_n"):
        del answer.results[errand.request.top_n :]
    return answer
