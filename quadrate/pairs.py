"""How a reranker reads a query and a document together, as one text of one model.

prefix ids │ the query's ids │ infix ids │ the document's ids │ suffix ids

The two are tokenised apart, so that a query is read once for all of its documents, and that gateway and worker count alike. For
tokenizers that read pairs (BERT, XLM-R, ModernBERT) this is what they do themselves. Where a template makes one text of both, it is to
be divided where the tokenizer divides in any case: Qwen's between `:` and the blank after it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np

from quadrate.cuts import cut, in_common
from quadrate.errors import ContextLengthExceeded
from quadrate.v1 import model_pb2

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_PLACE = re.compile(r"\{(instruction|query|document)\}")


@dataclass(frozen=True, slots=True, kw_only=True)
class PairLayout:
    """Where query and document stand in what the model reads.

    Attributes:
        prefix_ids: Token ids before the query.
        infix_ids: Token ids between the two.
        suffix_ids: Token ids after the document.
        query_template: The text that is tokenised for a query, with `{query}` and perhaps `{instruction}` in it.
        document_template: The text that is tokenised for a document; it ends with `{document}`, so that a cut takes nothing else.
        instruction: What stands for `{instruction}` when a request gives none.

    Raises ValueError for templates that do not hold what they are to hold.
    """

    prefix_ids: tuple[int, ...] = ()
    infix_ids: tuple[int, ...] = ()
    suffix_ids: tuple[int, ...] = ()
    query_template: str = "{query}"
    document_template: str = "{document}"
    instruction: str = ""

    def __post_init__(self) -> None:
        if sorted(set(_PLACE.findall(self.query_template)) - {"instruction"}) != ["query"]:
            raise ValueError(f"the query's template must hold {{query}}, perhaps {{instruction}}, no {{document}}: {self.query_template!r}")
        if _PLACE.findall(self.document_template) != ["document"] or not self.document_template.endswith("{document}"):
            raise ValueError(f"the document's template must hold {{document}} once, at its end: {self.document_template!r}")
        if bool(self.instruction) != self.takes_instruction:
            raise ValueError("an instruction is needed if the query's template holds {instruction}, and only then")

    @classmethod
    def around(cls, ids: Sequence[int], owners: Sequence[int | None]) -> Self:
        """Return the layout of a tokenizer that reads pairs.

        Args:
            ids: What it makes of two texts together.
            owners: For each of them 0 or 1, the text that it is of, or None.

        Raises ValueError if it does not put the two one after the other.
        """
        if 0 not in owners or 1 not in owners:
            raise ValueError("reads no pairs")
        first, second = owners.index(0), owners.index(1)
        last = len(owners) - owners[::-1].index(1)
        infix = len(owners) - owners[::-1].index(0)
        if not first < infix <= second < last or {*owners[first:infix]} != {0} or {*owners[second:last]} != {1}:
            raise ValueError("does not put a pair's texts one after the other")
        return cls(prefix_ids=tuple(ids[:first]), infix_ids=tuple(ids[infix:second]), suffix_ids=tuple(ids[last:]))

    @classmethod
    def of(cls, message: model_pb2.PairLayout) -> Self:
        """Return the layout that a model's card carries. Raises ValueError."""
        return cls(
            prefix_ids=tuple(message.prefix_ids),
            infix_ids=tuple(message.infix_ids),
            suffix_ids=tuple(message.suffix_ids),
            query_template=message.query_template or "{query}",
            document_template=message.document_template or "{document}",
            instruction=message.instruction,
        )

    def message(self) -> model_pb2.PairLayout:
        """Return the layout as a model's card carries it; templates that change nothing are left out."""
        return model_pb2.PairLayout(
            prefix_ids=self.prefix_ids,
            infix_ids=self.infix_ids,
            suffix_ids=self.suffix_ids,
            query_template="" if self.query_template == "{query}" else self.query_template,
            document_template="" if self.document_template == "{document}" else self.document_template,
            instruction=self.instruction,
        )

    @property
    def takes_instruction(self) -> bool:
        """Whether a request may say what relevance means."""
        return "{instruction}" in self.query_template

    @property
    def special_count(self) -> int:
        """How many of a pair's tokens belong to neither text."""
        return len(self.prefix_ids) + len(self.infix_ids) + len(self.suffix_ids)

    def query_text(self, query: str, instruction: str | None = None) -> str:
        """Return the text that is tokenised for a query; without an instruction, with the layout's own.

        What the caller's words hold in braces stays as it is.
        """
        return _fill(self.query_template, {"query": query, "instruction": instruction or self.instruction})

    def document_text(self, document: str) -> str:
        """Return the text that is tokenised for a document."""
        return _fill(self.document_template, {"document": document})

    def count(self, query_tokens: int, document_tokens: int) -> int:
        """Return how many tokens the model reads for content ids of these numbers."""
        return self.special_count + query_tokens + document_tokens

    def room(self, query_tokens: int, max_tokens: int, *, param: str, limit: int | None = None) -> Room:
        """Return the room for each document beside a query of so many content ids.

        Args:
            query_tokens: The query's content ids.
            max_tokens: What the model reads of both together, special tokens included.
            param: The query's name in the request, for the error.
            limit: The most content ids of a document, if there is such a limit besides.

        Raises:
            ContextLengthExceeded: Not one of a document's tokens would fit.
        """
        left = max_tokens - self.count(query_tokens, 0)
        if left < 1:
            raise ContextLengthExceeded(
                f"{param} has {query_tokens} tokens and leaves no room for a document: this model reads {max_tokens} tokens of query and "
                f"document together, so that a query may have {max_tokens - self.count(0, 1)}. Shorten it; queries are never cut.",
                param=param,
            )
        return Room(left, max_tokens, limit)

    def read(self, query_ids: Sequence[int] | NDArray[np.int32], document_ids: Sequence[int] | NDArray[np.int32]) -> Pair:
        """Return a pair as the model reads it."""
        second = self.count(len(query_ids), 0) - len(self.suffix_ids)
        parts = (self.prefix_ids, query_ids, self.infix_ids, document_ids, self.suffix_ids)
        return Pair(np.concatenate([np.asarray(part, np.int32) for part in parts]), second)


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """A query and a document as the model reads them.

    Attributes:
        ids: Token ids of both, special tokens included: int32[n].
        second: Where the document begins.
    """

    ids: NDArray[np.int32]
    second: int


