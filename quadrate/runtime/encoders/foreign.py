"""An encoder that a folder brings as a graph of its own. Only its sizes are known, for the costs of runs and the limit on tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn, Self

from quadrate.errors import ConfigError
from quadrate.runtime.encoders.encoder import Encoder

if TYPE_CHECKING:
    from quadrate.runtime.graphs.packed import Only, Packed
    from quadrate.runtime.jsonfile import JsonFile
    from quadrate.runtime.weights import Weights

NO_LIMIT = 10**6
"""The positions of a model that says none."""

_OFFSET = frozenset(("camembert", "data2vec-text", "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl"))
"""Families whose first position is the one after the padding's, so that two or so of the table are never read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Foreign(Encoder):
    """The sizes of an encoder that we do not write.

    Attributes:
        first_position: What a graph that takes positions has for a text's first token.
        padding_id: What stands in the places of a batch that hold no token.
    """

    first_position: int
    padding_id: int

    @classmethod
    def read(cls, config: JsonFile) -> Self:
        """See Encoder. Sizes go by several names."""
        padding = config.integer("pad_token_id", 0)
        first = padding + 1 if config.data.get("model_type") in _OFFSET else 0
        width = _one_of(config, "hidden_size", "d_model", "dim", "n_embd")
        return cls(
            width=width,
            layers=_one_of(config, "num_hidden_layers", "num_layers", "n_layers", "n_layer"),
            heads=_one_of(config, "num_attention_heads", "num_heads", "n_heads", "n_head"),
            inner_width=_one_of(config, "intermediate_size", "d_ff", "hidden_dim", "n_inner", default=4 * width),
            vocabulary_size=config.integer("vocab_size"),
            max_positions=_one_of(config, "max_position_embeddings", "n_positions", default=NO_LIMIT + first) - first,
            first_position=first,
            padding_id=padding,
        )

    def write(self, packed: Packed, weights: Weights, *, only: Only | None) -> NoReturn:  # noqa: ARG002 - as every family
        """Raise ConfigError: the folder's own graph is what runs."""
        raise ConfigError(f"{weights.folder}: this model runs by its own graph alone.")


def _one_of(config: JsonFile, *names: str, default: int | None = None) -> int:
    for name in names:
        if name in config:
            return config.integer(name)
    if default is not None:
        return default
    raise ConfigError(f"{config.path}: has none of {', '.join(names)}; fetch the model again.")
