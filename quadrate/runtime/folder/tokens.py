"""The tokenizer of a folder: its text, what its files say of limits and of pairs, and where two of them contradict each other."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from quadrate.errors import ConfigError
from quadrate.pairs import PairLayout
from quadrate.runtime.jsonfile import JsonFile

# As in quadrate.tokenizer: set before the library is imported.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import tokenizers

if TYPE_CHECKING:
    from pathlib import Path

    from quadrate.config.models import ModelCard
    from quadrate.runtime.encoders import Encoder

LEAST_TOKENS = 8
"""Of a limit: special tokens take some of them."""
_NO_LIMIT = 10**6
"""Tokenizers without a limit of their own write a huge number."""
_STATES = ("last_hidden_state", "logits")
"""What newer files call the values of a model that are worked on."""
_MODULE_CONFIGS = tuple(f"sentence_{name}_config.json" for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta"))
"""What sentence-transformers has called the file over the years."""


def module_config(path: Path) -> JsonFile:
    """Return what sentence-transformers notes of the encoder; empty where there is no such file.

    Raises ConfigError for a way to read texts that is not served.
    """
    name = next((name for name in _MODULE_CONFIGS if (path / name).is_file()), _MODULE_CONFIGS[0])
    said = JsonFile(path / name, required=False)
    for key in ("query_length", "document_length", "query_expansion"):
        if key in said:
            raise ConfigError(f"{said.path}: {key} is {said.data[key]!r}; this version reads queries and documents alike.")
    return said


def check_texts(path: Path, card: ModelCard) -> None:
    """Raise ConfigError where newer files of sentence-transformers say that texts are read, or states taken, in a way that is not served.

    A card with a template of pairs says itself how they are read.
    """
    said = module_config(path)
    ways = said.data.get("modality_config")
    text = ways.get("text") if isinstance(ways, dict) else None
    served = [{"method": "forward", "method_output_name": name} for name in _STATES]
    if ways and text not in served and card.pair is None:
        raise ConfigError(
            f"{said.path}: modality_config is {ways!r}; this version reads texts as they are, and takes {' or '.join(_STATES)}."
        )
    found = said.data.get("processing_kwargs")
    changes = found if isinstance(found, dict) else {}
    for part in ("common", "text"):
        if changes.get(part):
            raise ConfigError(f"{said.path}: processing_kwargs has {part} {changes[part]!r}; this version knows max_seq_length alone.")


def max_tokens(path: Path, card: ModelCard, encoder: Encoder) -> int:
    """Return the limit, found where sentence-transformers finds it, never above what the model has positions for."""
    if card.max_tokens is not None:
        if card.max_tokens > encoder.max_positions:
            raise ConfigError(f"{path}: max_tokens is {card.max_tokens}; the model has positions for {encoder.max_positions} tokens.")
        return card.max_tokens
    said = JsonFile(path / "tokenizer_config.json", required=False)
    limits = [module_config(path).data.get("max_seq_length"), said.data.get("model_max_length")]
    given = next((int(limit) for limit in limits if isinstance(limit, int | float) and 0 < limit < _NO_LIMIT), encoder.max_positions)
    if min(given, encoder.max_positions) < LEAST_TOKENS:
        raise ConfigError(
            f"{path}: a limit of {min(given, encoder.max_positions)} tokens leaves no room for a text; fetch the model again."
        )
    if min(given, encoder.max_positions) >= _NO_LIMIT:
        raise ConfigError(f"{path}: no file says how many tokens the model reads; set max_tokens in its card.")
    return min(given, encoder.max_positions)


def tokenizer_source(path: Path) -> bytes:
    """Return the text of the tokenizer.json that reads texts as the model does.

    That is the folder's own, made to lower-case where sentence-transformers' `do_lower_case` asks for it. Raises ConfigError if there is
    none, or if tokenizer_config.json says otherwise.
    """
    file = path / "tokenizer.json"
    try:
        source = file.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{file}: cannot be read ({error.strerror}). A model needs its fast tokenizer: make it with "
            "`AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)` of transformers."
        ) from error
    asks = module_config(path).flag("do_lower_case")
    said = JsonFile(path / "tokenizer_config.json", required=False)
    if not asks and said.data.get("do_lower_case") is None:
        return source
    return _lowered(source, file, said, asks=asks)


def pair_of(path: Path, card: ModelCard) -> tuple[PairLayout, bool]:
    """Return how a reranker reads a pair, and whether the second text has a token type of its own.

    The card's templates, or else what the tokenizer puts around two texts. Raises ConfigError if neither makes a pair.
    """
    source = tokenizer_source(path)
    try:
        tokenizer = tokenizers.Tokenizer.from_buffer(source)
    except Exception as error:  # the library raises bare Exception
        raise ConfigError(f"{path / 'tokenizer.json'}: not a tokenizer.json: {error}; fetch the model again.") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    names = JsonFile(path / "tokenizer_config.json", required=False).data.get("model_input_names")
    knows_types = not isinstance(names, list) or "token_type_ids" in names
    if card.pair is not None:
        return _templates(path, card, tokenizer), False
    return _around(path, tokenizer, knows_types=knows_types)


def word_id(path: Path, word: str) -> int:
    """Return the id of a word that is one token. Raises ConfigError if it is none."""
    tokenizer = tokenizers.Tokenizer.from_buffer(tokenizer_source(path))
    found: int | None = tokenizer.token_to_id(word)
    if found is None:
        raise ConfigError(f"{path / 'tokenizer.json'}: {word!r} is no token of the model; correct `answers` in its card.")
    return found


def _lowered(source: bytes, file: Path, said: JsonFile, *, asks: bool) -> bytes:
    """Return the tokenizer's text with a lower-casing step before its own where that is asked for and missing."""
    try:
        parsed = json.loads(source)
        normalizer = parsed["normalizer"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(f"{file}: not a tokenizer.json; fetch the model again.") from error
    wants = said.data.get("do_lower_case")
    if isinstance(normalizer, dict) and normalizer.get("type") == "BertNormalizer" and wants not in (None, normalizer.get("lowercase")):
        raise ConfigError(
            f"{said.path}: do_lower_case is {wants}, and tokenizer.json says {normalizer.get('lowercase')}; make them agree: "
            "`AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)` of transformers writes both anew."
        )
    if not asks or _lowers(normalizer):
        return source
    rest = [] if normalizer is None else normalizer["normalizers"] if normalizer.get("type") == "Sequence" else [normalizer]
    parsed["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "Lowercase"}, *rest]}
    return json.dumps(parsed, ensure_ascii=False).encode()


def _lowers(normalizer: Any) -> bool:
    if not isinstance(normalizer, dict):
        return False
    if normalizer.get("type") == "Sequence":
        return any(map(_lowers, normalizer.get("normalizers", ())))
    return normalizer.get("type") == "Lowercase" or normalizer.get("lowercase") is True


def _templates(path: Path, card: ModelCard, tokenizer: tokenizers.Tokenizer) -> PairLayout:
    pair = card.pair
    assert pair is not None  # noqa: S101 - its only caller has asked
    try:
        return PairLayout(
            prefix_ids=tuple(_encode(path, tokenizer, pair.prefix, add_special_tokens=False).ids),
            suffix_ids=tuple(_encode(path, tokenizer, pair.suffix, add_special_tokens=False).ids),
            query_template=pair.query,
            document_template=pair.document,
            instruction=pair.instruction,
        )
    except ValueError as error:
        raise ConfigError(f"{path}: `pair` of the model's card: {error}.") from error


def _around(path: Path, tokenizer: tokenizers.Tokenizer, *, knows_types: bool) -> tuple[PairLayout, bool]:
    """Find what the tokenizer puts before, between and after two texts, and which of them it gives types."""
    found = _encode(path, tokenizer, "a", "b")
    owners = found.sequence_ids
    try:
        layout = PairLayout.around(found.ids, owners)
    except ValueError as error:
        raise ConfigError(f"{path / 'tokenizer.json'}: {error}; give `pair` in the model's card.") from error
    second = owners.index(1)
    types = [int(place >= second) for place in range(len(owners))]
    if knows_types and any(found.type_ids) and found.type_ids != types:
        raise ConfigError(f"{path / 'tokenizer.json'}: gives a pair the token types {found.type_ids}; this version serves {types}.")
    return layout, knows_types and any(found.type_ids)


def _encode(
    path: Path, tokenizer: tokenizers.Tokenizer, text: str, second: str | None = None, *, add_special_tokens: bool = True
) -> tokenizers.Encoding:
    """Read a text or a pair. Raises ConfigError for a tokenizer that cannot."""
    try:
        return tokenizer.encode(text, second, add_special_tokens=add_special_tokens)
    except BaseException as error:  # the library raises bare Exception, and for a name that is nowhere what is no Exception at all
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ConfigError(f"{path / 'tokenizer.json'}: cannot read a text: {error}; fetch the model again.") from error
