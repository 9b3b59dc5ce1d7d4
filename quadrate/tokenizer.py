"""How a model reads text: token ids, the limit on them, and what is cut.

The same class serves gateway and workers. A worker builds it from the model's folder, the gateway from the tokenizer.json that the
worker hands over, so that both count alike. *Content ids* are the ids of a text without special tokens: the form that callers send
and that travels from gateway to worker. Special tokens are put around them once, by the process that runs the model.
"""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from quadrate.cuts import cut, in_common
from quadrate.errors import ContextLengthExceeded, EmptyInput, InvalidArgument
from quadrate.turns import Turns
from quadrate.v1.options_pb2 import Truncation

# Rayon's threads would fight the model's for the same cores; our callers bring their own concurrency.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import tokenizers

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt

IN_PLACE_CHARACTERS = 1_000
"""Texts up to this size in all are tokenised where they are: 0.3 ms at most, about what a thread and the way back cost."""

LONGEST_CHARACTERS = 65_536
"""The fewest characters that a text may have, whatever the model. See `TextTokenizer.max_characters`."""
CHARACTERS_A_TOKEN = 64
_GROUP_CHARACTERS = 65_536
"""Texts are tokenised in groups of about this size: what the library keeps of a text is some hundred bytes a token."""

_THREADS = 2
_threads = ThreadPoolExecutor(max_workers=_THREADS, thread_name_prefix="tokenise")