@dataclass(frozen=True, slots=True)
class Room:
    """How much of each document is read beside one query.

    Attributes:
        left: The content ids that fit beside the query.
        max_tokens: What the model reads of both together.
        limit: The most content ids of a document, its template's not counted; None: as many as fit.
    """

    left: int
    max_tokens: int
    limit: int | None = None

    @property
    def tokens(self) -> int:
        """The most content ids of a document without a template."""
        return self._tokens(0)

    def fit(self, ids: Sequence[int], truncation: int, *, param: str, head_ids: Sequence[int] = ()) -> tuple[Sequence[int], int]:
        """Return the content ids that are read of a document, and how many were cut.

        Args:
            ids: All of its content ids.
            truncation: What to do if they are too many: LEFT, RIGHT, or anything else to refuse them.
            param: The document's name in the request, for the error.
            head_ids: The template's ids before the document. They stay when the left is cut, and the limit does not count them.

        Raises:
            ContextLengthExceeded: They are too many and may not be cut.
        """
        head = in_common(ids, head_ids)
        room = self._tokens(head)
        if len(ids) <= room:
            return ids, 0
        kept = cut(ids, room, truncation, head=head)
        if kept is not None:
            return kept, len(ids) - room
        reason = f"the query leaves room for {self.left} of the {self.max_tokens} that this model reads"
        if room < self.left:
            reason = f"at most {room} are allowed"
        raise ContextLengthExceeded(f"{param} has {len(ids)} tokens; {reason}. Shorten it, or ask for truncation.", param=param)

    def _tokens(self, head: int) -> int:
        return self.left if self.limit is None else min(self.left, self.limit + head)


def _fill(template: str, values: dict[str, str]) -> str:
    """Put values into a template, once: what they hold is never taken for a place itself."""
    return _PLACE.sub(lambda place: values[place[1]], template)
