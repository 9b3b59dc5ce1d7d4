"""A rerank request as the model reads it: templates, cuts, counts, refusals."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from quadrate.errors import ContextLengthExceeded, EmptyInput, InvalidArgument
from quadrate.pairs import PairLayout
from quadrate.reranking import DocumentLimits, Question, RerankReader
from quadrate.testing.tokenizers import letter_tokenizer
from quadrate.tokenizer import TextTokenizer
from quadrate.v1.options_pb2 import LEFT, NONE, RIGHT

if TYPE_CHECKING:
    from quadrate.reranking import RerankTokens

TOKENIZER = TextTokenizer.from_json(letter_tokenizer(), max_tokens=16)
CROSS = PairLayout(prefix_ids=(2,), infix_ids=(3,), suffix_ids=(3,))
CAUSAL = PairLayout(
    prefix_ids=(2, 2),
    suffix_ids=(3,),
    query_template="{instruction} query : {query}",
    document_template="passage : {document}",
    instruction="the",
)


async def read(
    query: str | list[int], *documents: str | list[int], pair: PairLayout | None = CROSS, instruction: str | None = None, **limits: Any
) -> RerankTokens:
    """Read a request for a model of 16 tokens."""
    question = Question(query=query, documents=documents, name="documents[{}]".format, instruction=instruction)
    prompts = {"query": "query: ", "document": "passage: "}
    return await RerankReader(TOKENIZER, pair, prompts).read(question, DocumentLimits(**{"characters": 100, **limits}))


def words(*entries: str) -> list[int]:
    """Return the ids of words, each of which is one token."""
    return TOKENIZER.encode([" ".join(entries)])[0]


async def test_the_query_counts_with_each_document_that_it_is_read_with() -> None:
    """Three special tokens, the query and the document make a pair; all pairs together are charged."""
    tokens = await read("cat", "dog", "the dog sat")
    assert (tokens.counts, tokens.total) == ([5, 7], 12)


async def test_the_query_counts_once_where_texts_are_read_apart() -> None:
    """And each text has the prompt that its role has."""
    tokens = await read("cat", "dog", "the dog", pair=None)
    assert tokens.query == words("query", ":", "cat")
    assert tokens.documents[0] == words("passage", ":", "dog")
    assert (tokens.counts, tokens.total) == ([5, 6], 16)


async def test_templates_are_filled_by_the_card_or_by_the_request() -> None:
    """An instruction of the request takes the place of the card's; an empty one is none."""
    assert (await read("cat", "dog", pair=CAUSAL)).query == words("the", "query", ":", "cat")
    assert (await read("cat", "dog", pair=CAUSAL, instruction="")).query == words("the", "query", ":", "cat")
    tokens = await read("cat", "dog", pair=CAUSAL, instruction="hello world")
    assert tokens.query == words("hello", "world", "query", ":", "cat")
    assert tokens.documents == [words("passage", ":", "dog")]
    assert tokens.counts == [2 + 5 + 3 + 1]


async def test_ids_stand_as_they_are() -> None:
    """No template and no prompt is put around them."""
    tokens = await read([7], [8], "dog", pair=CAUSAL)
    assert (tokens.query, tokens.documents) == ([7], [[8], words("passage", ":", "dog")])


@pytest.mark.parametrize(("truncation", "kept"), [(RIGHT, ["cat", "dog"]), (LEFT, ["dog", "mat"])])
async def test_the_document_is_cut_and_never_the_query(truncation: int, kept: list[str]) -> None:
    """To the room that the query leaves of 16 tokens."""
    tokens = await read("the " * 11, "cat dog mat", "cat", truncation=truncation)
    assert tokens.documents == [words(*kept), words("cat")]
    assert (tokens.cut, tokens.shortened, tokens.places_cut) == ([1, 0], [], [0])
    assert tokens.counts == [16, 15]


async def test_a_lower_limit_on_tokens_cuts_too() -> None:
    """The lower one of both holds."""
    assert (await read("cat", "cat dog mat", tokens=1, truncation=RIGHT)).documents == [words("cat")]
    assert (await read("cat", "cat dog mat", tokens=99, truncation=RIGHT)).cut == [0]


