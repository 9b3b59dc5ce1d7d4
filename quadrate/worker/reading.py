"""How a request's inputs become what the model reads: prompts, token ids, truncation, and the refusals on the way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from quadrate.errors import InvalidArgument
from quadrate.inputs import check_count, choose_prompt, empty, refuse_nul, unreadable
from quadrate.v1.embed_pb2 import EmbedRequest
from quadrate.v1.options_pb2 import LEFT, NONE, RIGHT, Truncation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from quadrate.runtime.engine import Model
    from quadrate.tokenizer import TextTokenizer
    from quadrate.v1.model_pb2 import TokenizeRequest
    from quadrate.v1.options_pb2 import Input, TokenIds

_CARD_TRUNCATIONS: dict[str, Truncation] = {"none": NONE, "left": LEFT, "right": RIGHT}
_TRUNCATIONS: dict[int, Truncation] = {truncation: truncation for truncation in _CARD_TRUNCATIONS.values()}


@dataclass(frozen=True, slots=True)
class Readings:
    """Inputs as the model reads them.

    Attributes:
        ids: For each input its token ids, special tokens included: int32.
        cut: For each input, how many tokens truncation removed.
    """

    ids: list[NDArray[np.int32]]
    cut: list[int]

    @property
    def tokens(self) -> int:
        """Tokens of all inputs together: what is charged."""
        return sum(map(len, self.ids))


def card_truncation(model: Model) -> Truncation:
    """Return the truncation of a request that says none."""
    return _CARD_TRUNCATIONS[model.card.truncation]


def resolve_truncation(asked: int, default: Truncation) -> Truncation:
    """Return what happens to inputs that are too long. Raises InvalidArgument for a number that is no truncation."""
    if not asked:
        return default
    if asked not in _TRUNCATIONS:
        raise InvalidArgument(f"truncation {asked} is not known; use NONE, LEFT or RIGHT.", param="truncation")
    return _TRUNCATIONS[asked]


def resolve_prompt(model: Model, request: EmbedRequest | TokenizeRequest) -> str:
    """Return what is put before each text. Raises InvalidArgument."""
    instruction = request.instruction if isinstance(request, EmbedRequest) and request.HasField("instruction") else None
    return choose_prompt(
        model.facts.prompts,
        model.facts.default_prompt_name,
        role=request.role,
        prompt=request.prompt if request.HasField("prompt") else None,
        prompt_name=request.prompt_name if request.HasField("prompt_name") else None,
        instruction=instruction,
        template=model.facts.instruction_template,
    )


def check_inputs(inputs: Sequence[Input], *, names: str, limit: int) -> None:
    """Refuse a list of inputs that cannot be worked on, whatever the model. Raises EmptyInput, TooManyInputs, InvalidArgument."""
    check_count(len(inputs), names=names, limit=limit)
    for place, item in enumerate(inputs):
        kind = item.WhichOneof("content")
        if kind is None or (kind == "text" and not item.text):
            raise empty(f"{names}[{place}]{'.text' if kind else ''}")
        if kind == "text":
            refuse_nul(item.text, param=f"{names}[{place}].text")


async def read(
    inputs: Sequence[Input],
    tokenizer: TextTokenizer,
    *,
    names: str,
    prompt: str = "",
    truncation: Truncation,
) -> Readings:
    """Read inputs that `check_inputs` has passed.

    Args:
        inputs: Texts, or content ids.
        tokenizer: The model's.
        names: What the request calls the list.
        prompt: Put before each text; ids stand as they are.
        truncation: For inputs that are too long; NONE refuses them.

    Raises:
        ContextLengthExceeded: An input is too long and may not be cut.
        EmptyInput: The model reads nothing of an input.
        InvalidArgument: A token id is not in the vocabulary.
    """
    texts = [
        tokenizer.trim(item.text, truncation, param=f"{names}[{place}].text", prompt=prompt)
        for place, item in enumerate(inputs)
        if item.HasField("text")
    ]
    encoded = iter(await tokenizer.encode_async(texts) if texts else ())
    prompt_ids = tokenizer.encode([prompt])[0] if prompt and truncation == LEFT else []
    readings = Readings([], [])
    for place, item in enumerate(inputs):
        is_text = item.HasField("text")
        param = f"{names}[{place}].{'text' if is_text else 'token_ids'}"
        ids: Sequence[int] = next(encoded) if is_text else given(item.token_ids, tokenizer, param)
        if not len(ids):
            raise unreadable(param)
        kept, cut = tokenizer.fit(ids, truncation, param=param, prompt_ids=prompt_ids if is_text else ())
        readings.ids.append(tokenizer.read(kept))
        readings.cut.append(cut)
    return readings


def given(token_ids: TokenIds, tokenizer: TextTokenizer, param: str) -> Sequence[int]:
    """Return content ids that the model has, as int32. Raises EmptyInput, InvalidArgument."""
    ids = np.asarray(token_ids.ids, np.int32)
    if not ids.size or ids.view(np.uint32).max() >= tokenizer.vocabulary_size:  # what is below zero is large without its sign
        tokenizer.check_ids(list(token_ids.ids), param=param)
    return ids  # type: ignore[return-value]  # an array counts and slices as a sequence does
