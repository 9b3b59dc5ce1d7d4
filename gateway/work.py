"""What a caller asks for, once a door has read it: one shape for every wire, with the caller's own names for errors.

These are named tuples: a frozen dataclass of as many fields takes a microsecond more to make.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from quadrate.inputs import check_count, empty, refuse_nul

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Content = str | list[int]
    """A text, or the content ids of one."""
    Name = Callable[[int], str]
    """What the caller calls the item at a position, for example `input[3]`."""


class Reading(NamedTuple):
    """How inputs are to be read. Enums are the numbers of quadrate.v1; 0 means not said."""

    role: int = 0
    prompt: str | None = None
    prompt_name: str | None = None
    instruction: str | None = None
    purpose: str = ""
    """What the vectors are for; a model's prompt of this name is used if it has one."""
    truncation: int = 0


class EmbedWork(NamedTuple):
    """Inputs to embed.

    Attributes:
        model: As the caller wrote it.
        contents: What to embed, in order.
        name: What the caller calls each input.
        names: What the caller calls all inputs together.
        tokenizer_sha256: The tokenizer that ids were made by; empty: not said.
        max_tokens: The most tokens to read of each, special tokens included; None: as the model does.
        dimensions_name: What the caller calls `dimensions`.
    """

    model: str
    contents: Sequence[Content]
    name: Name
    names: str
    tokenizer_sha256: str = ""
    reading: Reading = Reading()
    max_tokens: int | None = None
    dimensions: int | None = None
    dimensions_name: str = "dimensions"
    outputs: tuple[int, ...] = ()
    value_type: int = 0
    normalize: bool | None = None

    @property
    def is_plain(self) -> bool:
        """Whether nothing is said of the answer's form, as nearly always."""
        return not self.outputs and not self.value_type and self.dimensions is None and self.normalize is None


class RerankWork(NamedTuple):
    """Documents to order.

    Attributes:
        model: As the caller wrote it.
        query: The question; a text or content ids.
        documents: What to order.
        name: What the caller calls each document.
        tokenizer_sha256: The tokenizer that ids were made by; empty: not said.
        top_name: What the caller calls `top_n`.
        cut_documents: Cut what is too long, and name it in the answer's warnings. Otherwise `truncation` rules.
    """

    model: str
    query: Content
    documents: Sequence[Content]
    name: Name
    tokenizer_sha256: str = ""
    top_n: int | None = None
    top_name: str = "top_n"
    return_documents: bool = False
    max_tokens_per_doc: int | None = None
    truncation: int = 0
    cut_documents: bool = False
    raw_scores: bool = False
    instruction: str | None = None


def check_contents(contents: Sequence[Content], *, names: str, name: Name, limit: int) -> None:
    """Refuse a list of inputs or documents that cannot be worked on, whatever the model.

    Raises:
        EmptyInput: There are none, or one is empty.
        TooManyInputs: There are more than `limit`.
        InvalidArgument: A text holds a NUL character.
    """
    check_count(len(contents), names=names, limit=limit)
    if not all(contents):
        raise empty(name(next(position for position, content in enumerate(contents) if not content)))
    for position, content in enumerate(contents):
        if type(content) is str and "\0" in content:
            refuse_nul(content, param=name(position))
