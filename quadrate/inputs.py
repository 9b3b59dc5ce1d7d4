"""The rules for inputs that gateway and workers share, with the sentences that refuse what breaks them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quadrate.errors import EmptyInput, InvalidArgument, TooManyInputs
from quadrate.v1.options_pb2 import DOCUMENT, QUERY

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_INPUTS = 2_048
"""The most inputs of one request, as the OpenAI API has it."""
_ROLES: dict[int, str] = {QUERY: "query", DOCUMENT: "document"}


def check_count(count: int, *, names: str, limit: int) -> None:
    """Refuse an empty list (EmptyInput) and one of more than `limit` items (TooManyInputs)."""
    if not count:
        raise EmptyInput(f"{names} is empty. Send at least one.", param=names)
    if count > limit:
        raise TooManyInputs(f"{names} holds {count} items; at most {limit} are allowed in one request. Send several requests.", param=names)


def refuse_nul(text: str, *, param: str) -> None:
    """Raise InvalidArgument for a NUL character, which is no text and ends strings early in other programs."""
    position = text.find("\0")
    if position >= 0:
        raise InvalidArgument(f"{param} holds a NUL character (U+0000) at position {position}. Remove it.", param=param)


def empty(param: str) -> EmptyInput:
    """Return the error for a text or a list of ids with nothing in it."""
    return EmptyInput(f"{param} is empty. Send something to read.", param=param)


def unreadable(param: str) -> EmptyInput:
    """Return the error for a text of which the tokenizer keeps nothing, such as blanks."""
    return EmptyInput(f"{param} holds nothing that the model reads, only blanks or characters it drops. Leave it out.", param=param)


def choose_prompt(
    prompts: Mapping[str, str], default_name: str, *, role: int = 0, prompt: str | None = None, prompt_name: str | None = None
) -> str:
    """Return what is put before each text: the prompt itself if one is given, else the one of that name, of the role, or the default.

    Raises InvalidArgument for two ways to say it at once, and for an unknown name or role.
    """
    if prompt is not None:
        if prompt_name is not None or role:
            raise InvalidArgument("prompt excludes prompt_name and role: it is used as it stands. Keep one.", param="prompt")
        refuse_nul(prompt, param="prompt")
        return prompt
    if prompt_name is not None:
        return _named(prompts, prompt_name, role=role)
    if role:
        if role not in _ROLES:
            raise InvalidArgument(f"role {role} is not known; use QUERY or DOCUMENT.", param="role")
        return prompts.get(_ROLES[role], "")
    return prompts[default_name] if default_name else ""


def _named(prompts: Mapping[str, str], name: str, *, role: int) -> str:
    if role:
        raise InvalidArgument("prompt_name and role both choose a prompt. Keep one.", param="prompt_name")
    if name not in prompts:
        known = ", ".join(f"'{known}'" for known in sorted(prompts)) or "none"
        raise InvalidArgument(f"prompt_name is not a prompt of this model; its prompts: {known}.", param="prompt_name")
    return prompts[name]
