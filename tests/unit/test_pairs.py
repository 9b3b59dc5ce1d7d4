"""How query and document are put together, cut and counted."""

from __future__ import annotations

import pytest

from quadrate.errors import ContextLengthExceeded
from quadrate.pairs import PairLayout, Room
from quadrate.v1.options_pb2 import LEFT, NONE, RIGHT

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
