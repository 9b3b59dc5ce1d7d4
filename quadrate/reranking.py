"""How a reranker reads a request: the query and each document as token ids, cut to what the model reads, and counted as it reads them.

The same class serves gateway and workers, so that what is charged before anything runs is what the model then reads.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from quadrate.cuts import in_common
from quadrate.errors import ContextLengthExceeded, InvalidArgument
from quadrate.inputs import refuse_nul, unreadable
from quadrate.v1.options_pb2 import LEFT, NONE, RIGHT, Truncation

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from quadrate.pairs import PairLayout
    from quadrate.tokenizer import TextTokenizer

    Ids = Sequence[int]
    Content = str | Ids


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is to be read: texts, or content ids that the model has.

    Attributes:
        query: What is looked for.
        documents: What is to be ordered.
        instruction: What relevance means. None or empty: as the model's card says.
        query_name: What the caller calls the query, for errors.
        name: What the caller calls each document.
    """

    query: Content
    documents: Sequence[Content]
    name: Callable[[int], str]
    query_name: str = "query"
    instruction: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentLimits:
    """How long a document may be, and what happens to one that is longer.

    Attributes:
        characters: The most characters.
        tokens: The most content ids, prompt or template not counted; None: as many as the model reads.
        truncation: LEFT or RIGHT cuts; anything else refuses.
    """

    characters: int
    tokens: int | None = None
    truncation: Truncation = NONE


@dataclass(frozen=True, slots=True)
class RerankTokens:
    """A request as the model will read it.

    Attributes:
        query: The query's content ids, template or prompt included.
        documents: Each document's, cut.
        counts: Tokens that are read of each document: with the query's, where the model reads them together.
        cut: Tokens that were cut of each document.
        shortened: The places of the documents that had too many characters; what was cut of them so is not in `cut`.
        total: Tokens that are read in all.
        read: The documents as they were read, cut to so many characters, but not yet to so many tokens.
    """

    query: Ids
    documents: list[Ids]
    counts: list[int]
    cut: list[int]
    shortened: list[int]
    total: int
    read: Sequence[Content]

    @property
    def places_cut(self) -> list[int]:
        """The places of all documents that are not read whole, ascending."""
        return sorted({*self.shortened, *(place for place, cut in enumerate(self.cut) if cut)})


