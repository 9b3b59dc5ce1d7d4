"""The tokenizers that workers hand over: each text of a tokenizer.json is fetched once, whatever the number of models that use it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from quadrate.tokenizer import TextTokenizer

if TYPE_CHECKING:
    from gateway.upstreams.peers import Peer
    from quadrate.v1 import model_pb2


class TokenizerError(Exception):
    """A tokenizer that cannot be used. Its text says why, for readiness and logs."""


class Tokenizers:
    """Tokenizers by the SHA-256 of their text and the model's limit, as long as somebody uses them: models may be replaced for months."""

    def __init__(self) -> None:
        self._known: WeakValueDictionary[tuple[str, int], TextTokenizer] = WeakValueDictionary()
        self._fetching: dict[tuple[str, int], asyncio.Lock] = {}

    async def of(self, card: model_pb2.Model, peer: Peer) -> TextTokenizer:
        """Return the tokenizer of a card, fetched from the peer if it is new.

        Raises:
            TokenizerError: What came is not what the card says.
            grpc.aio.AioRpcError: The peer was lost meanwhile.
        """
        key = (card.tokenizer_sha256, card.max_tokens)
        async with self._fetching.setdefault(key, asyncio.Lock()):
            found = self._known.get(key)
            if found is None:
                source = self._text(card.tokenizer_sha256) or await peer.tokenizer(card.name)
                found = self._known[key] = await asyncio.to_thread(_build, source, card)
        return found

    def _text(self, sha256: str) -> bytes | None:
        return next((tokenizer.source for tokenizer in self._known.values() if tokenizer.sha256 == sha256), None)


def _build(source: bytes, card: model_pb2.Model) -> TextTokenizer:
    try:
        tokenizer = TextTokenizer.from_json(source, max_tokens=card.max_tokens)
    except ValueError as exc:
        raise TokenizerError(f"its tokenizer cannot be read: {exc}") from exc
    if tokenizer.sha256 != card.tokenizer_sha256:
        raise TokenizerError(
            f"its tokenizer has the SHA-256 {tokenizer.sha256[:12]}…, and its card says {card.tokenizer_sha256[:12] or 'none'}…"
        )
    return tokenizer
