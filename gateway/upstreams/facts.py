"""What is known of a model where it is served."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from quadrate.pairs import PairLayout
    from quadrate.tokenizer import TextTokenizer
    from quadrate.v1 import model_pb2


class PeerAway(Exception):
    """A server that cannot be used now. Its text says why, for readiness and logs; it goes on from `it` or `its`, or stands alone."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What a serving replica said of itself."""

    card: model_pb2.Model
    tokenizer: TextTokenizer
    pair: PairLayout | None = None
    """How a reranker reads query and document together; None for models that read texts alone."""
    over_http: bool = False
    """Whether a server over HTTP is asked."""
    in_text: bool = False
    """Whether texts are sent, which servers over HTTP and workers alike can read. Otherwise token ids, made by `tokenizer`."""
    takes_ids: bool = True
    """Whether callers may send token ids."""
    is_estimate: bool = False
    """Whether what `tokenizer` counts is an upper bound of what the model reads."""
