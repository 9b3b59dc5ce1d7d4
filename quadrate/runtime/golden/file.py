"""The file of golden vectors: JSON beside models.yaml, `golden/<alias>.json`."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Annotated, Literal, Self

import numpy as np
import pydantic

from quadrate.config.yamlfile import Schema
from quadrate.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


def _is_floats(text: str) -> str:
    unpacked(text)
    return text


Floats = Annotated[str, pydantic.AfterValidator(_is_floats)]
"""Little-endian float32 in base64."""


class GoldenSparse(Schema):
    """A sparse vector: token ids, ascending, and their weights."""

    ids: tuple[int, ...]
    weights: tuple[float, ...]

    @pydantic.model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        if len(self.ids) != len(self.weights) or list(self.ids) != sorted(set(self.ids)):
            raise ValueError(f"{len(self.ids)} ids must ascend and have as many weights, not {len(self.weights)}")
        return self


class GoldenText(Schema):
    """One text; what belongs to it is left out where the model does not give it."""

    text: str
    prompt_name: str = ""
    """The prompt that stands before it. Empty: none."""
    dense: Floats = ""
    """Its vector; of length one if the model normalises."""
    sparse: GoldenSparse | None = None
    multi_vector: Floats = ""
    """A vector for each token that the model reads, special tokens included, one after another."""


class GoldenRanking(Schema):
    """One query and its documents, with the raw scores in the documents' order."""

    query: str
    documents: tuple[str, ...]
    scores: tuple[float, ...]


class Golden(Schema):
    """The file."""

    revision: str
    """Of the weights that it was made with, as answers name it."""
    precision: Literal["exact"] = "exact"
    """The arithmetic it was made by."""
    made_by: str
    """The software that made it, with its version."""
    texts: tuple[GoldenText, ...] = ()
    rankings: tuple[GoldenRanking, ...] = ()


def read(path: Path) -> Golden:
    """Read a file of golden vectors. Raises ConfigError."""
    try:
        return Golden.model_validate_json(path.read_bytes())
    except OSError as exc:
        raise ConfigError(f"{path}: cannot be read: {exc.strerror}; restore it, or leave `golden` out of the model's card.") from exc
    except pydantic.ValidationError as exc:
        where = ".".join(map(str, exc.errors()[0]["loc"]))
        raise ConfigError(f"{path}: {where}: {exc.errors()[0]['msg']}; restore it, or make it again with --make-golden.") from exc


def write(path: Path, golden: Golden) -> None:
    """Write a file of golden vectors. Raises ConfigError if it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(golden.model_dump_json(indent=1, exclude_defaults=True) + "\n", encoding="utf-8")
    except OSError as exc:
        raise ConfigError(f"{path}: cannot be written: {exc.strerror}; work on a copy of the configuration folder with --config.") from exc


def packed(array: NDArray[np.float32]) -> str:
    """Return values as the file holds them."""
    return base64.b64encode(np.ascontiguousarray(array, "<f4").tobytes()).decode()


def unpacked(text: str) -> NDArray[np.float32]:
    """Return values that the file holds. Raises ValueError for a text that is no base64."""
    return np.frombuffer(base64.b64decode(text, validate=True), "<f4")