@pytest.mark.parametrize("pair", [CAUSAL, None])
async def test_a_limit_on_tokens_counts_the_documents_own(pair: PairLayout | None) -> None:
    """Neither the template's nor the prompt's before it."""
    tokens = await read("cat", "cat dog mat", tokens=2, truncation=RIGHT, pair=pair)
    assert (tokens.documents, tokens.cut) == ([words("passage", ":", "cat", "dog")], [1])


@pytest.mark.parametrize(
    ("pair", "rest"), [(CAUSAL, [*["sat"] * 3, "cat", "dog", "mat"]), (None, ["the", *["sat"] * 8, "cat", "dog", "mat"])]
)
async def test_a_cut_on_the_left_begins_behind_template_and_prompt(pair: PairLayout | None, rest: list[str]) -> None:
    """They are not the document's; ids, which have neither, are cut from their first on."""
    text = "the " * 3 + "sat " * 8 + "cat dog mat"
    tokens = await read("the cat", text, words(*text.split()), truncation=LEFT, pair=pair)
    assert tokens.documents[0] == words("passage", ":", *rest)
    assert tokens.documents[1] == words(*text.split())[-len(tokens.documents[0]) :]
    beginning_alike = await read("the cat", words("passage", ":", *text.split()), truncation=LEFT, pair=pair)
    assert beginning_alike.documents[0] == tokens.documents[1]


@pytest.mark.parametrize("pair", [CROSS, CAUSAL, None])
async def test_a_query_without_room_is_refused_whatever_the_truncation(pair: PairLayout | None) -> None:
    """With its length and the limit."""
    with pytest.raises(ContextLengthExceeded, match=r"query has \d+ tokens.* 16.*never cut") as caught:
        await read("the " * 15, "cat", pair=pair, truncation=RIGHT)
    assert caught.value.param == "query"


async def test_a_long_document_is_refused_unless_a_cut_was_asked_for() -> None:
    """By tokens, with the room that the query leaves."""
    with pytest.raises(ContextLengthExceeded, match=r"documents\[1\] has 3 tokens; the query leaves room for 2 of the 16"):
        await read("the " * 11, "cat", "cat dog mat", truncation=NONE)


async def test_a_document_of_too_many_characters_is_refused_or_cut_and_named() -> None:
    """Before it is tokenised; its place is told apart from tokens that were cut."""
    with pytest.raises(ContextLengthExceeded, match=r"documents\[1\] has 7 characters; at most 3 are allowed") as caught:
        await read("cat", "cat", "cat dog", characters=3)
    assert caught.value.param == "documents[1]"
    tokens = await read("cat", "cat", "cat dog", characters=3, truncation=RIGHT)
    assert (tokens.documents, tokens.cut, tokens.shortened, tokens.places_cut) == ([words("cat")] * 2, [0, 0], [1], [1])
    assert (await read("cat", "cat dog", characters=3, truncation=LEFT)).documents == [words("dog")]


async def test_texts_of_which_nothing_is_read_are_refused() -> None:
    """Query and documents alike."""
    with pytest.raises(EmptyInput, match="query holds nothing"):
        await read(" ", "cat")
    with pytest.raises(EmptyInput, match=r"documents\[1\] holds nothing"):
        await read("cat", "cat", " ")


@pytest.mark.parametrize("pair", [CROSS, None])
async def test_an_instruction_that_would_do_nothing_is_refused(pair: PairLayout | None) -> None:
    """For models that take none."""
    with pytest.raises(InvalidArgument, match="takes no instruction"):
        await read("cat", "dog", pair=pair, instruction="be kind")


async def test_an_instruction_needs_the_querys_text_and_is_text_itself() -> None:
    """It is put around the text, and holds no NUL."""
    with pytest.raises(InvalidArgument, match="came as token ids"):
        await read([7], "dog", pair=CAUSAL, instruction="be kind")
    with pytest.raises(InvalidArgument, match="NUL"):
        await read("cat", "dog", pair=CAUSAL, instruction="\0")
