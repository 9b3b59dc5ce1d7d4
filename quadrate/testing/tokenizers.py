"""A small tokenizer, so that tests need no model: lower-case letters and digits, a few whole words, WordPiece as BERT has it."""

from __future__ import annotations

import string

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
WORDS = ("hello", "world", "the", "cat", "dog", "sat", "on", "mat", "query", "passage", ":")


def letter_tokenizer() -> bytes:
    """Return the text of a tokenizer.json: `[CLS] … [SEP]` around the text, a word of WORDS is one token, any other one a letter."""
    letters = string.ascii_lowercase + string.digits
    entries = [*SPECIAL, *WORDS, *letters, *(f"##{letter}" for letter in letters)]
    tokenizer = Tokenizer(models.WordPiece({entry: number for number, entry in enumerate(entries)}, unk_token="[UNK]"))  # noqa: S106
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer.to_str().encode()
