"""A JSON object of a model folder, read with errors that name the file and the key."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, TypeVar

from quadrate.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_NOT_GIVEN: Any = object()
ChoiceT = TypeVar("ChoiceT")


class JsonFile:
    """One file of a model folder.

    Args:
        path: Where it lies.
        required: Whether a missing one is an error; otherwise it reads as an empty object.

    Raises ConfigError if it cannot be read, or is no JSON object.
    """

    def __init__(self, path: Path, *, required: bool = True) -> None:
        self.path = path
        self.data: dict[str, Any] = _load(path, required=required)

    def __contains__(self, key: str) -> bool:
        return self.data.get(key) is not None

    def integer(self, key: str, default: int = _NOT_GIVEN) -> int:
        """Return an integer. Raises ConfigError if it is none, or missing without a default."""
        value = self._value(key, default)
        if not isinstance(value, int) or isinstance(value, bool):
            raise ConfigError(f"{self.path}: {key} is {value!r}, not an integer; fetch the model again.")
        return value

    def number(self, key: str, default: float = _NOT_GIVEN) -> float:
        """Return a number. Raises ConfigError if it is none, or missing without a default."""
        value = self._value(key, default)
        if not is_number(value):
            raise ConfigError(f"{self.path}: {key} is {value!r}, not a number; fetch the model again.")
        return float(value)

    def flag(self, key: str, *, default: bool = False) -> bool:
        """Return true or false; null counts as missing. Raises ConfigError for anything else."""
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise ConfigError(f"{self.path}: {key} is {value!r}, not true or false; fetch the model again.")
        return value

    def choice(self, key: str, choices: Mapping[str, ChoiceT], default: str = _NOT_GIVEN) -> ChoiceT:
        """Return what a word stands for. Raises ConfigError for a word that is not among the choices."""
        value = self._value(key, default)
        if not isinstance(value, str) or value not in choices:
            raise ConfigError(f"{self.path}: {key} is {value!r}; this version serves {', '.join(map(repr, choices))}.")
        return choices[value]

    def refuse_unless(self, key: str, served: Any, *, default: Any = _NOT_GIVEN) -> None:
        """Raise ConfigError unless the key has the one value that is served; a missing one counts as `default`, or as served."""
        value = self.data.get(key)
        if value is None:
            value = served if default is _NOT_GIVEN else default
        if value != served:
            raise ConfigError(f"{self.path}: {key} is {value!r}; this version serves {served!r}.")

    def _value(self, key: str, default: Any) -> Any:
        value = self.data.get(key)
        if value is None:
            value = default
        if value is _NOT_GIVEN:
            raise ConfigError(f"{self.path}: {key} is missing; fetch the model again.")
        return value


def is_number(value: object) -> bool:
    """Whether a value of a JSON file is a number that one can count with: Python reads NaN and Infinity, too."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf


def _load(path: Path, *, required: bool) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        if required:
            raise ConfigError(
                f"{path.parent}: no {path.name}; a model folder needs it. Fetch the model again, or name another folder."
            ) from None
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: cannot be read as JSON; fetch the model again.") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: is no JSON object; fetch the model again.")
    return found
