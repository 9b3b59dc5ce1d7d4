"""More names of models, besides those that the files give: EMBED_MODEL_MAPPING and RERANK_MODEL_MAPPING."""

from __future__ import annotations

import json
from typing import Annotated

import pydantic
from pydantic_settings import NoDecode


def _read(value: str | dict[str, str]) -> object:
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError as exc:
        raise ValueError('it must be a JSON object of names, such as {"our-model": "minilm"}') from exc


ModelMapping = Annotated[dict[str, str], NoDecode, pydantic.BeforeValidator(_read)]
"""Name → the alias or the served name that it stands for."""
