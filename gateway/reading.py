"""How inputs become token ids: prompts by role, truncation, and limits, all decided before anything is sent to a worker."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gateway.quotas.bounds import Bounds
from quadrate.cuts import cut_text, in_common
from quadrate.errors import InvalidArgument
from quadrate.inputs import choose_prompt, of_another_tokenizer, unreadable
from quadrate.v1.options_pb2 import LEFT, NONE, Truncation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.upstreams.facts import Facts
    from gateway.work import Content, Name, Reading
    from quadrate.server import Call
    from quadrate.tokenizer import TextTokenizer
    from quadrate.v1.model_pb2 import Model

_TRUNCATIONS = frozenset(Truncation.values())
_MOST_NAMED = 20
"""Places that one warning names at most; what is longer helps nobody."""


@dataclass(slots=True)
class Tokens:
    """Inputs as the model will read them.

    Args:
        ids: Content ids of each input, prompt included, cut to what the model reads.
        cut: How many tokens were cut of each, by position; positions without a cut are left out.
        total: Tokens of all inputs together, special tokens included: what is charged.
        seconds: How long it took to find them.
    """

    ids: list[Sequence[int]]
    cut: dict[int, int]
    total: int
    seconds: float = 0.0


def prompt_for(card: Model, reading: Reading) -> str:
    """Return what is put before each text. Raises InvalidArgument."""
    return choose_prompt(
        card.prompts,
        card.default_prompt_name,
        role=reading.role,
        prompt=reading.prompt,
        prompt_name=reading.prompt_name,
        instruction=reading.instruction,
        template=card.instruction_template,
        purpose=reading.purpose,
    )


def truncation_for(asked: int, default: int) -> int:
    """Return what happens to inputs that are too long: what was asked for, else the default, else NONE. Raises InvalidArgument."""
    if asked not in _TRUNCATIONS:
        raise InvalidArgument(f"truncation {asked} is not known; use NONE, LEFT or RIGHT.", param="truncation")
    return asked or default or NONE


async def tokenize(contents: Sequence[Content], prompt: str, tokenizer: TextTokenizer, *, truncation: int, name: Name) -> list[list[int]]:
    """Return the content ids of each input. Texts get the prompt, ids stand as they are; far too long texts are trimmed or refused."""
    texts = [
        tokenizer.trim(content, truncation, param=name(position), prompt=prompt)  # type: ignore[arg-type] # an enum's number
        for position, content in enumerate(contents)
        if type(content) is str
    ]
    if len(texts) == len(contents):
        return await tokenizer.encode_async(texts)
    found = iter(await tokenizer.encode_async(texts) if texts else ())
    return [next(found) if type(content) is str else content for content in contents]  # type: ignore[misc] # the rest are ids


def check_reader(tokenizer_sha256: str, facts: Facts) -> None:
    """Refuse token ids that say that another tokenizer made them. Raises Unavailable."""
    if tokenizer_sha256 and tokenizer_sha256 != facts.card.tokenizer_sha256:
        raise of_another_tokenizer(facts.card.name)


def check_ids(contents: Sequence[Content], facts: Facts, name: Name) -> None:
    """Refuse token ids that the model does not have, or that cannot be sent to it. Raises InvalidArgument."""
    for position, content in enumerate(contents):
        if type(content) is list:
            if facts.over_http:
                _check_over_http(contents, facts, name(position))
            facts.tokenizer.check_ids(content, param=name(position))


def _check_over_http(contents: Sequence[Content], facts: Facts, param: str) -> None:
    if not facts.takes_ids:
        raise InvalidArgument(
            f"'{facts.card.name}' is served by a server over HTTP, where ids may mean other tokens. Send texts.", param=param
        )
    if any(type(content) is str for content in contents):
        raise InvalidArgument(f"'{facts.card.name}' takes texts or token ids in one request, and this one has both.", param=param)


def as_texts(contents: Sequence[Content], prompt: str, tokens: Tokens, tokenizer: TextTokenizer, *, truncation: int) -> list[str]:
    """Return texts as the model is to read them, for those who are not sent ids: with the prompt, and cut where `tokens` were.

    A text is cut where a token ends; what is left of it may be read as fewer tokens than were counted, and seldom as one more.
    """
    texts = []
    for position, content in enumerate(contents):
        text = tokenizer.trim(str(content), truncation, param="", prompt=prompt)  # type: ignore[arg-type] # an enum's number
        if position in tokens.cut:
            ids, prompt_ids = (tokenizer.encode([one])[0] for one in (text, prompt))
            text = cut_text(text, tokenizer.spans(text), len(tokens.ids[position]), truncation, head=in_common(ids, prompt_ids))
        texts.append(text)
    return texts


def fit(
    found: list[list[int]],
    contents: Sequence[Content],
    tokenizer: TextTokenizer,
    *,
    truncation: int,
    name: Name,
    prompt: str = "",
    limit: int | None = None,
) -> Tokens:
    """Cut inputs to what the model reads, or refuse them. Raises ContextLengthExceeded, EmptyInput.

    `found` is what `tokenize` gave for `contents`. The prompt before texts is not cut; `limit` may be lower than the model's own.
    """
    prompt_ids = tokenizer.encode([prompt])[0] if prompt and truncation == LEFT else []
    cut: dict[int, int] = {}
    total = len(found) * tokenizer.special_count
    room = tokenizer.max_content_tokens if limit is None else min(limit, tokenizer.max_content_tokens)
    ids: list[Sequence[int]] = []
    for position, content in enumerate(found):
        length = len(content)
        if length > room:
            kept, cut[position] = tokenizer.fit(
                content,
                truncation,  # type: ignore[arg-type] # an enum's number
                param=name(position),
                limit=limit,
                prompt_ids=prompt_ids if type(contents[position]) is str else (),
            )
            ids.append(kept)
            total += len(kept)
            continue
        if not length:
            raise unreadable(name(position))
        ids.append(content)
        total += length
    return Tokens(ids, cut, total)


def not_counted(param: str) -> InvalidArgument:
    """Return the error for what needs tokens to be counted, where nobody can."""
    return InvalidArgument(
        f"{param} counts tokens, and the tokenizer of this model is not known here. Leave it out; an operator may name the tokenizer.",
        param=param,
    )


def bounds(count: int, tokenizer: TextTokenizer, call: Call, *, special_count: int, words: Sequence[str]) -> Bounds:
    """Return how many tokens so many inputs have at least and at most, without reading them.

    Args:
        count: Inputs that are read each by itself.
        tokenizer: The model's.
        call: What brought them: its bytes bound their texts.
        special_count: Tokens that the model reads of each beside its own.
        words: What else may stand before or beside each.
    """
    beside = special_count + sum(len(text.encode()) for text in words)
    return Bounds(count * (special_count + 1), min((count + 1) * tokenizer.max_tokens, call.size_bytes + (count + 1) * beside))


def check_total(total: int, limit: int, *, names: str) -> None:
    """Refuse a request of too many tokens in all. Raises InvalidArgument."""
    if total > limit:
        raise InvalidArgument(
            f"There are {total} tokens in {names}; at most {limit} are allowed in one request. Send several requests, or shorter texts.",
            param=names,
            code="too_many_tokens",
        )


def name_cut(kind: str, places: Sequence[int]) -> str:
    """Return a warning's subject and verb: `Text 3 was`, `Texts 0, 3 and 7 more were`."""
    if len(places) == 1:
        return f"{kind} {places[0]} was"
    more = f" and {len(places) - _MOST_NAMED} more" if len(places) > _MOST_NAMED else ""
    return f"{kind}s {', '.join(map(str, places[:_MOST_NAMED]))}{more} were"