class RerankReader:
    """Reads requests for one model.

    Args:
        tokenizer: The model's.
        pair: How it reads a query and a document together; None if it reads them apart.
        prompts: What it wants before texts that it reads apart: `query` and `document`.
    """

    def __init__(self, tokenizer: TextTokenizer, pair: PairLayout | None, prompts: Mapping[str, str]) -> None:
        self._tokenizer = tokenizer
        self._pair = pair
        self._prompts = prompts
        self._head = pair.document_text("") if pair else prompts.get("document", "")
        """What stands before each document's text."""

    async def read(self, question: Question, limits: DocumentLimits) -> RerankTokens:
        """Return a request as the model will read it.

        Raises:
            ContextLengthExceeded: The query leaves no room for a document, or a document is too long and may not be cut.
            EmptyInput: The model reads nothing of a text.
            InvalidArgument: There is an instruction, and the model takes none.
        """
        self._check_instruction(question)
        documents, shortened = _shorten(question, limits)
        query, *found = await self._encode(question, documents, limits.truncation)
        if not len(query):
            raise unreadable(question.query_name)
        fit = self._fit(query, question.query_name, limits.tokens)
        head_ids = self._head_ids(limits)
        kept: list[Ids] = []
        cut: list[int] = []
        for place, ids in enumerate(found):
            if not len(ids):
                raise unreadable(question.name(place))
            own_head = head_ids if isinstance(documents[place], str) else ()
            rest, removed = fit(ids, limits.truncation, param=question.name(place), head_ids=own_head)
            kept.append(rest)
            cut.append(removed)
        counts = [self._count(query, ids) for ids in kept]
        apart = 0 if self._pair else self._tokenizer.count(query)
        return RerankTokens(query, kept, counts, cut, shortened, sum(counts) + apart, documents)

    def _check_instruction(self, question: Question) -> None:
        if not question.instruction:
            return
        if self._pair is None or not self._pair.takes_instruction:
            raise InvalidArgument("This model takes no instruction. Leave it out.", param="instruction")
        if type(question.query) is not str:
            raise InvalidArgument(
                "An instruction is put around the query's text, and the query came as token ids. Send its text.", param="instruction"
            )
        refuse_nul(question.instruction, param="instruction")

    async def _encode(self, question: Question, documents: Sequence[Content], truncation: Truncation) -> list[Ids]:
        """Return the content ids of the query and of each document; ids stand as they are."""
        contents: list[Content] = [question.query, *documents]
        texts = [
            self._document_text(content, truncation, question.name(place - 1)) if place else self._query_text(content, question)
            for place, content in enumerate(contents)
            if isinstance(content, str)
        ]
        encoded = iter(await self._tokenizer.encode_async(texts) if texts else ())
        return [next(encoded) if isinstance(content, str) else content for content in contents]

    def _query_text(self, query: str, question: Question) -> str:
        text = self._pair.query_text(query, question.instruction) if self._pair else self._prompts.get("query", "") + query
        return self._tokenizer.trim(text, NONE, param=question.query_name)

    def _document_text(self, document: str, truncation: Truncation, param: str) -> str:
        return self._tokenizer.trim(document, truncation, param=param, prompt=self._head)

    def _head_ids(self, limits: DocumentLimits) -> Ids:
        """Return the ids of what stands before each document's text, where a cut may have to spare them."""
        may_matter = self._head and (limits.tokens is not None or limits.truncation == LEFT)
        return self._tokenizer.encode([self._head])[0] if may_matter else ()

    def _fit(self, query: Ids, query_name: str, limit: int | None) -> Callable[..., tuple[Ids, int]]:
        """Return what cuts a document's content ids. Raises ContextLengthExceeded for a query that cannot be read whole."""
        tokenizer = self._tokenizer
        if self._pair:
            return self._pair.room(len(query), tokenizer.max_tokens, param=query_name, limit=limit).fit
        if len(query) > tokenizer.max_content_tokens:
            raise ContextLengthExceeded(
                f"{query_name} has {tokenizer.count(query)} tokens, special tokens included; this model reads at most "
                f"{tokenizer.max_tokens}. Shorten it; queries are never cut.",
                param=query_name,
            )
        return partial(_fit_alone, tokenizer, limit)

    def _count(self, query: Ids, document: Ids) -> int:
        return self._pair.count(len(query), len(document)) if self._pair else self._tokenizer.count(document)


def _fit_alone(
    tokenizer: TextTokenizer, limit: int | None, ids: Ids, truncation: Truncation, *, param: str, head_ids: Ids
) -> tuple[Ids, int]:
    """Return the ids that are read of a document alone; the limit does not count its prompt's."""
    most = None if limit is None else limit + in_common(ids, head_ids)
    return tokenizer.fit(ids, truncation, param=param, limit=most, prompt_ids=head_ids)


def _shorten(question: Question, limits: DocumentLimits) -> tuple[Sequence[Content], list[int]]:
    """Return the documents with at most so many characters, and the places of those that were cut. Raises ContextLengthExceeded."""
    limit = limits.characters
    long = [place for place, document in enumerate(question.documents) if isinstance(document, str) and len(document) > limit]
    if not long:
        return question.documents, long
    if limits.truncation not in (LEFT, RIGHT):
        name = question.name(long[0])
        raise ContextLengthExceeded(
            f"{name} has {len(question.documents[long[0]])} characters; at most {limit} are allowed. Shorten it, or ask for truncation.",
            param=name,
        )
    documents = list(question.documents)
    for place in long:
        documents[place] = documents[place][:limit] if limits.truncation == RIGHT else documents[place][-limit:]
    return documents, long
