"""How a config.json tells of rotary positions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from quadrate.errors import ConfigError
from quadrate.runtime.graphs.rope import Rope
from quadrate.runtime.jsonfile import is_number

if TYPE_CHECKING:
    from quadrate.runtime.jsonfile import JsonFile


MOST_POSITIONS = 2**20
"""Each has a row in the tables of angles."""


def read(config: JsonFile, said: Any, *, width: int, positions: int, base: float) -> Rope:
    """Return the rotation that a config's `rope_parameters` or `rope_scaling` describes.

    Args:
        config: The file, for messages.
        said: The object; None or empty for plain rotations.
        width: Values of a head.
        positions: The most positions there are.
        base: The base where the object gives none.

    Raises ConfigError for a way of scaling that is not served.
    """
    if width < 2 or width % 2:  # noqa: PLR2004 - values are turned in pairs
        raise ConfigError(f"{config.path}: {width} values of a head cannot be turned in pairs; fetch the model again.")
    check_positions(config, positions)
    config.refuse_unless("partial_rotary_factor", 1)
    found = said or {}
    if not isinstance(found, dict):
        raise ConfigError(f"{config.path}: rope_parameters is no JSON object; fetch the model again.")
    kind = found.get("rope_type", found.get("type", "default"))
    if kind not in ("default", "linear"):
        raise ConfigError(f"{config.path}: rope_type is {kind!r}; this version serves 'default', 'linear'.")
    if found.get("partial_rotary_factor") not in (None, 1, 1.0):
        raise ConfigError(f"{config.path}: partial_rotary_factor is {found['partial_rotary_factor']!r}; this version serves 1.")
    stretch = _positive(config, "factor", found.get("factor")) if kind == "linear" else 1.0
    given = found.get("rope_theta")
    theta = _positive(config, "rope_theta", base if given is None else given)
    return Rope(width=width, base=theta, positions=positions, stretch=stretch)


def check_positions(config: JsonFile, positions: int) -> None:
    """Raise ConfigError for more positions than tables are written for."""
    if positions > MOST_POSITIONS:
        raise ConfigError(f"{config.path}: {positions} positions; this version serves models of up to {MOST_POSITIONS}.")


def _positive(config: JsonFile, key: str, value: Any) -> float:
    if not is_number(value) or value <= 0:
        raise ConfigError(f"{config.path}: {key} is {value!r}, not a number above 0; fetch the model again.")
    return float(value)
