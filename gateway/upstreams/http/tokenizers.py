"""What reads text for models behind HTTP: a tokenizer that the route names, or, without one, an upper bound of what any would count."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import threading
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2
import huggingface_hub
from huggingface_hub.errors import EntryNotFoundError

from gateway.upstreams.tokenizers import TokenizerError
from quadrate.tokenizer import TextTokenizer

if TYPE_CHECKING:
    from collections.abc import Sequence

UNKNOWN_MAX_TOKENS = 131_072
"""What a tokenizer is taken to allow whose files name no limit. The server's own holds."""
_LARGEST_LIMIT = 1_000_000
"""Beyond it a limit in a tokenizer's files means that there is none."""
_LIMITS = (("sentence_bert_config.json", "max_seq_length"), ("tokenizer_config.json", "model_max_length"))
"""Where a repository says how much its model reads, the most telling first."""
PATIENCE_SECONDS = 1.0
"""How long a tokenizer is waited for before the model is said to be without it as yet."""
RETRY_SECONDS = 15.0
"""When a tokenizer that could not be had is looked for again."""
_FAILURES = (OSError, EntryNotFoundError, httpx2.HTTPError, ValueError)


class UpperBound(TextTokenizer):
    """Counts, for a text, at least as many tokens as any tokenizer would, and makes none.

    No tokenizer in use makes more tokens of a text than it has bytes in UTF-8 once its characters are decomposed (the three bytes of U+FDFA
    become 33). SPECIAL_TOKENS are added for what models put around a text. Its ids are numbers without a meaning: only their count has one.
    """

    SPECIAL_TOKENS = 8

    def __init__(self) -> None:  # the base's needs a tokenizer
        self.source = b""
        self.sha256 = ""
        self.max_tokens = 16_000_000
        self.vocabulary_size = 2**31 - 1
        self.prefix_ids, self.suffix_ids = (), ()
        self.special_count = self.SPECIAL_TOKENS
        self.weightless_ids = frozenset()
        self.max_content_tokens = self.max_tokens - self.special_count
        self.max_characters = self.max_tokens

    def encode(self, texts: Sequence[str]) -> list[Any]:
        """Return a range for each text, as long as the most tokens that it can have."""
        return [range(_bound(text)) for text in texts]

    async def encode_async(self, texts: Sequence[str]) -> list[Any]:
        """As `encode`, in place: it takes a millisecond for a megabyte."""
        return self.encode(texts)


UPPER_BOUND = UpperBound()


def _bound(text: str) -> int:
    if text.isascii():
        return len(text)
    return max(len(text.encode()), len(unicodedata.normalize("NFKD", text).encode()))


class NamedTokenizers:
    """Tokenizers by the names that routes give them, each loaded once.

    Args:
        default: The name for routes that give none; empty: they have no tokenizer.
    """

    def __init__(self, default: str = "") -> None:
        self.default = default
        self._loading: dict[tuple[str, int | None], asyncio.Future[TextTokenizer]] = {}

    async def of(self, name: str, max_tokens: int | None) -> TextTokenizer:
        """Return the tokenizer of a name, or of the default; UPPER_BOUND if there is neither.

        Raises TokenizerError, also while it is being fetched, which may take long, and for RETRY_SECONDS after that failed.
        """
        wanted = name or self.default
        if not wanted:
            return UPPER_BOUND
        loading = self._loading.get((wanted, max_tokens)) or self._begin(wanted, max_tokens)
        await asyncio.wait([loading], timeout=PATIENCE_SECONDS)
        if not loading.done():
            raise TokenizerError(f"its tokenizer {wanted!r} is being fetched")
        return loading.result()

    def _begin(self, name: str, max_tokens: int | None) -> asyncio.Future[TextTokenizer]:
        """Load a tokenizer in a thread that a process which ends does not wait for: the hub may be slow, or nowhere."""
        loop = asyncio.get_running_loop()
        loading: asyncio.Future[TextTokenizer] = loop.create_future()
        self._loading[name, max_tokens] = loading

        def told(found: TextTokenizer | TokenizerError) -> None:
            if isinstance(found, TokenizerError):
                loading.set_exception(found)
                loading.exception()  # those who wait may have gone
                loop.call_later(RETRY_SECONDS, self._loading.pop, (name, max_tokens))
            else:
                loading.set_result(found)

        def work() -> None:
            try:
                found: TextTokenizer | TokenizerError = _load(name, max_tokens)
            except TokenizerError as exc:
                found = exc
            with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
                loop.call_soon_threadsafe(told, found)

        threading.Thread(target=work, name="tokenizer", daemon=True).start()
        return loading


def _load(name: str, max_tokens: int | None) -> TextTokenizer:
    try:
        file = _find(name)
        source = file.read_bytes()
        return TextTokenizer.from_json(source, max_tokens=max_tokens or _limit(file.parent, source))
    except _FAILURES as exc:
        reason = str(exc).partition("\n")[0][:200] or type(exc).__name__
        raise TokenizerError(f"its tokenizer {name!r} cannot be had: {reason}") from exc


def _find(name: str) -> Path:
    """Return the path of a tokenizer.json, fetched from the hub if the name is no path here."""
    path = Path(name).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        return path / "tokenizer.json"
    if name.count("/") > 1 or name.startswith((".", "~", "/")):
        raise FileNotFoundError(f"there is no such file, and a repository of the hub is written as owner/name: {name}")
    repository, _, revision = name.partition("@")
    logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)  # what failed stands in our error
    found = huggingface_hub.hf_hub_download(repository, "tokenizer.json", revision=revision or None)
    for beside, _ in _LIMITS:
        _fetch_if_there(repository, beside, revision)
    return Path(found)


def _fetch_if_there(repository: str, file: str, revision: str) -> None:
    try:
        huggingface_hub.hf_hub_download(repository, file, revision=revision or None)
    except EntryNotFoundError:
        return


def _limit(folder: Path, source: bytes) -> int:
    """Return the most tokens that a model reads, as the files beside its tokenizer say, or the tokenizer itself."""
    said = [_number(folder / file, key) for file, key in _LIMITS]
    truncation = json.loads(source).get("truncation")
    said.append(truncation.get("max_length") if isinstance(truncation, dict) else None)
    return next((limit for limit in said if type(limit) is int and 0 < limit < _LARGEST_LIMIT), UNKNOWN_MAX_TOKENS)


def _number(file: Path, key: str) -> Any:
    try:
        said = json.loads(file.read_bytes())
    except FileNotFoundError:
        return None
    return said.get(key) if isinstance(said, dict) else None