class TextTokenizer:
    """One model's tokenizer with the model's limit on tokens.

    Args:
        tokenizer: The tokenizer; its own truncation and padding are switched off, ours are explicit.
        source: The text of its tokenizer.json.
        max_tokens: The most tokens that the model reads, special tokens included.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer, source: bytes, *, max_tokens: int) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self.source = source
        self.sha256 = hashlib.sha256(source).hexdigest()
        self.max_tokens = max_tokens
        self.vocabulary_size: int = tokenizer.get_vocab_size(with_added_tokens=True)
        self.prefix_ids, self.suffix_ids = _special_ids(tokenizer)
        self.special_count = len(self.prefix_ids) + len(self.suffix_ids)
        self.weightless_ids = frozenset((*self.prefix_ids, *self.suffix_ids, *_fillers(tokenizer)))
        """Ids that stand for no word: those around a text, of padding, and of what is not in the vocabulary."""
        self.max_content_tokens = max_tokens - self.special_count
        """The most content ids that the model reads."""
        self.max_characters = max(LONGEST_CHARACTERS, CHARACTERS_A_TOKEN * max_tokens)
        """The most characters of one text that are tokenised: many times what the model reads, and few enough that no text, whatever it
        is made of, can use up time and memory."""
        self._turns = Turns(_threads, _THREADS)
        self._prefix = np.array(self.prefix_ids, dtype=np.int32)
        self._suffix = np.array(self.suffix_ids, dtype=np.int32)

    @classmethod
    def from_json(cls, source: bytes, *, max_tokens: int) -> TextTokenizer:
        """Build it from the text of a tokenizer.json. Raises ValueError if that is none."""
        try:
            tokenizer = tokenizers.Tokenizer.from_buffer(source)
        except Exception as exc:  # the library raises bare Exception
            raise ValueError(f"not a tokenizer.json: {exc}") from exc
        return cls(tokenizer, source, max_tokens=max_tokens)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return each text's content ids, in order: no special tokens, nothing cut. Cost: about 0.2 µs a character.

        The library's fast way notes no character offsets: a text of megabytes takes a third of the time and of the memory.
        """
        return [ids for group in _groups(texts) for ids in self._encode_group(group)]

    def _encode_group(self, texts: Sequence[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    async def encode_async(self, texts: Sequence[str]) -> list[list[int]]:
        """As `encode`, off the event loop unless the texts are so short that going there would cost more.

        Where many want it, those on whose behalf it is done take turns (quadrate.turns).
        """
        size = sum(map(len, texts))
        if size <= IN_PLACE_CHARACTERS:
            return self._encode_group(texts)
        return await self._turns.run(self.encode, texts, cost=size)

    def trim(self, text: str, truncation: Truncation, *, param: str, prompt: str = "") -> str:
        """Return what is tokenised of a prompt and the text behind it: all of it, or `max_characters` with the end that truncation keeps.

        A cut on the left begins behind the prompt. Raises ContextLengthExceeded if they are longer and may not be cut.
        """
        size = len(prompt) + len(text)
        if size <= self.max_characters:
            return prompt + text
        if truncation == Truncation.RIGHT:
            return (prompt + text[: self.max_characters])[: self.max_characters]
        if truncation == Truncation.LEFT:
            kept = prompt if len(prompt) < self.max_characters else ""
            return kept + text[len(kept) - self.max_characters :]
        raise ContextLengthExceeded(
            f"{param} has {size} characters; at most {self.max_characters} are looked at for this model, which reads "
            f"{self.max_tokens} tokens. Shorten it, or have it cut: truncate on /v1/embeddings and /v2/embed, truncation natively.",
            param=param,
        )

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Return where each content id of a text begins and ends in it, in characters."""
        found: list[tuple[int, int]] = self._tokenizer.encode(text, add_special_tokens=False).offsets
        return found

    def pair(self) -> tuple[list[int], list[int | None]]:
        """Return the ids that it makes of two short texts together, and for each the text that it is of: 0, 1, or None for neither."""
        found = self._tokenizer.encode("a", "b")
        return found.ids, found.sequence_ids

    def check_ids(self, ids: Sequence[int], *, param: str) -> None:
        """Refuse content ids that this model cannot have.

        Raises:
            EmptyInput: There are none.
            InvalidArgument: One is below 0 or not in the vocabulary.
        """
        if not ids:
            raise EmptyInput(f"{param} is empty; send at least one token id.", param=param)
        lowest, highest = min(ids), max(ids)
        if lowest < 0 or highest >= self.vocabulary_size:
            wrong = lowest if lowest < 0 else highest
            raise InvalidArgument(
                f"{param} holds the token id {wrong}; ids of this model's own tokenizer are from 0 to {self.vocabulary_size - 1}. "
                "Send text if the ids come from another tokenizer.",
                param=param,
            )

    def fit(
        self, ids: Sequence[int], truncation: Truncation, *, param: str, limit: int | None = None, prompt_ids: Sequence[int] = ()
    ) -> tuple[Sequence[int], int]:
        """Return the content ids that the model reads, and how many were cut.

        Args:
            ids: Content ids.
            truncation: What to do if they are too many. TRUNCATION_UNSPECIFIED counts as NONE: callers resolve the card's default.
            param: The input's name in the request, for the error.
            limit: A lower limit on content ids than the model's own.
            prompt_ids: The prompt's ids alone. As many of `ids` as begin like them stay when the left is cut, if something else fits, too.

        Raises:
            ContextLengthExceeded: They are too many and may not be cut.
        """
        room = self.max_content_tokens if limit is None else min(limit, self.max_content_tokens)
        excess = len(ids) - room
        if excess <= 0:
            return ids, 0
        kept = cut(ids, room, truncation, head=in_common(ids, prompt_ids))
        if kept is not None:
            return kept, excess
        total = room + self.special_count
        reads = "this model reads at most" if room == self.max_content_tokens else "the request allows at most"
        raise ContextLengthExceeded(
            f"{param} has {len(ids) + self.special_count} tokens, special tokens included; {reads} {total}. "
            "Shorten it, or have it cut: truncate on /v1/embeddings and /v2/embed, truncation natively.",
            param=param,
        )

    def read(self, ids: Sequence[int]) -> npt.NDArray[np.int32]:
        """Return the ids as the model reads them, special tokens included: int32[len(ids) + special_count]."""
        return np.concatenate((self._prefix, np.asarray(ids, dtype=np.int32), self._suffix))

    def count(self, ids: Sequence[int]) -> int:
        """Return how many tokens the model reads for these content ids."""
        return len(ids) + self.special_count


def _groups(texts: Sequence[str]) -> Iterator[list[str]]:
    """Give the texts in order, in groups of about _GROUP_CHARACTERS; a longer one makes a group of its own."""
    group: list[str] = []
    size = 0
    for text in texts:
        if group and size + len(text) > _GROUP_CHARACTERS:
            yield group
            group, size = [], 0
        group.append(text)
        size += len(text)
    if group:
        yield group


def _fillers(tokenizer: tokenizers.Tokenizer) -> list[int]:
    """Return the ids of padding and of unknown text, by the names that BERT's and XLM-R's families give them."""
    found = (tokenizer.token_to_id(name) for name in ("<pad>", "<unk>", "[PAD]", "[UNK]"))
    return [number for number in found if number is not None]


def _special_ids(tokenizer: tokenizers.Tokenizer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the ids that stand before and after a single text, found by reading a letter with and without them."""
    bare: list[int] = tokenizer.encode("a", add_special_tokens=False).ids
    full: list[int] = tokenizer.encode("a", add_special_tokens=True).ids
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return tuple(full[:start]), tuple(full[start + len(bare) :])
    raise ValueError("its special tokens do not stand around the text, so texts cannot be cut safely")
