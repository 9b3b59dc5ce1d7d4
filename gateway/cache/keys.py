"""What makes two answers the same one: the model and how it computes, the token ids that it reads, and the form of the answer.

Ids hold the prompt and what truncation left, so neither is said again. A key is a BLAKE2b digest of 16 bytes (RFC 7693): among 2^40
entries two alike by chance have a probability of 2^-49.
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import blake2b
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from quadrate.v1.embed_pb2 import EmbedRequest
    from quadrate.v1.model_pb2 import Model
    from quadrate.v1.options_pb2 import Provenance, TokenIds
    from quadrate.v1.rerank_pb2 import RerankRequest

DIGEST_BYTES = 16


def maker(card: Model, *, scope: str = "") -> bytes | None:
    """Return what stands for a model as it computes now; None if it cannot say how, so that nothing can be known of it.

    The fingerprint holds what its catalogue and its files say, its worker's settings the rest. `scope` sets apart those who are not to
    share answers.
    """
    if not card.revision or not card.fingerprint:
        return None
    return _digest(card.task, card.revision, card.fingerprint, card.tokenizer_sha256, card.precision, card.provider, scope)


def is_made_by(provenance: Provenance, card: Model) -> bool:
    """Tell whether an answer comes from the model that the card describes: another replica may be ahead of it by a revision or an edit."""
    made = (provenance.revision, provenance.fingerprint, provenance.precision, provenance.provider)
    return made == (card.revision, card.fingerprint, card.precision, card.provider)


def of_texts(model: bytes, request: EmbedRequest) -> Iterator[bytes]:
    """Give the key of each input's embedding, in order."""
    start = blake2b(model, digest_size=DIGEST_BYTES)
    start.update(_form_of_vectors(request))
    for item in request.inputs:
        key = start.copy()
        key.update(_bytes(item.token_ids))
        yield key.digest()


def of_documents(model: bytes, request: RerankRequest) -> Iterator[bytes]:
    """Give the key of each document's score for the query, in order."""
    start = blake2b(model, digest_size=DIGEST_BYTES)
    query = _bytes(request.query_token_ids)
    start.update(b"raw" if request.raw_scores else b"score")
    start.update(len(query).to_bytes(4, "little") + query)
    for item in request.documents:
        key = start.copy()
        key.update(_bytes(item.token_ids))
        yield key.digest()


def _form_of_vectors(request: EmbedRequest) -> bytes:
    """Return what an answer depends on besides model and ids. Each part ends, so that no two forms look alike."""
    dimensions = request.dimensions if request.HasField("dimensions") else ""
    normalize = request.normalize if request.HasField("normalize") else ""
    return f"{sorted(request.outputs)}/{request.value_type}/{dimensions}/{normalize}\n".encode()


def _bytes(ids: TokenIds) -> bytes:
    """Return ids as protobuf writes them, which tells any two lists apart and takes a tenth of the time that Python would."""
    return ids.SerializeToString()


@lru_cache(maxsize=1024)
def _digest(*parts: object) -> bytes:
    return blake2b(repr(parts).encode(), digest_size=DIGEST_BYTES).digest()
