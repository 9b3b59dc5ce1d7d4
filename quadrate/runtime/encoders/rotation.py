"""How a config.json tells of rotary positions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from quadrate.errors import ConfigError
from quadrate.runtime.graphs.rope import Rope

if TYPE_CHECKING:
    from quadrate.runtime.jsonfile import JsonFile


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
    found = said or {}
    if not isinstance(found, dict):
        raise ConfigError(f"{config.path}: rope_parameters is no JSON object; fetch the model again.")
    kind = found.get("rope_type", found.get("type", "default"))
    if kind not in ("default", "linear"):
        raise ConfigError(f"{config.path}: rope_type is {kind!r}; this version serves 'default', 'linear'.")
    if found.get("partial_rotary_factor") not in (None, 1, 1.0):
        raise ConfigError(f"{config.path}: partial_rotary_factor is {found['partial_rotary_factor']!r}; this version serves 1.")
    stretch = float(found.get("factor", 1.0)) if kind == "linear" else 1.0
    return Rope(width=width, base=float(found.get("rope_theta") or base), positions=positions, stretch=stretch)
