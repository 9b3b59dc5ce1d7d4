"""How query and document are put together, cut and counted."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from quadrate.errors import ContextLengthExceeded
from quadrate.pairs import PairLayout, Room
from quadrate.testing.tokenizers import letter_tokenizer
from quadrate.v1.options_pb2 import LEFT, NONE, RIGHT
from tests import vocabularies

BERT = PairLayout(prefix_ids=(101,), infix_ids=(102,), suffix_ids=(102,))
CAUSAL = PairLayout(
    prefix_ids=(1, 2, 3),
    suffix_ids=(4, 5),
    query_template="<Instruct>: {instruction}\n<Query>: {query}\n<Document>:",
    document_template=" {document}",
    instruction="Find the answer",
)


@pytest.mark.parametrize("layout", [BERT, CAUSAL, PairLayout()])
def test_a_layout_survives_the_way_through_a_card(layout: PairLayout) -> None:
    """Gateway and worker build pairs alike."""
    assert PairLayout.of(layout.message()) == layout


def test_a_pair_is_query_and_document_between_the_special_ids() -> None:
    """The document begins after the infix, and a pair is counted as it is read."""
    pair = BERT.read([7, 8], [9])
    assert pair.ids.tolist() == [101, 7, 8, 102, 9, 102]
    assert pair.second == 4
    assert BERT.count(2, 1) == len(pair.ids)


def test_templates_hold_the_callers_words_and_nothing_else_is_replaced() -> None:
    """Braces in what a caller says are text."""
    assert CAUSAL.query_text("{document} {instruction}?") == "<Instruct>: Find the answer\n<Query>: {document} {instruction}?\n<Document>:"
    assert CAUSAL.query_text("q", "{query}") == "<Instruct>: {query}\n<Query>: q\n<Document>:"
    assert CAUSAL.document_text("{document}") == " {document}"
    assert BERT.query_text("q") == "q"


def test_a_model_without_an_instruction_takes_none() -> None:
    """Only a template with a place for it does."""
    assert CAUSAL.takes_instruction
    assert not BERT.takes_instruction


def test_the_document_has_the_room_that_the_query_leaves() -> None:
    """Special tokens count for both."""
    assert BERT.room(5, 10, param="query").tokens == 2
    assert BERT.room(5, 10, param="query", limit=1).tokens == 1
    assert BERT.room(5, 10, param="query", limit=3).tokens == 2


def test_a_query_that_leaves_no_room_is_refused_with_its_numbers() -> None:
    """Queries are never cut."""
    with pytest.raises(ContextLengthExceeded, match=r"query has 7 tokens .* reads 10 tokens .* a query may have 6\b") as caught:
        BERT.room(7, 10, param="query")
    assert caught.value.param == "query"


@pytest.mark.parametrize(("truncation", "kept"), [(RIGHT, [1, 2]), (LEFT, [3, 4])])
def test_a_document_is_cut_on_the_side_that_was_asked_for(truncation: int, kept: list[int]) -> None:
    """And what was cut is told."""
    assert Room(2, 10).fit([1, 2, 3, 4], truncation, param="d") == (kept, 2)


def test_a_document_that_fits_is_not_touched() -> None:
    """Whatever the truncation."""
    assert Room(4, 10).fit([1, 2, 3, 4], NONE, param="d") == ([1, 2, 3, 4], 0)


def test_a_document_that_may_not_be_cut_is_refused_with_what_the_limit_is_made_of() -> None:
    """The model's own, beside the query, or a lower one."""
    with pytest.raises(ContextLengthExceeded, match=r"documents\[3\] has 4 tokens; the query leaves room for 3 of the 10"):
        Room(3, 10).fit([1, 2, 3, 4], NONE, param="documents[3]")
    with pytest.raises(ContextLengthExceeded, match=r"has 4 tokens; at most 2 are allowed"):
        Room(3, 10, limit=2).fit([1, 2, 3, 4], NONE, param="documents[3]")


@pytest.mark.parametrize(
    "templates",
    [
        {"query_template": "no place"},
        {"query_template": "{query} {document}"},
        {"document_template": "{document} and more"},
        {"document_template": "{query}{document}"},
        {"query_template": "{instruction}{query}"},
        {"instruction": "of no use"},
    ],
)
def test_templates_that_would_lose_something_are_refused(templates: dict[str, str]) -> None:
    """A place that is missing, a document's end that a cut would take, an instruction without a place."""
    with pytest.raises(ValueError, match=r"must hold|is needed"):
        PairLayout(**templates)  # type: ignore[arg-type]  # every value here is a template


QWEN, MODERNBERT, XLM_ROBERTA = vocabularies.qwen(), vocabularies.modernbert(), vocabularies.xlm_roberta()
LETTERS = Tokenizer.from_buffer(letter_tokenizer())
QWEN_LAYOUT = PairLayout(
    query_template="<Instruct>: {instruction}\n<Query>: {query}\n<Document>:",
    document_template=" {document}",
    instruction="Given a web search query, retrieve relevant passages that answer the query",
)
BORDERS = [
    "",
    " ",
    "\n",
    "\n\n x",
    "  y",
    "'s own",
    ":",
    ": no",
    ">:",
    "1",
    "é",
    "\u0301 combining",
    "ﬁ",
    "\u00a0z",
    "<|im_end|>",
    "星",
    "\r\n",
]
TEXTS = st.one_of(st.text(max_size=20), st.sampled_from([*BORDERS, *vocabularies.SENTENCES]))


@given(query=TEXTS, document=TEXTS, instruction=TEXTS)
@example(query="a:", document=" b", instruction="")
@example(query="a\n", document="\nb", instruction=" ")
def test_a_template_in_two_pieces_is_read_as_in_one(query: str, document: str, instruction: str) -> None:
    """Qwen's tokenizer divides between a colon and the blank after it, whatever stands before and after."""
    instruction = instruction or QWEN_LAYOUT.instruction
    first, second = QWEN_LAYOUT.query_text(query, instruction), QWEN_LAYOUT.document_text(document)
    whole = f"<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {document}"
    assert first + second == whole
    assert encode(QWEN, first) + encode(QWEN, second) == encode(QWEN, whole)


@pytest.mark.parametrize("tokenizer", [LETTERS, MODERNBERT, XLM_ROBERTA], ids=["bert", "modernbert", "xlm-roberta"])
@given(query=TEXTS, document=TEXTS)
def test_a_pair_is_put_together_as_its_tokenizer_does_it(tokenizer: Tokenizer, query: str, document: str) -> None:
    """Special tokens between and around texts that were read apart give the tokenizer's own reading of the pair."""
    border = tokenizer.encode("a", "a", add_special_tokens=True)
    bare = len(encode(tokenizer, "a"))
    first = border.special_tokens_mask.index(0)
    after = first + bare
    second = border.special_tokens_mask.index(0, after)
    layout = PairLayout(
        prefix_ids=tuple(border.ids[:first]), infix_ids=tuple(border.ids[after:second]), suffix_ids=tuple(border.ids[second + bare :])
    )
    pair = layout.read(encode(tokenizer, query), encode(tokenizer, document))
    whole = tokenizer.encode(query, document, add_special_tokens=True)
    assert pair.ids.tolist() == whole.ids
    if 1 in whole.type_ids:
        assert whole.type_ids == [int(place >= pair.second) for place in range(len(pair.ids))]


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """Return a text's ids without special tokens."""
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids
