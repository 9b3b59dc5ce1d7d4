"""What is put before a text: prompts by name, and the place of an instruction."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from quadrate.errors import ConfigError
from quadrate.runtime.jsonfile import JsonFile

if TYPE_CHECKING:
    from pathlib import Path

    from quadrate.config.models import ModelCard

_FILE = "config_sentence_transformers.json"
_DOCUMENTS = ("document", "passage", "corpus")
"""What the prompt of a document may be called, the name that sentence-transformers looks for first at the front."""
_INSTRUCTION = re.compile(r"(Instruct: )[^{}\n]+(\nQuery: ?)")
"""The prompt of models that follow instructions (Wang et al. 2024, section 3.1)."""


def prompts(path: Path, card: ModelCard) -> tuple[dict[str, str], str]:
    """Return the prompts by name, and the name of the one that is used unless a request names another; empty for none."""
    said = JsonFile(path / _FILE, required=False)
    found = card.prompts or said.data.get("prompts") or {}
    if not isinstance(found, dict) or not all(isinstance(text, str | None) for text in found.values()):
        raise ConfigError(f"{said.path}: prompts is no object of name to text; fetch the model again, or give prompts in its card.")
    texts = {key: text for key, text in found.items() if text}
    documents = next((texts[name] for name in _DOCUMENTS if name in found and name in texts), None)
    if documents is not None and "document" not in found:
        texts["document"] = documents
    default = str(card.default_prompt_name or said.data.get("default_prompt_name") or "")
    return texts, default if default in texts else ""


def instruction_template(card: ModelCard, texts: dict[str, str]) -> str:
    """Return the prompt that takes a request's instruction: the card's, or the query's if it is written in the known form."""
    known = _INSTRUCTION.fullmatch(texts.get("query", ""))
    return card.instruction or (f"{known[1]}{{instruction}}{known[2]}" if known else "")
