"""The rules for inputs that gateway and workers share, with the sentences that refuse what breaks them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quadrate.errors import EmptyInput, InvalidArgument, TooManyInputs, Unavailable
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
    prompts: Mapping[str, str],
    default_name: str,
    *,
    role: int = 0,
    prompt: str | None = None,
    prompt_name: str | None = None,
    instruction: str | None = None,
    template: str = "",
    purpose: str = "",
) -> str:
    """Return what is put before each text.

    Args:
        prompts: The model's prompts by name.
        default_name: The one of a request that says nothing; empty for none.
        role: Chooses the prompt of that role.
        prompt: Used as it stands.
        prompt_name: Chooses the prompt of that name.
        instruction: What is looked for; it stands in `template`.
        template: The model's, with `{instruction}` in it; empty for a model that takes none.
        purpose: Chooses the prompt of that name if there is one, and otherwise the default.

    Raises InvalidArgument for two ways to say it at once, for an unknown name or role, and for an instruction that the model does not take.
    """
    if instruction is not None:
        return _instructed(instruction, template, role=role, others=(prompt, prompt_name))
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
    name = purpose if purpose in prompts else default_name
    return prompts[name] if name else ""


def _instructed(instruction: str, template: str, *, role: int, others: tuple[str | None, ...]) -> str:
    """Return the model's template with the instruction in it."""
    if any(other is not None for other in others):
        raise InvalidArgument("instruction excludes prompt and prompt_name: it has its own. Keep one.", param="instruction")
    if not template:
        raise InvalidArgument("This model takes no instruction. Leave it out.", param="instruction")
    if role == DOCUMENT:
        raise InvalidArgument("instruction is for queries; documents have none. Leave it out, or the role.", param="instruction")
    if not instruction:
        raise empty("instruction")
    refuse_nul(instruction, param="instruction")
    return template.replace("{instruction}", instruction)


def _named(prompts: Mapping[str, str], name: str, *, role: int) -> str:
    if role:
        raise InvalidArgument("prompt_name and role both choose a prompt. Keep one.", param="prompt_name")
    if name not in prompts:
        known = ", ".join(f"'{known}'" for known in sorted(prompts)) or "none"
        raise InvalidArgument(f"prompt_name is not a prompt of this model; its prompts: {known}.", param="prompt_name")
    return prompts[name]


def of_another_tokenizer(name: str) -> Unavailable:
    """Return the error for token ids that were made by another tokenizer than the model's."""
    return Unavailable(
        f"The token ids were made by another tokenizer than that of {name}, which was loaded again. Get its tokenizer anew and try again.",
        param="tokenizer_sha256",
        retry_after_seconds=1.0,
    )
