"""How a model reads text."""

from __future__ import annotations

import asyncio

import pytest
import tokenizers
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

from quadrate.errors import ContextLengthExceeded, EmptyInput, InvalidArgument
from quadrate.tokenizer import IN_PLACE_CHARACTERS, LONGEST_CHARACTERS, TextTokenizer
from quadrate.v1.options_pb2 import Truncation

WORDS = ["[UNK]", "[CLS]", "[SEP]", "a", "b", "c", "d"]


@pytest.fixture
def tokenizer() -> TextTokenizer:
    """A tokenizer of four words with one special token on either side, which reads six tokens at most."""
    raw = tokenizers.Tokenizer(WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))  # noqa: S106
    raw.pre_tokenizer = Whitespace()
    raw.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
    raw.enable_truncation(max_length=3)
    return TextTokenizer.from_json(raw.to_str().encode(), max_tokens=6)


def test_special_tokens_are_found_and_counted(tokenizer: TextTokenizer) -> None:
    """What stands around a text is known, and so is the room for content."""
    assert (tokenizer.prefix_ids, tokenizer.suffix_ids, tokenizer.special_count) == ((1,), (2,), 2)
    assert tokenizer.max_content_tokens == 4


def test_encoding_cuts_nothing_whatever_the_file_says(tokenizer: TextTokenizer) -> None:
    """The tokenizer.json's own truncation is off: cutting is explicit here."""
    assert tokenizer.encode(["a b c d a b", "c"]) == [[3, 4, 5, 6, 3, 4], [5]]


def test_long_texts_are_tokenised_alike_off_the_event_loop(tokenizer: TextTokenizer) -> None:
    """Where the work is done does not change the ids."""
    text = "a b " * IN_PLACE_CHARACTERS
    assert asyncio.run(tokenizer.encode_async([text])) == tokenizer.encode([text])


@pytest.mark.parametrize(("truncation", "kept"), [(Truncation.RIGHT, [3, 4, 5, 6]), (Truncation.LEFT, [5, 6, 3, 4])], ids=["right", "left"])
def test_truncation_keeps_the_named_end_and_counts_what_it_cut(tokenizer: TextTokenizer, truncation: Truncation, kept: list[int]) -> None:
    """RIGHT keeps the beginning, LEFT the end."""
    assert tokenizer.fit([3, 4, 5, 6, 3, 4], truncation, param="input") == (kept, 2)


def test_a_cut_on_the_left_begins_behind_the_prompt(tokenizer: TextTokenizer) -> None:
    """As much of the prompt as stands unchanged before the text stays; one that leaves no room for text does not."""
    ids = [9, 8, 3, 4, 5, 6, 7]
    assert tokenizer.fit(ids, Truncation.LEFT, param="input", prompt_ids=[9, 8]) == ([9, 8, 6, 7], 3)
    assert tokenizer.fit(ids, Truncation.LEFT, param="input", prompt_ids=[9, 2]) == ([9, 5, 6, 7], 3)
    assert tokenizer.fit(ids, Truncation.LEFT, param="input", prompt_ids=ids[:4]) == ([4, 5, 6, 7], 3)
    assert tokenizer.fit(ids, Truncation.RIGHT, param="input", prompt_ids=[9, 8]) == ([9, 8, 3, 4], 3)


def test_an_input_that_fits_is_left_alone(tokenizer: TextTokenizer) -> None:
    """Exactly the limit fits."""
    assert tokenizer.fit([3, 4, 5, 6], Truncation.NONE, param="input") == ([3, 4, 5, 6], 0)


def test_a_lower_limit_can_be_asked_for(tokenizer: TextTokenizer) -> None:
    """A request may read less than the model could; a higher limit than the model's changes nothing."""
    assert tokenizer.fit([3, 4, 5], Truncation.RIGHT, param="input", limit=1) == ([3], 2)
    assert tokenizer.fit([3] * 5, Truncation.RIGHT, param="input", limit=99) == ([3] * 4, 1)


def test_too_long_an_input_is_refused_with_count_and_limit(tokenizer: TextTokenizer) -> None:
    """The error names what was sent and what would fit, special tokens included, and the field."""
    with pytest.raises(ContextLengthExceeded, match=r"input\[3\] has 7 tokens.*at most 6") as caught:
        tokenizer.fit([3] * 5, Truncation.NONE, param="input[3]")
    assert caught.value.param == "input[3]"


def test_reading_puts_the_special_tokens_around(tokenizer: TextTokenizer) -> None:
    """The model reads int32 ids with one special token on either side."""
    ids = tokenizer.read([3, 4])
    assert ids.dtype == "int32"
    assert ids.tolist() == [1, 3, 4, 2]
    assert tokenizer.count([3, 4]) == 4


@pytest.mark.parametrize("ids", [[-1], [3, 7], [3, 10**9]])
def test_ids_outside_the_vocabulary_are_refused(tokenizer: TextTokenizer, ids: list[int]) -> None:
    """The error says which ids there are."""
    with pytest.raises(InvalidArgument, match="from 0 to 6"):
        tokenizer.check_ids(ids, param="input")


def test_no_ids_are_empty_input(tokenizer: TextTokenizer) -> None:
    """An empty list of ids has nothing to read."""
    with pytest.raises(EmptyInput):
        tokenizer.check_ids([], param="input")


def test_what_is_no_tokenizer_is_refused() -> None:
    """Any other text is told apart."""
    with pytest.raises(ValueError, match=r"not a tokenizer\.json"):
        TextTokenizer.from_json(b"{}", max_tokens=8)


def test_texts_in_groups_are_tokenised_as_one_by_one(tokenizer: TextTokenizer) -> None:
    """More text than one group holds comes back complete and in order."""
    texts = ["a b", "c " * 40_000, "d", "b " * 40_000, "a"]
    assert tokenizer.encode(texts) == [tokenizer.encode([text])[0] for text in texts]


def test_no_text_can_use_up_the_memory(tokenizer: TextTokenizer) -> None:
    """Beyond many times what the model reads, a text is trimmed to the end that is kept, or refused with its size."""
    text = "a " * LONGEST_CHARACTERS + "d"
    assert tokenizer.trim("a b", Truncation.NONE, param="input") == "a b"
    assert tokenizer.trim(text, Truncation.RIGHT, param="input") == text[:LONGEST_CHARACTERS]
    assert tokenizer.trim(text, Truncation.LEFT, param="input") == text[-LONGEST_CHARACTERS:]
    with pytest.raises(ContextLengthExceeded, match=f"input has {len(text)} characters; at most {LONGEST_CHARACTERS}"):
        tokenizer.trim(text, Truncation.NONE, param="input")
    for prompt in ("query: ", "p" * (LONGEST_CHARACTERS + 5)):
        for side in (Truncation.LEFT, Truncation.RIGHT):
            assert len(tokenizer.trim(text, side, param="input", prompt=prompt)) == LONGEST_CHARACTERS
    assert tokenizer.trim(text, Truncation.LEFT, param="input", prompt="query: ").startswith("query: ")
    assert tokenizer.trim("cat", Truncation.LEFT, param="input", prompt="query: ") == "query: cat"
